"""Write the config and the result of a run."""

import contextlib
import logging
import math
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml

from callbacks import get_metrics_history, get_net, logged_metrics, num_parameters
from runs import internals
from runs.files import atomic_write_text, check_locks, update_symlink
from runs.format import pluralize
from runs.overrides import train_command
from runs.result import git_revision, library_versions, write_result
from runs.safety import stored_command

log = logging.getLogger(__name__)


class RunSummary(pl.Callback):
    """Writes ``config.yaml`` at the start of a run and ``result.json`` at its end, also when it fails.

    Args:
        run_dir: directory of the run.
        config: config of the run, as plain values.
        data_md5: MD5 of a published data set.
        compared_overrides: overrides to show in TensorBoard's table of hyperparameters.
    """

    measures = ()

    def __init__(
        self, run_dir: Path, config: dict[str, Any], data_md5: str | None, compared_overrides: Sequence[str]
    ) -> None:
        self.run_dir, self.config, self.compared_overrides = run_dir, config, compared_overrides
        choices = config["choices"]
        facts = {name: choices[name] for name in ("experiment", "model", "data")} | {"name": config["name"]}
        # Those of a resumed run are stored in its checkpoint, which may come from anyone.
        command = (stored_command if config["resume"] else train_command)(choices["overrides"])
        facts |= {"seed": config["seed"], "command": command, "overrides": choices["overrides"], "data_md5": data_md5}
        facts["tags"] = config.get("tags") or []
        facts["resumed"] = bool(config["resume"])  # the seconds are then those since the resume
        self.result: dict[str, Any] = facts | {"status": "failed", "metrics": {}, "params": 0, "epochs": 0, "steps": 0}
        self.result |= {"monitor": None, "mode": None}
        self.write_error: OSError | None = None
        self._checkpoint = self._stat_checkpoint()
        self._begun = False  # whether the earlier result, if there was one, holds no longer
        self._start = self._fit_start = self._test_start = time.monotonic()
        self._seconds = {"fit": 0.0, "test": 0.0}

    def write_config(self, update_last: bool) -> None:
        """Write ``config.yaml``, and let ``outputs/last`` point to this run if ``update_last``."""
        atomic_write_text(self.run_dir / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))
        if update_last:
            try:
                update_symlink(Path("outputs", "last"), self.run_dir)
            except OSError as error:  # such as a file system without links; the run does not need it
                run_dir = os.path.relpath(self.run_dir)
                log.warning("outputs/last does not point at this run, %s: %s", run_dir, error)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.result["params"] = num_parameters(pl_module)
        processes = f"{trainer.world_size} processes, each on " if trainer.world_size > 1 else ""
        self.result["device"] = processes + _device_name(trainer.strategy.root_device)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._fit_start = time.monotonic()
        text = yaml.safe_dump(self.config, sort_keys=False)
        for logger in trainer.loggers:
            if callable(log_config := getattr(logger, "log_config", None)):
                log_config(self.config, text)
            else:  # one of Lightning's own
                logger.log_hyperparams(self.config)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._forget_earlier_result()

    def _forget_earlier_result(self) -> None:
        """Remove the result of the run before it was resumed, which holds until another checkpoint is there.

        Without a checkpoint it is that of a run that died early, and holds no longer.
        """
        if self._begun or (self._checkpoint and self._stat_checkpoint() == self._checkpoint):
            return
        self._begun = True
        result = self.run_dir.absolute() / "result.json"
        check_locks(result)
        with contextlib.suppress(OSError):  # writing the result reports it
            result.unlink()

    def _stat_checkpoint(self) -> tuple[int, int] | None:
        with contextlib.suppress(OSError):
            found = os.stat(self.run_dir / "checkpoints" / "last.ckpt")
            return found.st_ino, found.st_mtime_ns
        return None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.result["metrics"] |= logged_metrics(trainer, "val")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == "fit":
            self._record_training(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._record_training(trainer)  # before the plots are drawn

    def _record_training(self, trainer: pl.Trainer) -> None:
        self._seconds["fit"] = time.monotonic() - self._fit_start
        self._record_length(trainer)

    def _record_length(self, trainer: pl.Trainer) -> None:
        self.result |= {"epochs": internals.completed_epochs(trainer), "steps": trainer.global_step}
        self.result["optimizers"] = len(trainer.optimizers)  # each makes steps of its own

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._record_length(trainer)  # Lightning does not call on_train_end where nothing was left to train
        history = get_metrics_history(trainer)
        if best := history.monitor or history.monitors.resolve(history.measured):
            self.result |= {"monitor": best.name, "mode": best.mode}
        # If the run was killed after its last epoch, only the history holds its metrics.
        self.result["metrics"] |= history.measured
        # Weights that are results themselves, such as those of a line.
        if callable(coefficients := getattr(get_net(pl_module), "coefficients", None)):
            self.result["metrics"] |= coefficients()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._test_start = time.monotonic()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seconds["test"] = time.monotonic() - self._test_start
        for name, value in logged_metrics(trainer, "test").items():
            of_no_example = math.isnan(value) and name.count("/") > 1  # that of a class
            self.result["metrics"][name] = None if of_no_example else value

    def end_loggers(self, trainer: pl.Trainer) -> None:
        """Let the loggers record the result, and end the run at their services."""
        for logger in trainer.loggers:
            if callable(log_end := getattr(logger, "log_end", None)):
                log_end(self.result, self._hyperparameters())

    def _hyperparameters(self) -> dict[str, Any]:
        """Return what distinguishes runs: the chosen options, the usual settings, and the overrides."""
        choices = self.config["choices"]
        groups = ("model", "data", "optimizer", "scheduler")  # None where a model makes its own
        hyperparameters = {group: choices[group] for group in groups if choices[group]}
        usual = ("optimizer.lr", "optimizer.momentum", "data.batch_size", "trainer.max_epochs", "seed")
        for key in (*usual, *(override.lstrip("+").partition("=")[0] for override in self.compared_overrides)):
            value: Any = self.config
            if key.startswith("optimizer.") and not choices["optimizer"]:
                continue
            for name in key.split("."):
                value = value.get(name) if isinstance(value, dict) else None
            if isinstance(value, (bool, int, float, str)):
                hyperparameters[key] = value
            elif isinstance(value, list):
                hyperparameters[key] = str(value)
        return hyperparameters

    def write_result(self, status: str, **more: Any) -> dict[str, Any]:
        """Write ``result.json`` and return it. The status is finished, interrupted, pruned, diverged or failed.

        A file that cannot be written is recorded in ``write_error`` and not raised, because the run may be ending for
        another reason.
        """
        seconds = self._seconds | {"total": time.monotonic() - self._start}
        self.result |= {"status": status, **more}
        self.result["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
        self.result |= {"git": git_revision(), "versions": library_versions()}
        try:
            self._forget_earlier_result()
            if not self._begun and status != "finished" and (self.run_dir / "result.json").exists():
                return self.result  # that of the run that was to be resumed is still true
            write_result(self.run_dir, self.result)
        except OSError as error:
            self.write_error = error
            self.result["status"] = "failed"
            log.warning("result.json could not be written: %s", error)
        return self.result


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} cpu, {pluralize(torch.get_num_threads(), 'thread')}"
