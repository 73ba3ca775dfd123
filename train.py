"""Train one experiment: compose → seed → instantiate → fit → test → report.

    python train.py model=lenet data=cifar10 trainer.accelerator=gpu

conf/ names the parts. Training procedures are in lit_models/, data in datamodules/.
"""

import contextlib
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cli.build import build, build_callbacks, build_metrics, load_weights
from cli.compose import incomparable_overrides, relevant_overrides
from cli.exit_codes import exit_code
from cli.job import is_debug_run, is_multirun, is_range_test, task_overrides
from cli.main import main
from cli.process import check_libraries, limit_threads, may_share_cores, suggest_fewer_threads
from cli.resume import merge_resume_config, overrides_to_repeat
from cli.session import CommandError, call
from cli.validation import check_expect
from runs.checkpoint import find_checkpoint, load_checkpoint
from runs.expectations import ExpectationMissed, check_expected, is_checked
from runs.monitor import Monitors, known_modes, names, possible_metrics
from runs.rank import check_group, is_rank_zero, warn_when_waiting
from runs.result import has_diverged
from runs.run import Run, read_run
from runs.safety import refusal
from runs.table import summary_line, summary_table
from runs.threads import spread_threads
from sweeps.callback import link_last_sweep

log = logging.getLogger(__name__)


class Training(NamedTuple):
    """A Trainer with those of its callbacks that the command asks afterwards."""

    trainer: Any
    summary: Any
    history: Any
    signals: Any


def train(*overrides: str) -> Run:
    """Train from Python, in a script or a notebook, what ``python train.py OVERRIDES`` trains.

        run = train("experiment=mnist_cnn", "trainer.max_epochs=1")
        run.result, run.metrics, run.figures, run.directory

    Raises:
        CommandError, KeyboardInterrupt: see :func:`call`.
    """
    directory, _ = call(train_config, overrides)
    try:
        return read_run(directory)
    except (OSError, ValueError) as error:  # of a run that had ended before, and may come from anyone
        raise CommandError(str(error)) from None


