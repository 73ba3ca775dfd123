"""A sweep as a whole: its summary, its plots, and the Optuna study of a search."""
