"""A run on the disk: its checkpoints, results, tables and files. Imports nothing else of this project."""
