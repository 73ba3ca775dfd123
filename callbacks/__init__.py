"""What watches a run and writes it down. Callbacks see ``trainer``, ``pl_module`` and ``trainer.datamodule``."""
