"""Plots: numbers in, a matplotlib Figure out. Nothing here writes a file or knows the Trainer."""
