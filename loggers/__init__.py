"""Lightning loggers and profilers: where the figures of a run go."""
