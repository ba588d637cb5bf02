"""The administration's query language."""
