"""What is measured about activations, how it is gathered, where it is kept."""
