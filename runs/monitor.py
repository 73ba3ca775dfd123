"""The metrics that rank epochs, runs and jobs."""

# The first of these that a run logs ranks it: ``max`` where higher is better. The test set is never used for this.
MONITORS = {"val/acc": "max", "val/loss": "min", "train/loss": "min"}
