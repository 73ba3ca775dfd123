"""Train one experiment: compose → seed → instantiate → fit → test → report.

    python train.py model=lenet data=cifar10 trainer.accelerator=gpu

The parts are chosen in conf/, the training procedures are in lit_models/, the data in datamodules/.
"""

import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

import command_line

log = logging.getLogger(__name__)


def train(cfg: DictConfig, folder: Path) -> dict:
    """Trains and tests what ``cfg`` describes, writes everything to ``folder`` and returns its result.json."""
    # Here and not above, so that --help and a mistyped name are answered at once.
    import lightning.pytorch as pl
    from hydra.utils import instantiate

    from callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
    from callbacks.expect import ExpectationMissed, compare
    from callbacks.record import Record
    from callbacks.report import Report, has_diverged, table

    # The run's own lines say it; warnings still come through.
    logging.getLogger("lightning").handlers.clear()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

    config = OmegaConf.to_container(cfg, resolve=True)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule = instantiate(cfg.data)
    net = instantiate(cfg.model.net, shape=datamodule.shape, num_classes=datamodule.num_classes)
    optimizer, scheduler = instantiate(cfg.optimizer), instantiate(cfg.scheduler) or None
    model = instantiate(cfg.model, net=net, optimizer=optimizer, scheduler=scheduler)

    facts = {**cfg.chosen, "name": cfg.name, "seed": cfg.seed, **command_line.typed()}
    report = Report(folder, facts | {"data_md5": getattr(datamodule, "md5", None)})
    record = Record(folder, cfg.record.every_n_batches)
    checkpoints = Checkpoints(folder / "checkpoints", config, cfg.checkpoint.every_n_steps)
    trainer = instantiate(
        cfg.trainer,
        default_root_dir=str(folder),
        callbacks=[*instantiate(cfg.callbacks).values(), report, record, checkpoints],
        logger=instantiate(cfg.logger, save_dir=str(folder)) if cfg.logger else False,
        plugins=[AtomicCheckpointIO()],
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    datamodule.setup()  # what is wrong with the data is said before the run leaves anything behind
    OmegaConf.save(config, folder / "config.yaml")
    command_line.point_last_at(folder)

    status = "failed"
    try:
        if cfg.validate_first:
            trainer.validate(model, datamodule=datamodule, verbose=False)
        trainer.fit(model, datamodule=datamodule)
        trainer.test(model, datamodule=datamodule, verbose=False)
        status = "diverged" if has_diverged(record.rows) else "finished"
    except FloatingPointError:
        status = "diverged"
        raise
    finally:
        result = report.write(status)
    comparisons = compare(config["expect"] or {}, result["metrics"], record.rows)
    changed = command_line.changed(cfg.may_change) if comparisons else []
    log.info("\n%s", table(result, folder, comparisons, changed))
    missed = [comparison.metric for comparison in comparisons if not comparison.met]
    if cfg.check and missed and not changed:
        raise ExpectationMissed(f"{cfg.name} did not give the expected {', '.join(missed)}")
    return result


if __name__ == "__main__":
    command_line.run(train)
