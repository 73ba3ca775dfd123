"""Figures: numbers in, a matplotlib Figure out. Nothing here writes a file or knows a trainer."""
