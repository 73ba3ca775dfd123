"""A run on disk: its checkpoints, results, tables and files. Imports nothing else of this project."""
