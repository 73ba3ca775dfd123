"""What is best: one metric and its mode, for best.ckpt, early stopping, the ranking of sweeps, searches and pruning."""

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runs.overrides import typed_setting

STAGES = ("train", "val", "test")
MODES = ("max", "min")  # higher is better, lower is better
# Where neither the config nor the model names a metric, the first of these that a run measures. The test set never is.
DEFAULTS = {"val/acc": "max", "val/loss": "min", "train/loss": "min"}
# What measures a metric that people ask for, where the run has none of this name.
_PROVIDERS = dict.fromkeys(("f1", "auroc", "ece"), "metrics=classes") | dict.fromkeys(("rmse", "r2"), "metrics=numbers")
_PROVIDERS |= dict.fromkeys(("recognized", "class_entropy", "frechet"), "callbacks=judge")
_PREFIXES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def metric_name(stage: str, logged: str) -> str:
    """Return ``STAGE/METRIC`` for what a module logs in a stage as ``val/loss``, ``val_loss`` or ``loss``."""
    start = re.match(rf"({'|'.join(_PREFIXES[stage])})[/_](?=.)", logged)
    return f"{stage}/{logged[start.end() if start else 0 :]}"


@dataclass(frozen=True)
class Monitor:
    """A metric, ``STAGE/METRIC``, and its mode, ``max`` or ``min``."""

    name: str
    mode: str

    def is_better(self, score: float, best: float | None) -> bool:
        """Return whether a score is better than the best before it. A number is better than nan."""
        if best is None or math.isnan(score):
            return best is None
        return math.isnan(best) or (score > best if self.mode == "max" else score < best)


class Monitors:
    """The metrics that may tell what is best.

    Args:
        monitor: the config's ``monitor``. None takes the attributes ``monitor`` and ``mode`` of the model, or else the
            first of ``DEFAULTS`` that is measured.
        mode: the config's ``mode``. None takes the one that the metric is known for.
        model: the LightningModule.
        modes: metric without its stage -> mode, of the metrics in the config.

    Raises:
        ValueError: the metric is one of the test set, the mode is unknown, or there is a mode without a metric.
    """

    def __init__(
        self, monitor: str | None, mode: str | None, model: Any = None, modes: Mapping[str, str | None] | None = None
    ) -> None:
        check_setting(monitor, mode)
        own, own_mode = getattr(model, "monitor", None), getattr(model, "mode", None)
        own = own if isinstance(own, str) else None  # any other attribute of this name means something else
        self.asked, self.modes = monitor, modes or {}
        self.candidates = {}
        if name := monitor or own:
            known = own_mode if name == own and own_mode in MODES else None
            known = mode or known or known_mode(name, self.modes)
            if known is None:
                raise ValueError(
                    f"monitor={name}: is a higher or a lower one better? mode=max or mode=min says it, and metrics= "
                    "adds metrics of torchmetrics, which say it themselves"
                )
            self.candidates = {name: known}
        if not monitor:
            self.candidates |= {name: mode for name, mode in DEFAULTS.items() if name not in self.candidates}

    def resolve(self, measured: Collection[str]) -> Monitor | None:
        """Return the first that is among the measured metrics, ``STAGE/METRIC``."""
        for name, mode in self.candidates.items():
            for full in _full_names(name):
                if full in measured:
                    return Monitor(full, mode)
        return None

    def check_measured(self, measured: Collection[str], stage: str | None = None) -> None:
        """Check the config's metric against all that was measured.

        Args:
            measured: metrics, ``STAGE/METRIC``.
            stage: the only stage they are of; a metric of another one is not checked then.

        Raises:
            ValueError: it is not among them.
        """
        if self.asked and stage in (None, _stage_of(self.asked)) and not self.resolve(measured):
            measured_as, _, metric = _full_names(self.asked)[0].partition("/")
            provider = _PROVIDERS.get(metric) if measured_as == "val" else None
            close = difflib.get_close_matches(self.asked, list(measured), n=1)
            hint = f" ({provider} measures it)" if provider else f" (did you mean {close[0]}?)" if close else ""
            raise ValueError(f"monitor={self.asked} is not measured{hint}; there are {names(measured)}")

    def check_possible(self, possible: Collection[str] | None) -> None:
        """Check the config's metric before anything is measured.

        Args:
            possible: all metrics that the run may measure, ``STAGE/METRIC``; None where nobody knows. One with a value
                for each class stands for ``STAGE/METRIC/CLASS`` too.

        Raises:
            ValueError: it is not among them.
        """
        if self.asked and possible is not None:
            if any(full.rpartition("/")[0] in possible for full in _full_names(self.asked)):
                return
            self.check_measured(possible)

    def check_validation(self, validates: bool) -> None:
        """Raise ValueError where the config's metric is one of a validation, and the run has none."""
        if self.asked and not validates and _stage_of(self.asked) == "val":
            raise ValueError(
                f"monitor={self.asked}: this run has no validation; data.val_size= holds examples out for it, and the "
                "model needs a validation_step"
            )

    def explain(self, measured: Collection[str]) -> str:
        """Return why a run has no best epoch: what was measured, and what could choose."""
        if not (usable := [name for name in measured if not name.startswith("test/")]):
            return "this run measured nothing that could choose a best epoch"
        # Rather one of the validation, with a known mode, and not one of several losses, which need not tell it.
        name = min(
            usable, key=lambda name: (_stage_of(name) == "train", not known_mode(name, {}), "loss" in name, name)
        )
        mode = known_mode(name, {}) or "min"
        choice = f"{typed_setting('monitor', name)} mode={mode}"
        return f"this run measured {names(usable)}; {choice} would choose by one of them"


