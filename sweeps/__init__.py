"""A sweep as a whole: the jobs and their summary, its Hydra callback, the Optuna study of a search, and its figures."""
