"""What a run came to: ``result.json`` for machines and a table for people."""

import logging
import platform
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml

from callbacks import get_metrics_history, logged_metrics
from runs import internals
from runs.files import atomic_write, update_symlink
from runs.format import pluralize
from runs.result import git_revision, library_versions, write_result

log = logging.getLogger(__name__)


class RunSummary(pl.Callback):
    """Watches a run and writes ``config.yaml`` at its start and ``result.json`` at its end, whatever the end is.

    Args:
        folder: of the run.
        config: of the run, plain values.
        data_md5: of the data set, where it is a published one.
        typed: the overrides by which runs are compared.
    """

    def __init__(self, folder: Path, config: dict[str, Any], data_md5: str | None, typed: Sequence[str]) -> None:
        self.folder, self.config, self.typed = folder, config, typed
        choices = config["choices"]
        facts = {name: choices[name] for name in ("experiment", "model", "data")} | {"name": config["name"]}
        command = shlex.join(["python", "train.py", *choices["overrides"]])
        facts |= {"seed": config["seed"], "command": command, "overrides": choices["overrides"], "data_md5": data_md5}
        facts["resumed"] = bool(config["resume"])  # its seconds are then those since
        self.result: dict[str, Any] = facts | {"status": "failed", "metrics": {}, "params": 0, "epochs": 0, "steps": 0}
        self._start = self._fit_start = self._test_start = time.monotonic()
        self._seconds = {"fit": 0.0, "test": 0.0}
        self.write_error: OSError | None = None

    def begin(self, newest: bool) -> None:
        """Writes ``config.yaml``; ``outputs/last`` is this run from now on, if it is the newest (one that tries a few
        batches is not: ``evaluate.py run=last`` is not about that)."""
        with atomic_write(self.folder / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(self.config, sort_keys=False))
        (self.folder / "result.json").unlink(missing_ok=True)  # of a run that goes on
        if newest:
            update_symlink(Path("outputs", "last"), self.folder)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.result["params"] = sum(parameter.numel() for parameter in pl_module.parameters())
        several = f"{trainer.world_size} processes, each on " if trainer.world_size > 1 else ""
        self.result["device"] = several + _device(trainer.strategy.root_device)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._fit_start = time.monotonic()
        text = yaml.safe_dump(self.config, sort_keys=False)
        for logger in trainer.loggers:
            if hasattr(logger, "log_text"):
                logger.log_text("config", "".join(f"    {line}\n" for line in text.splitlines()))  # as code

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.result["metrics"] |= logged_metrics(trainer, "val/")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == "fit":
            self._close_fit(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close_fit(trainer)  # before pictures are drawn

    def _close_fit(self, trainer: pl.Trainer) -> None:
        self._seconds["fit"] = time.monotonic() - self._fit_start
        self.result |= {"epochs": internals.completed_epochs(trainer), "steps": trainer.global_step}

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Again, for where nothing was left to train Lightning has not asked on_train_end.
        self.result |= {"epochs": internals.completed_epochs(trainer), "steps": trainer.global_step}
        # A run that was killed after its last epoch has its figures from there.
        rows = get_metrics_history(trainer).rows
        before = {name: value for row in rows[-1:] for name, value in row.items() if name.endswith(("/loss", "/acc"))}
        self.result["metrics"] |= before | logged_metrics(trainer, "train/")
        # The few numbers that a net has a name for are a result too.
        self.result["metrics"] |= getattr(pl_module.net, "coefficients", dict)()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._test_start = time.monotonic()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seconds["test"] = time.monotonic() - self._test_start
        self.result["metrics"] |= logged_metrics(trainer, "test/")
        for logger in trainer.loggers:
            if hasattr(logger, "log_result"):
                metrics = {name: value for name, value in self.result["metrics"].items() if name.count("/") < 2}
                logger.log_result(self._settings(), dict(sorted(metrics.items())))  # acc first, then loss

    def _settings(self) -> dict[str, Any]:
        """What runs are compared by: their parts, the settings in which experiments differ, and whatever was typed."""
        choices = self.config["choices"]
        settings = {group: choices[group] for group in ("model", "data", "optimizer", "scheduler")}
        usual = ("optimizer.lr", "optimizer.momentum", "data.batch_size", "trainer.max_epochs", "seed")
        for key in (*usual, *(override.lstrip("+").partition("=")[0] for override in self.typed)):
            value: Any = self.config
            for name in key.split("."):
                value = value.get(name) if isinstance(value, dict) else None
            if isinstance(value, (bool, int, float, str)):
                settings[key] = value
        return settings

    def write(self, status: str, **more: Any) -> dict[str, Any]:
        """Writes ``result.json`` with the status: finished, interrupted, diverged or failed."""
        seconds = self._seconds | {"total": time.monotonic() - self._start}
        self.result |= {"status": status, **more}
        self.result["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
        self.result |= {"git": git_revision(), "versions": library_versions()}
        try:
            write_result(self.folder, self.result)
        except OSError as error:  # not raised: the run may be ending for another reason, which is then reported
            self.write_error = error
            self.result["status"] = "failed"
            log.warning("result.json could not be written: %s", error)
        return self.result


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} cpu, {pluralize(torch.get_num_threads(), 'thread')}"
