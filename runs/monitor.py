"""Which metric says what is best."""

# The first of these that a run measures, and whether the highest or the lowest is best. The test set ranks nothing.
MONITORS = {"val/acc": "max", "val/loss": "min", "train/loss": "min"}
