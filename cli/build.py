"""Build the datamodule and the model of a config, and load those of a finished run."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cli.compose import data_root
from cli.process import seed_and_set_threads
from runs.checkpoint import find_checkpoint, load_checkpoint


def build(cfg: DictConfig) -> tuple[Any, Any]:
    """Return the datamodule and the LightningModule of a config, seeded. The datamodule gives the net its shapes."""
    # Imported here, so that --help and a mistyped name are answered at once.
    from hydra.utils import instantiate

    seed_and_set_threads(cfg.seed, cfg.threads)
    datamodule = instantiate(cfg.data)
    net = instantiate(cfg.model.net, input_shape=datamodule.shape, num_classes=datamodule.num_classes)
    optimizer, scheduler = instantiate(cfg.optimizer), instantiate(cfg.scheduler) or None
    model = instantiate(cfg.model, net=net, optimizer=optimizer, scheduler=scheduler)
    model.check_targets(bool(datamodule.class_names))
    return datamodule, model


def load_run(run: str, checkpoint: str) -> tuple[DictConfig, Any, Any]:
    """Return the config, the datamodule and the trained module of a run, from its checkpoint alone."""
    stored = load_checkpoint(find_checkpoint(run, checkpoint)[1])
    cfg = stored_config(stored)
    datamodule, model = build(cfg)
    model.load_state_dict(stored["state_dict"])
    return cfg, datamodule, model.eval()


def stored_config(checkpoint: dict[str, Any]) -> DictConfig:
    """Return the config in a checkpoint, with the data root of this machine where the stored one does not exist."""
    cfg = OmegaConf.create(checkpoint["config"])
    if "weights" in cfg.model:
        cfg.model.weights = None  # the initial weights; the trained ones are in the checkpoint
    published = "root" in cfg.data and "image" not in cfg.data
    if published and not _holds_data(Path(str(cfg.data.root))):
        cfg.data.root = data_root()
    return cfg


def _holds_data(root: Path) -> bool:
    """Return whether a directory holds data sets. Nothing is downloaded to another one that a checkpoint names."""
    return any(next(root.glob(pattern), None) for pattern in ("*.pt", "*MNIST*", "cifar*"))
