"""Tables, pages and cards, all drawn from the plan's rows and from measurements."""
