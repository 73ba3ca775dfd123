"""What a run came to: ``result.json`` for machines and a table for people."""

import json
import logging
import math
import platform
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torchvision
import yaml

from callbacks.checkpoints import commit
from callbacks.expect import Comparison
from callbacks.files import point, replacing
from callbacks.pictures import MAIN
from callbacks.record import Record, counted, metrics_of, readable
from lit_models.exact import completed_epochs

log = logging.getLogger(__name__)


class Report(pl.Callback):
    """Watches a run and writes ``config.yaml`` at its start and ``result.json`` at its end, whatever the end is.

    Args:
        folder: of the run.
        config: of the run, plain values.
        data_md5: of the data set, where it is a published one.
        typed: the overrides by which runs are compared.
    """

    def __init__(self, folder: Path, config: dict[str, Any], data_md5: str | None, typed: Sequence[str]) -> None:
        self.folder, self.config, self.typed = folder, config, typed
        chosen = config["chosen"]
        facts = {name: chosen[name] for name in ("experiment", "model", "data")} | {"name": config["name"]}
        command = shlex.join(["python", "train.py", *chosen["overrides"]])
        facts |= {"seed": config["seed"], "command": command, "overrides": chosen["overrides"], "data_md5": data_md5}
        facts["resumed"] = bool(config["resume"])  # its seconds are then those since
        self.result: dict[str, Any] = facts | {"status": "failed", "metrics": {}, "params": 0, "epochs": 0, "steps": 0}
        self._start = self._fit_start = self._test_start = time.monotonic()
        self._seconds = {"fit": 0.0, "test": 0.0}

    def begin(self, newest: bool) -> None:
        """Writes ``config.yaml``; ``outputs/last`` is this run from now on, if it is the newest (one that tries a few
        batches is not: ``evaluate.py run=last`` is not about that)."""
        with replacing(self.folder / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(self.config, sort_keys=False))
        (self.folder / "result.json").unlink(missing_ok=True)  # of a run that goes on
        if newest:
            point(Path("outputs", "last"), self.folder)

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
        self.result["metrics"] |= metrics_of(trainer, "val/")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == "fit":
            self._close_fit(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close_fit(trainer)  # before pictures are drawn

    def _close_fit(self, trainer: pl.Trainer) -> None:
        self._seconds["fit"] = time.monotonic() - self._fit_start
        self.result |= {"epochs": completed_epochs(trainer), "steps": trainer.global_step}

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Again, for where nothing was left to train Lightning has not asked on_train_end.
        self.result |= {"epochs": completed_epochs(trainer), "steps": trainer.global_step}
        # A run that was killed after its last epoch has its figures from there.
        rows = next((callback.rows for callback in trainer.checkpoint_callbacks if isinstance(callback, Record)), [])
        before = {name: value for row in rows[-1:] for name, value in row.items() if name.endswith(("/loss", "/acc"))}
        self.result["metrics"] |= before | metrics_of(trainer, "train/")
        # The few numbers that a net has a name for are a result too.
        self.result["metrics"] |= getattr(pl_module.net, "coefficients", dict)()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._test_start = time.monotonic()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seconds["test"] = time.monotonic() - self._test_start
        self.result["metrics"] |= metrics_of(trainer, "test/")
        for logger in trainer.loggers:
            if hasattr(logger, "log_result"):
                metrics = {name: value for name, value in self.result["metrics"].items() if name.count("/") < 2}
                logger.log_result(self._settings(), dict(sorted(metrics.items())))  # acc first, then loss

    def _settings(self) -> dict[str, Any]:
        """What runs are compared by: their parts, the settings in which experiments differ, and whatever was typed."""
        chosen = self.config["chosen"]
        settings = {group: chosen[group] for group in ("model", "data", "optimizer", "scheduler")}
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
        metrics = self.result["metrics"].items()
        self.result["metrics"] = {name: value if math.isfinite(value) else None for name, value in metrics}  # for JSON
        self.result |= {"git": commit(), "versions": _versions()}
        try:
            with replacing(self.folder / "result.json") as temporary:
                temporary.write_text(json.dumps(self.result, indent=1) + "\n")
        except OSError as error:  # the run may be ending for the same reason, which is to be heard
            log.warning("result.json could not be written: %s", error)
        return self.result


def has_diverged(rows: list[dict[str, float]]) -> bool:
    """Whether training made the loss worse: at its end more than twice what it was in the first epoch."""
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    return bool(losses) and not (math.isfinite(losses[-1]) and losses[-1] <= 2 * abs(losses[0]))


def line(result: dict[str, Any]) -> str:
    """The end of a run in one line, for a job of a sweep."""
    names = [f"{stage}/{metric}" for stage in ("val", "test") for metric in ("acc", "loss")]
    metrics = {name: value for name in names if (value := result["metrics"].get(name)) is not None}
    return f"{readable(metrics)}  {result['seconds']['total']:.1f} s"


def table(result: dict[str, Any], folder: Path, comparisons: list[Comparison], changed: list[str]) -> str:
    """The end of a run as a person reads it.

    Args:
        result: of ``result.json``.
        folder: of the run.
        comparisons: with what the experiment expects.
        changed: settings that differ from the experiment's, so that nothing is to be expected.
    """
    metrics, seconds = result["metrics"], result["seconds"]
    rows = [(result["name"], f"seed {result['seed']}, {result['params']:,} parameters, {result['device']}")]
    if metrics.get("test/acc") is not None:
        rows.append(("test accuracy", f"{100 * metrics['test/acc']:.2f} %"))
    by_class = [(name.removeprefix("test/acc/"), value) for name, value in metrics.items() if "test/acc/" in name]
    for start in range(0, len(by_class), 5):
        shares = "  ".join(f"{name} {100 * value:.1f} %" for name, value in by_class[start : start + 5])
        rows.append(("" if start else "of each class", shares))
    if metrics.get("test/loss") is not None:
        rows.append(("test loss", f"{metrics['test/loss']:.4g}"))
    rows += [(name, f"{value:.6g}") for name, value in metrics.items() if "/" not in name and value is not None]
    length = f"{counted(result['epochs'], 'epoch')}, {counted(result['steps'], 'step')}"
    again = " since it went on" if result["resumed"] else ""
    rows += [
        ("training", f"{length}, {seconds['fit']:.1f} s{again}"),
        ("whole run", f"{seconds['total']:.1f} s{again}"),
    ]
    if result["status"] != "finished":
        rows.append(("status", result["status"]))
    if changed:
        rows.append(("not compared", f"with the published figures, because of what was typed: {', '.join(changed)}"))
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    rows.append(("is in", str(folder)))
    files = [folder / "pictures" / f"{name}.png" for name in MAIN]
    rows += [("picture", str(file)) for file in files if file.exists()][:1]
    if (folder / "dashboard.txt").exists():
        rows.append(("look", "tensorboard --logdir outputs"))
    lines = _columns(rows)
    if comparisons and not changed:
        lines += ["", *_columns([("metric", "published", "expected", "got", ""), *(c.row() for c in comparisons)])]
    return "\n".join(lines)


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} cpu, {counted(torch.get_num_threads(), 'thread')}"


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "lightning": pl.__version__,
    }
