"""Lightning loggers and profilers."""
