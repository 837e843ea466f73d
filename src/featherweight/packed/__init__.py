"""How weights are stored, one storage a file."""
