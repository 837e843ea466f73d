"""What to try, and what to keep."""