def check_setting(monitor: Any, mode: Any) -> None:
    """Raise ValueError for a monitor and a mode of the config that cannot be right, whatever is measured."""
    if monitor is not None and (not isinstance(monitor, str) or not monitor.strip()):
        raise ValueError(f"monitor={monitor} must be the name of a metric, such as val/loss")
    if mode is not None and mode not in MODES:
        raise ValueError(f"mode={mode} must be max (higher is better) or min")
    if mode is not None and monitor is None:
        raise ValueError(f"mode={mode} goes with monitor=, the metric that it is about")
    if monitor is not None and monitor.startswith("test"):
        raise ValueError(f"monitor={monitor}: what is chosen by the test set cannot be tested on it; choose val/…")


def known_mode(name: str, modes: Mapping[str, str | None]) -> str | None:
    """Return whether a higher or a lower value of a metric is better, where its name or the config says so.

    Args:
        name: the metric, with its stage or without.
        modes: of the metrics in the config.
    """
    metric = _full_names(name)[-1].partition("/")[2]
    if mode := modes.get(metric):
        return mode
    words = metric.lower().replace("/", "_").split("_")
    if words[-1] in ("acc", "accuracy"):
        return "max"
    return "min" if words[-1] in ("loss", "error", "nll", "mse", "rmse", "mae", "frechet") else None


def known_modes(metrics: Mapping[str, Any]) -> dict[str, str | None]:
    """Return name -> mode of metrics of torchmetrics, or of their classes. None is one that does not say it."""
    modes: dict[Any, str] = {True: "max", False: "min"}
    return {name: modes.get(getattr(metric, "higher_is_better", None)) for name, metric in metrics.items()}


def possible_metrics(parts: Iterable[Any]) -> set[str] | None:
    """Return what a run may measure, ``STAGE/METRIC``, or None where a part of it does not say what it logs.

    Args:
        parts: the LightningModule and the callbacks. The class of each says it in its attribute ``measures``. A
            subclass may log more, so it says it again.
    """
    possible: set[str] = set()
    for part in parts:
        if type(part).__module__.startswith("lightning."):
            continue
        if "measures" not in vars(type(part)):
            return None
        possible |= {full for name in part.measures for full in ([name] if "/" in name else _in_all_stages(name))}
    return possible


def _in_all_stages(metric: str) -> list[str]:
    return [f"{stage}/{metric}" for stage in STAGES]


def names(measured: Iterable[str]) -> str:
    """Return the names of metrics in one line, without those of single classes."""
    return ", ".join(sorted(name for name in measured if name.count("/") < 2)) or "none"


def _full_names(name: str) -> list[str]:
    """Return what ``val/loss``, ``val_loss`` or ``loss`` may be called in metrics.csv."""
    stage = _stage_of(name)
    return [metric_name(one, name) for one in ((stage,) if stage else ("val", "train"))]


def _stage_of(name: str) -> str | None:
    """Return the stage that the name of a metric begins with."""
    return next((stage for stage in STAGES if metric_name(stage, name) != f"{stage}/{name}"), None)