def train_config(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """Train and test what ``cfg`` describes, write everything to ``run_dir`` and return its result.json."""
    from callbacks import write_errors
    from loggers.guarded import begin_loggers

    cfg.choices.overrides = task_overrides()
    ckpt_path = find_checkpoint(cfg.resume)[1] if cfg.resume else None
    if ckpt_path:
        cfg = merge_resume_config(cfg, ckpt_path)
    cfg.name = str(cfg.name)  # it may look like a number
    datamodule, model = build(cfg)
    if is_range_test():
        if cfg.check:
            raise ValueError("check=true compares figures, and debug=lr measures none")
        return scan_learning_rates(cfg, run_dir, datamodule, model)
    config = resolve_config(cfg, datamodule)
    if cfg.get("compile"):
        compile_net(model)
    training = make_trainer(cfg, config, run_dir, datamodule, model)
    trainer, summary, history, signals = training
    set_up_data(trainer, datamodule, model, ckpt_path)
    check_run(cfg, trainer, model)
    if cfg.threads is None:
        limit_threads(model, datamodule)
        if trainer.strategy.root_device.type == "cpu" and trainer.world_size == 1:
            suggest_fewer_threads()
    if reason := refusal(config):
        if ckpt_path:  # a checkpoint that can be used would be replaced
            raise ValueError(f"resume: the checkpoints of this run would be refused then: {reason}")
        log.warning("this run cannot be resumed, evaluated or exported: its checkpoints are refused: %s", reason)
    begin_loggers(trainer.loggers)
    summary.write_config(update_last=is_rank_zero() and not is_debug_run())
    if is_multirun():
        link_last_sweep(Path(HydraConfig.get().sweep.dir))

    status, code = "failed", 1
    try:
        with signals, spread_threads(trainer.world_size == 1, may_share_cores(model, datamodule)):
            fit_and_test(cfg, training, datamodule, model, ckpt_path)
        if not write_errors(trainer):
            status = "diverged" if has_diverged(history.rows, summary.result["metrics"]) else "finished"
            code = 0
    except Exception as error:
        status = getattr(error, "status", "diverged" if isinstance(error, FloatingPointError) else status)
        code = exit_code(error)
        raise
    finally:
        result = summary.write_result(status, exit_code=code)
        summary.end_loggers(trainer)
    if is_rank_zero():
        try:
            result = report(cfg, config, result, summary, history)
        except ExpectationMissed as error:
            summary.write_result(status, exit_code=error.exit_code)
            raise
    if errors := write_errors(trainer):
        raise OSError(f"the training has ended, but not everything could be written: {'; '.join(map(str, errors))}")
    return result


def resolve_config(cfg: DictConfig, datamodule: Any) -> dict[str, Any]:
    """Return the config as the plain values that every checkpoint holds."""
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config["data"] |= datamodule.fitted_config()  # not resolved: names in files may look like interpolations
    return config


def compile_net(model: Any) -> None:
    """Compile the net of a model in place, so that the names of its weights stay."""
    if not hasattr(model, "net"):
        raise ValueError(f"compile=true compiles the net of a model, and {type(model).__name__} has no attribute net")
    check_libraries()
    model.net.compile()


def make_trainer(cfg: DictConfig, config: dict[str, Any], run_dir: Path, datamodule: Any, model: Any) -> Training:
    """Return the Trainer of a run with its callbacks and loggers."""
    # Imported here, so that --help and a mistyped name are answered at once.
    from hydra.utils import instantiate
    from lightning.pytorch.callbacks import ProgressBar

    from callbacks.checkpoints import Checkpoints
    from callbacks.epoch_metrics import EpochMetrics
    from callbacks.metrics_history import MetricsHistory
    from callbacks.run_summary import RunSummary
    from callbacks.signal_handler import SignalHandler
    from loggers.profiler import NoProfiler
    from loggers.silent import Silent
    from runs.checkpoint_io import AtomicCheckpointIO

    compared_overrides = relevant_overrides(cfg.choices.overrides)
    summary = RunSummary(run_dir, config, getattr(datamodule, "md5", None), compared_overrides)
    metrics = build_metrics(cfg, datamodule)
    monitors = Monitors(cfg.get("monitor"), cfg.get("mode"), model, known_modes(metrics))
    history = MetricsHistory(run_dir, monitors, cfg.record.every_n_batches)
    checkpoints = Checkpoints(run_dir / "checkpoints", config, cfg.checkpoint.every_n_steps)
    signals = SignalHandler(checkpoints.last, overrides_to_repeat(cfg))
    chosen = build_callbacks(cfg.callbacks)
    bars = [callback for callback in chosen if isinstance(callback, ProgressBar)]
    has_bar = cfg.trainer.get("enable_progress_bar", bool(bars))
    for bar in bars[:-1] if has_bar else bars:  # one that was added takes the place of the one in conf/
        chosen.remove(bar)
    chosen_loggers = [cfg.logger] if "_target_" in cfg.logger else [one for one in cfg.logger.values() if one]
    loggers = [instantiate(one, save_dir=str(run_dir)) if is_rank_zero() else Silent() for one in chosen_loggers]
    trainer = instantiate(
        cfg.trainer,
        default_root_dir=str(run_dir),
        callbacks=[history, EpochMetrics(metrics), *chosen, summary, checkpoints, signals],
        logger=loggers or (Silent() if is_debug_run() else False),
        plugins=[AtomicCheckpointIO()],
        profiler=cfg.trainer.profiler or NoProfiler(),
        enable_progress_bar=has_bar,
    )
    check_group(trainer.global_rank, trainer.world_size, trainer.local_rank, trainer.num_devices)
    return Training(trainer, summary, history, signals)


def scan_learning_rates(cfg: DictConfig, run_dir: Path, datamodule: Any, model: Any) -> dict[str, Any]:
    """Draw the loss over a rising learning rate, and propose a rate. Nothing else is written."""
    from hydra.utils import instantiate

    from callbacks.lr_range_test import LRRangeTest
    from plots.figure import to_pixels
    from plots.range_test import range_test
    from runs.files import write_png

    if not cfg.choices.optimizer or "lr" not in (cfg.optimizer or {}):
        raise ValueError(f"debug=lr: {type(model).__name__} makes its own optimizers, or has none with optimizer.lr")
    if getattr(model, "steps_per_batch", 1) > 1:  # each step has a rate of its own
        model.steps_per_batch = 1
    rates = LRRangeTest()
    settings = {"max_epochs": 100, "max_steps": -1, "max_time": None, "limit_val_batches": 0, "profiler": None}
    trainer = instantiate(
        cfg.trainer, **settings, default_root_dir=str(run_dir), callbacks=[rates], logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    set_up_data(trainer, datamodule, model, None)
    if callable(check := getattr(model, "check_trainer", None)):
        check(trainer)
    with contextlib.suppress(FloatingPointError):  # of the last rate
        trainer.fit(model, datamodule=datamodule)
    suggested = rates.suggestion()
    if is_rank_zero():
        if rates.losses:
            picture = run_dir / "pictures" / "learning_rate.png"
            write_png(picture, to_pixels(range_test(rates.rates, rates.losses, suggested)))
            log.info("the loss over the learning rate: %s", os.path.relpath(picture))
        if suggested is None:
            log.warning("debug=lr: the loss falls at no rate, so none is proposed")
        else:
            log.info("a rate to begin with, where the loss falls most steeply: optimizer.lr=%g", suggested)
    return {"status": "finished", "metrics": {}}


def set_up_data(trainer: Any, datamodule: Any, model: Any, ckpt_path: Path | None) -> None:
    """Load the data and the stored weights. This reports what is wrong with them before the run writes anything."""
    from runs.checkpoint_io import check_slurm_checkpoints

    check_slurm_checkpoints(trainer)
    datamodule.trainer, trainer.datamodule = trainer, datamodule  # for its device and ranks, and for what is checked
    datamodule.setup()
    checkpoint = load_checkpoint(ckpt_path) if ckpt_path else {}
    datamodule.load_state_dict(checkpoint.get(type(datamodule).__qualname__, {}))
    if ckpt_path:
        load_weights(model, checkpoint, ckpt_path, is_complete=False)


def check_run(cfg: DictConfig, trainer: Any, model: Any) -> None:
    """Report what the model and the callbacks cannot do, before the run writes anything."""
    from lightning.pytorch.utilities.model_helpers import is_overridden

    name, parts = type(model).__name__, (model, *trainer.callbacks)
    check_expect(cfg)
    if cfg.check and not any(map(is_checked, (cfg.expect or {}).values())):
        raise ValueError("check=true compares a run with what its experiment expects, and nothing is expected here")
    if cfg.check and (possible := possible_metrics(parts)) is not None:
        # Those without a stage, such as the weights of a line, are no metrics.
        unknown = [
            one
            for one, how in cfg.expect.items()
            if "/" in one and not how.get("if_measured") and not {one, one.rpartition("/")[0]} & possible
        ]
        if unknown and not incomparable_overrides(cfg):
            raise ValueError(f"check=true: {name} cannot reach {unknown[0]}, it measures {names(possible)}")
    if missing := [hook for hook in ("training_step", "configure_optimizers") if not is_overridden(hook, model)]:
        raise ValueError(f"{name} has no {missing[0]}, which a training needs")
    if callable(check := getattr(model, "check_trainer", None)):
        check(trainer)
    for setting, unused in (("gradient_clip_val", (None, 0)), ("accumulate_grad_batches", (1,))):
        if (value := getattr(trainer, setting)) not in unused and not model.automatic_optimization:
            raise ValueError(
                f"trainer.{setting}={value} is for automatic optimization, and {name} makes its own gradient steps"
            )
    start = OmegaConf.select(cfg, "callbacks.swa.swa_epoch_start")  # it averages the weights with which epochs begin
    first_epoch = int(start * trainer.max_epochs) if isinstance(start, float) else start
    if first_epoch is not None and first_epoch < 2:
        log.warning("callbacks.swa averages the untrained weights too; callbacks.swa.swa_epoch_start=2 does not")
    for callback in trainer.callbacks:
        if callable(check := getattr(callback, "check_run", None)):
            check(trainer, model)


def fit_and_test(cfg: DictConfig, training: Training, datamodule: Any, model: Any, ckpt_path: Path | None) -> None:
    """Train from the start or from a checkpoint, and test the final weights, or the best with checkpoint.tested.

    The result has the validation of the weights that are tested.
    """
    from callbacks import has_step

    trainer = training.trainer
    with warn_when_waiting(trainer.world_size):
        if cfg.validate_before_training and not ckpt_path and has_step(model, "val"):
            trainer.validate(model, datamodule=datamodule, verbose=False)
        trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    if has_step(model, "test"):
        best = Path(trainer.default_root_dir, "checkpoints", "best.ckpt")
        if cfg.checkpoint.get("tested") == "best" and best.is_file():
            checkpoint = load_checkpoint(best)
            model.load_state_dict(checkpoint["state_dict"])
            training.summary.result["metrics"] |= training.history.validation(checkpoint["epoch"] + 1)
        trainer.test(model, datamodule=datamodule, verbose=False)


def report(
    cfg: DictConfig, config: dict[str, Any], result: dict[str, Any], summary: Any, history: Any
) -> dict[str, Any]:
    """Print the result of a run beside what its experiment expects, and return the result.

    Raises:
        ExpectationMissed: the result is not the expected one, with ``check=true``.
    """
    comparisons = check_expected(config["expect"] or {}, result["metrics"], history.rows, result["epochs"])
    ignore = ["trainer.max_epochs"] if any(c.fits_epochs for c in comparisons) else []
    changed = incomparable_overrides(cfg, *ignore) if comparisons else []
    table = summary_table(result, summary.run_dir, comparisons, changed)
    log.info(summary_line(result) if is_multirun() else f"\n{table}")
    missed = [comparison.metric for comparison in comparisons if not comparison.passed]
    if comparisons and not changed:
        published = {one.metric: one.published for one in comparisons if one.published is not None}
        checked = {"as_expected": not missed} if any(one.expected for one in comparisons) else {}
        result = summary.write_result(result["status"], published=published, **checked)
        if cfg.check and (unknown := [comparison.metric for comparison in comparisons if comparison.got is None]):
            raise ExpectationMissed(f"{cfg.name} did not measure {unknown[0]}; there are {names(result['metrics'])}")
        if cfg.check and missed:
            raise ExpectationMissed(f"{cfg.name} did not reach the expected {', '.join(missed)}")
    elif cfg.check:
        reason = f"because of these overrides: {', '.join(changed)}" if changed else "after another number of epochs"
        raise ExpectationMissed(f"{cfg.name} was not compared with what it expects, {reason}")
    return result


if __name__ == "__main__":
    main(train_config)
