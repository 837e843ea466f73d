"""The published tables of projects, made again."""
