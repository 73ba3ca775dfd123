"""The figures of the README: speed ratios and results of the experiments."""
