"""Runs in Weights & Biases."""

import logging
import os
import re
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from loggers.guarded import Guarded, first_line, is_resumed, read_run_id, write_run_id

log = logging.getLogger(__name__)


class WandB(Guarded, WandbLogger):
    """Records settings, metrics, tags, pictures and the result of a run in Weights & Biases.

    ``wandb.txt`` in the run directory holds the id of the run, so that a resumed run continues it.

    Args:
        save_dir: run directory. The files of wandb are in ``outputs/wandb``: among them are links, which in a run
            directory are refused.
        mode: online, offline or disabled. None takes the environment variable ``WANDB_MODE``, or online.
        **options: further arguments of ``wandb.init``, such as ``project``, ``name``, ``group`` and ``entity``.
    """

    title = "Weights & Biases"

    def __init__(self, save_dir: str, mode: str | None = None, **options: Any) -> None:
        self._file = Path(save_dir, "wandb.txt")
        stored = read_run_id(self._file)
        self.is_continued = bool(stored and re.fullmatch(r"[\w-]{1,64}", stored[0]))
        if is_resumed(save_dir) and not self.is_continued:
            log.info("%s does not name a W&B run to continue: one begins", self._file)
        run_id = stored[0] if self.is_continued else secrets.token_hex(4)
        mode = mode or os.environ.get("WANDB_MODE")
        # What is printed belongs to train.log, and wandb would wrap the streams.
        settings = wandb.Settings(console="off", quiet=True)
        super().__init__(save_dir="outputs", id=run_id, mode=mode, settings=settings, **options)
        self._wandb_init.pop("anonymous", None)  # wandb warns of it
        self._is_online = mode in (None, "online")

    def begin(self) -> None:
        """Begin the run in W&B, or find the one to continue.

        Raises:
            ValueError: there is no key, or W&B cannot be used.
        """
        Path("outputs").mkdir(exist_ok=True)  # else wandb takes the directory for temporary files
        try:
            if self.is_continued and self._is_online:
                try:
                    self._wandb_init["resume"] = "must"
                    _ = self.experiment
                except wandb.errors.UsageError as error:
                    if "resume" not in str(error):
                        raise
                    log.warning("W&B has no run %s: another one begins", self._id)
                    self._wandb_init["resume"] = "allow"
            _ = self.experiment
        except (wandb.Error, OSError, ValueError) as error:
            hint = "wandb login or WANDB_API_KEY gives a key, logger.wandb.mode=offline needs none"
            raise ValueError(f"logger=wandb: {first_line(error)}; {hint}") from error
        if self.experiment.id:
            write_run_id(self._file, str(self._id))

    def log_config(self, config: dict[str, Any], text: str) -> None:
        self._guard(lambda: self._log_config(config))

    def _log_config(self, config: dict[str, Any]) -> None:
        choices = config["choices"]
        own = [choices[name] for name in ("experiment", "model", "data") if choices[name]]
        self.experiment.tags = tuple(dict.fromkeys([*own, *(config.get("tags") or [])]))
        self.log_hyperparams(config)

    @rank_zero_only
    def log_plot(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Add a plot, uint8 ``(H, W, 3)``."""
        self._guard(lambda: self.experiment.log({name: wandb.Image(pixels), "trainer/global_step": step}))

    @rank_zero_only
    def log_end(self, result: dict[str, Any], settings: dict[str, Any]) -> None:
        """Record the result, and end the run in W&B."""
        self._guard(lambda: self._log_end(result))
        # Also after a failure: the next job of a sweep would continue this run.
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(result["status"] not in ("finished", "diverged")))
            self._experiment = None

    def _log_end(self, result: dict[str, Any]) -> None:
        metrics = {name: value for name, value in result["metrics"].items() if value is not None}
        facts = ("status", "epochs", "steps", "params", "seconds", "command", "git")
        self.experiment.summary.update(metrics | {name: result[name] for name in facts if name in result})

    def finalize(self, status: str) -> None:
        pass  # after the training, before the test; log_end() ends the run
