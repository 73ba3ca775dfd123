"""Train one experiment: compose → seed → instantiate → fit → test → report.

    python train.py model=lenet data=cifar10 trainer.accelerator=gpu

The parts are chosen in conf/, the training procedures are in lit_models/, the data in datamodules/.
"""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import command_line
import folders
import runs

log = logging.getLogger(__name__)


def build(cfg: DictConfig) -> tuple[Any, Any]:
    """The datamodule and the LightningModule of a config, seeded; the module takes what the datamodule feeds."""
    # Here and not above, so that --help and a mistyped name are answered at once.
    from hydra.utils import instantiate

    command_line.settle(cfg.seed, cfg.threads)
    datamodule = instantiate(cfg.data)
    net = instantiate(cfg.model.net, shape=datamodule.shape, num_classes=datamodule.num_classes)
    optimizer, scheduler = instantiate(cfg.optimizer), instantiate(cfg.scheduler) or None
    model = instantiate(cfg.model, net=net, optimizer=optimizer, scheduler=scheduler)
    model.check_targets(bool(datamodule.class_names))
    return datamodule, model


def train(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Trains and tests what ``cfg`` describes, writes everything to ``folder`` and returns its result.json."""
    from hydra.utils import instantiate

    from callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
    from callbacks.expect import ExpectationMissed, compare
    from callbacks.interrupts import Interrupts
    from callbacks.profiling import NoProfiler
    from callbacks.record import Record
    from callbacks.report import Report, has_diverged, line, table

    first = not folders.helps()  # of the processes of this run: it alone writes and speaks
    cfg.chosen.overrides = folders.typed()
    if go_on := runs.find(cfg.resume)[1] if cfg.resume else None:
        cfg = runs.resumed(cfg, go_on)
    datamodule, model = build(cfg)
    if cfg.get("compile"):
        model.net.compile()  # in place, so the names of its weights stay
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config["data"] |= datamodule.fitted_config()  # after that, for nothing that files hold is to be resolved
    report = Report(folder, config, getattr(datamodule, "md5", None), command_line.changed(cfg.chosen.overrides, []))
    record = Record(folder, cfg.record.every_n_batches)
    checkpoints = Checkpoints(folder / "checkpoints", config, cfg.checkpoint.every_n_steps)
    interrupts = Interrupts(checkpoints.last)
    trainer = instantiate(
        cfg.trainer,
        default_root_dir=str(folder),
        callbacks=[*filter(None, instantiate(cfg.callbacks).values()), report, record, checkpoints, interrupts],
        logger=instantiate(cfg.logger, save_dir=str(folder)) if cfg.logger and first else False,
        plugins=[AtomicCheckpointIO()],
        profiler=cfg.trainer.profiler or NoProfiler(),
    )
    datamodule.trainer = trainer  # whose processes share the examples
    datamodule.setup()  # what is wrong with the data is said before the run leaves anything behind
    datamodule.load_state_dict(runs.load(go_on).get(type(datamodule).__qualname__, {}) if go_on else {})
    report.begin(newest=first and not folders.quick_look())

    status = "failed"
    try:
        with interrupts:
            if cfg.validate_first and not go_on:
                trainer.validate(model, datamodule=datamodule, verbose=False)
            trainer.fit(model, datamodule=datamodule, ckpt_path=go_on, weights_only=True)
            trainer.test(model, datamodule=datamodule, verbose=False)
        status = "diverged" if has_diverged(record.rows) else "finished"
    except Exception as error:
        status = getattr(error, "status", "diverged" if isinstance(error, FloatingPointError) else status)
        raise
    finally:
        result = report.write(status)
    if not first:
        return result
    comparisons = compare(config["expect"] or {}, result["metrics"], record.rows, result["epochs"])
    may_change = [*cfg.may_change, *(["trainer.max_epochs"] if any(c.fits_epochs for c in comparisons) else [])]
    changed = command_line.changed(result["overrides"], may_change) if comparisons else []
    log.info(line(result) if folders.in_sweep() else f"\n{table(result, folder, comparisons, changed)}")
    missed = [comparison.metric for comparison in comparisons if not comparison.met]
    if comparisons and not changed:
        result = report.write(status, as_expected=not missed)
        if cfg.check and missed:
            raise ExpectationMissed(f"{cfg.name} did not give the expected {', '.join(missed)}")
    return result


if __name__ == "__main__":
    command_line.run(train)
