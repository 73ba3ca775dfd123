"""Score a finished run again: rebuild → test → report. Needs nothing but the run.

python evaluate.py run=last split=val
"""

import json
import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import command_line
import runs
from train import build

log = logging.getLogger(__name__)


def rebuild(run: str, checkpoint: str) -> tuple[DictConfig, Any, Any]:
    """The config, the datamodule and the trained module of a run, from its checkpoint alone."""
    file = runs.find(run, checkpoint)[1]
    stored = runs.load(file)
    cfg = runs.own_config(stored)
    datamodule, model = build(cfg)
    model.load_state_dict(stored["state_dict"])
    return cfg, datamodule, model.eval()


def evaluate(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Scores ``cfg.checkpoint`` of ``cfg.run`` on ``cfg.split``; writes ``evaluations/SPLIT_CHECKPOINT.json`` there."""
    if cfg.split not in ("test", "val", "train"):
        raise ValueError(f"split={cfg.split} must be test, val or train")
    stored, datamodule, model = rebuild(cfg.run, cfg.checkpoint)

    import lightning.pytorch as pl

    from callbacks.classes import PerClassAccuracy
    from callbacks.files import replacing
    from callbacks.interrupts import Interrupts
    from callbacks.record import metrics_of, shown

    datamodule.test_split = cfg.split
    trainer = pl.Trainer(
        **cfg.trainer,
        precision=stored.trainer.precision,
        callbacks=[PerClassAccuracy(), interrupts := Interrupts()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    datamodule.setup()
    if not len(datamodule.test_dataloader()):
        raise ValueError(f"split={cfg.split}: this run has no such examples (data.val_size={stored.data.val_size})")
    with interrupts:
        trainer.test(model, datamodule=datamodule, verbose=False)
    metrics = {name.replace("test/", f"{cfg.split}/"): value for name, value in metrics_of(trainer, "test/").items()}

    _, file = runs.find(cfg.run, cfg.checkpoint)
    result = {"checkpoint": str(file), "split": cfg.split, "metrics": metrics}
    with replacing(folder / "evaluations" / f"{cfg.split}_{file.stem}.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    width = max(map(len, metrics))
    overall_first = sorted(metrics, key=lambda name: name.count("/"))
    lines = [f"  {name:<{width}}  {shown(name, metrics[name])}" for name in overall_first]
    log.info("%s of %s\n%s", cfg.split, file, "\n".join(lines))
    return result


if __name__ == "__main__":
    command_line.run(evaluate, "scripts/evaluate")
