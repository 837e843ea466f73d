"""From a recipe and a model to the table of what will happen."""
