"""The formats: what the rows of each shape become."""
