"""A sweep as a whole: its jobs, its summary and figures, the Hydra callback that writes them, and its Optuna study."""
