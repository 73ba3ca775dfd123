"""Evaluate a finished run: load the run → test → report. Needs nothing but the run directory.

python evaluate.py run=last split=val
"""

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cli.build import build_metrics, load_run
from cli.main import main
from cli.session import call
from cli.validation import check_without_effect
from runs.checkpoint import find_checkpoint
from runs.files import atomic_write_text, is_writable
from runs.format import format_metric
from runs.result import finite_metrics

log = logging.getLogger(__name__)


def evaluate(*overrides: str) -> dict[str, float | None]:
    """Evaluate from Python what ``python evaluate.py OVERRIDES`` evaluates, and return the metrics.

        evaluate("run=last", "split=val")["val/acc"]

    Raises:
        CommandError, KeyboardInterrupt: see :func:`call`.
    """
    _, result = call(evaluate_config, overrides, "evaluate")
    metrics: dict[str, float | None] = result["metrics"]
    return metrics


def evaluate_config(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """Evaluate a checkpoint on ``cfg.split`` and write ``evaluations/SPLIT_CHECKPOINT.json`` in the run directory.

    Of a run that may be read and not written the result is not kept, and a line says so.
    """
    if cfg.split not in ("test", "val", "train"):
        raise ValueError(f"split={cfg.split} must be test, val or train")
    if (attack := cfg.get("attack")) not in (None, "fgsm"):
        raise ValueError(f"attack={attack} must be fgsm or null")
    if not attack:
        check_without_effect("epsilons", "attack=fgsm")
    _, file = find_checkpoint(cfg.run, cfg.checkpoint)
    written = run_dir / "evaluations" / f"{cfg.split}_{file.stem}.json"
    attacked = written.with_name(f"fgsm_{'' if cfg.split == 'test' else f'{cfg.split}_'}{file.name}")
    for path in (written, *(attacked.with_suffix(ending) for ending in (".json", ".png") if attack)):
        _check_not_overwritten(path)
    is_kept = is_writable(written.parent)
    stored, datamodule, model = load_run(cfg.run, cfg.checkpoint, cfg.get("data"), keep_float64=True)

    from callbacks.fgsm import FGSM

    attacks = [FGSM(cfg.epsilons)] if attack else []
    metrics = _test(cfg, stored, datamodule, model, attacks)
    shown = os.path.relpath(file)
    log.info("%s of %s\n%s", cfg.split, shown, _metrics_table(metrics))
    for fgsm in attacks:
        log.info("attack=fgsm on %s of %s\n%s", cfg.split, shown, fgsm.table())
        if is_kept:
            fgsm.write(attacked, cfg.split, file, datamodule.class_names)
    result = {"checkpoint": str(file), "split": cfg.split, "metrics": finite_metrics(metrics)}
    if is_kept:
        atomic_write_text(written, json.dumps(result, indent=1) + "\n")
    else:
        log.warning("%s cannot be written, so the result is not kept", os.path.relpath(written.parent))
    return result


def _test(cfg: DictConfig, stored: DictConfig, datamodule: Any, model: Any, attacks: list[Any]) -> dict[str, float]:
    """Return the metrics of a model on ``cfg.split``, of its test step or else of its validation step.

    Raises:
        ValueError: the split has no examples, the model has no such step, or the step logs nothing.
    """
    import lightning.pytorch as pl

    from callbacks import has_step, logged_metrics
    from callbacks.epoch_metrics import EpochMetrics
    from callbacks.per_class_accuracy import PerClassAccuracy
    from callbacks.signal_handler import SignalHandler
    from runs.checkpoint_io import check_slurm_checkpoints

    signals = SignalHandler()
    trainer = pl.Trainer(
        **cfg.trainer,
        precision=stored.trainer.precision,
        callbacks=[PerClassAccuracy(), EpochMetrics(build_metrics(stored, datamodule)), *attacks, signals],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    datamodule.test_split = datamodule.validate_on = cfg.split
    check_slurm_checkpoints(trainer)
    datamodule.trainer = trainer  # for its device and precision
    datamodule.setup()
    if not len(datamodule.test_dataloader()):
        raise ValueError(f"split={cfg.split}: this run has no such examples (data.val_size={stored.data.val_size})")
    step = next((stage for stage in ("test", "val") if has_step(model, stage)), None)
    if not step:
        raise ValueError(f"{type(model).__name__} has no test_step and no validation_step to evaluate it with")
    with signals:
        (trainer.test if step == "test" else trainer.validate)(model, datamodule=datamodule, verbose=False)
    metrics = {
        name.replace(f"{step}/", f"{cfg.split}/", 1): value for name, value in logged_metrics(trainer, step).items()
    }
    if not metrics:
        raise ValueError(f"{type(model).__name__} logs nothing in its {step} step")
    return metrics


def _metrics_table(metrics: dict[str, float]) -> str:
    """Return a line for each metric, those of single classes last."""
    width = max(map(len, metrics))
    overall_first = sorted(metrics, key=lambda name: name.count("/"))
    return "\n".join(f"  {name:<{width}}  {format_metric(name, metrics[name])}" for name in overall_first)


def _check_not_overwritten(file: Path) -> None:
    """Raise ValueError for a file that is not an earlier evaluation, such as one beside a checkpoint alone.

    A picture is one where the evaluation lies beside it.
    """
    if not os.path.lexists(file):
        return
    with contextlib.suppress(OSError, ValueError, RecursionError):
        table = file.with_suffix(".json")
        found = json.loads(table.read_text(encoding="utf-8")) if file.is_file() and table.is_file() else None
        if isinstance(found, dict) and set(found) - {"attack"} == {"checkpoint", "split", "metrics"}:
            return
    shown = os.path.relpath(file)
    raise ValueError(f"{shown} would be overwritten, and is not an evaluation of this project: move it elsewhere")


if __name__ == "__main__":
    main(evaluate_config, "evaluate")
