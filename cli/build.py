"""Build the datamodule and the model of a config, and load those of a finished run."""

import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cli.compose import data_root
from cli.process import seed_and_set_threads
from runs.checkpoint import find_checkpoint, load_checkpoint
from runs.safety import PRINTING_PROFILERS, check_metric


def build(cfg: DictConfig) -> tuple[Any, Any]:
    """Return the datamodule and the LightningModule of a config, seeded.

    The model's class gets what its constructor has a parameter for: ``net`` and ``teacher``, where its config has one,
    ``optimizer`` and ``scheduler``, which make one from parameters and from an optimizer, and ``input_shape`` and
    ``num_classes`` of the datamodule. The classes of the nets get the last two.

    Raises:
        ValueError: the model is no LightningModule, it makes its own optimizer and one was chosen, or it does not take
            what the datamodule gives.
    """
    seed_and_set_threads(cfg.seed, cfg.threads)
    return _instantiate(cfg)


def _instantiate(cfg: DictConfig) -> tuple[Any, Any]:
    # Imported here, so that --help and a mistyped name are answered at once.
    from hydra.utils import instantiate

    only_read = cfg.data.pop("only_read") if "only_read" in cfg.data else False  # see stored_config()
    datamodule = instantiate(cfg.data)
    if only_read:
        datamodule.only_read = True
    taken = _parameters(model_class(cfg))
    # Passed to the constructors directly: Hydra would make a list of its own class of a shape.
    shapes = {"input_shape": tuple(datamodule.shape), "num_classes": datamodule.num_classes}
    parts: dict[str, Any] = {}
    trained = _choose_teacher(cfg, datamodule) if "teacher" in taken else None
    for name in ("net", "teacher"):
        if OmegaConf.is_config(cfg.model.get(name)):
            of_net = _parameters(_locate(cfg.model[name]._target_))
            make_net = instantiate(cfg.model[name], _partial_=True)
            parts[name] = make_net(**{shape: shapes[shape] for shape in shapes if shape in of_net})
    if trained is not None:
        parts["teacher"].load_state_dict(trained)
    for group in ("optimizer", "scheduler"):
        if group in taken:
            parts[group] = instantiate(cfg[group]) or None
        elif typed := [
            text for text in cfg.choices.overrides if text.lstrip("+~").startswith((f"{group}=", f"{group}."))
        ]:
            raise ValueError(f"{typed[0]}: {cfg.model._target_} makes its own, its constructor takes no {group}")
        else:
            cfg.choices[group] = None  # nothing about the run depends on it
    if weights := {
        name: one for name in ("weight", "pos_weight") if (one := OmegaConf.select(cfg.model, f"loss.{name}"))
    }:
        parts["loss"] = _make_weighted_loss(cfg.model.loss, weights)
    make_model = instantiate(cfg.model, **parts, _partial_=True)
    model = make_model(**{name: shapes[name] for name in shapes if name in taken and name not in cfg.model})
    check_names(model)
    if callable(check := getattr(model, "check_data", None)):
        check(datamodule)
    return datamodule, model


def check_names(model: Any) -> None:
    """Raise ValueError for a layer or weight whose name is no word. torch.export writes the names into code, unquoted.

    The config of a run that comes from anyone may choose them.
    """
    for names in (model.named_modules, model.named_parameters, model.named_buffers):
        for name, _ in names(remove_duplicate=False):
            if not re.fullmatch(r"[\w.-]*", name):
                raise ValueError(f"the model has a part {name[:80]!r}: a name has letters, digits, _ and -")


def _make_weighted_loss(settings: DictConfig, weights: dict[str, Any]) -> Any:
    """Return a loss with the weights of classes, which torch takes as tensors, from lists in its config."""
    import torch
    from hydra.utils import instantiate

    for name, numbers in weights.items():
        if not OmegaConf.is_list(numbers) or not all(type(one) in (int, float) for one in numbers):
            raise ValueError(f"model.loss.{name}={numbers} must be a list of numbers, one for each class")
    keys = [str(key) for key in settings if key not in weights]
    make_loss = instantiate(OmegaConf.masked_copy(settings, keys), _partial_=True)
    return make_loss(**{name: torch.tensor(list(numbers), dtype=torch.float32) for name, numbers in weights.items()})


def _choose_teacher(cfg: DictConfig, datamodule: Any) -> dict[str, Any] | None:
    """Replace the run that ``model.teacher`` names by the config of its net, and return the weights of that net.

    With its config and its weights in the checkpoints, the teacher is built again without its run.

    Raises:
        ValueError: the run has no classifier with a net, or one that learned from other data.
    """
    run = cfg.model.get("teacher")
    if run is None or OmegaConf.is_dict(run):
        return None
    from runs.protocols import Classifies

    stored, data, model = _load_beside(str(run))
    if not (data.class_names and isinstance(model, Classifies) and OmegaConf.is_config(stored.model.get("net"))):
        raise ValueError(f"model.teacher={run} is not the run of a classifier with a net")
    for name in ("data set", "shape", "class_names", "mean", "std"):
        theirs, ours = (getattr(one, name, type(one).__name__) for one in (data, datamodule))
        if theirs != ours:
            raise ValueError(f"model.teacher={run} learned from other data: its {name} is {theirs}, here it is {ours}")
    cfg.model.teacher = stored.model.net
    net: Any = getattr(model, "net", None)
    return net.state_dict()


def build_callbacks(settings: DictConfig) -> list[Any]:
    """Return the callbacks of ``callbacks:`` without those that null takes out.

    Raises:
        ValueError: one has no class.
    """
    from hydra.utils import instantiate

    for name, callback in settings.items():
        if callback is not None and not (OmegaConf.is_dict(callback) and "_target_" in callback):
            raise ValueError(
                f"callbacks.{name!s} must have a _target_, such as lightning.pytorch.callbacks.DeviceStatsMonitor"
            )
    return [callback for callback in instantiate(settings).values() if callback]


def build_metrics(cfg: DictConfig, datamodule: Any) -> dict[str, Any]:
    """Return the metrics of a config by name. One that takes the number of classes gets that of the data.

    Raises:
        ValueError: it is none of torchmetrics.classification or torchmetrics.regression, its name is taken, or it is
            for other targets than those of the data.
    """
    from hydra.utils import instantiate

    metrics, classes = {}, len(datamodule.class_names)
    for name, settings in (cfg.get("metrics") or {}).items():
        if settings is None:  # taken out
            continue
        if not OmegaConf.is_dict(settings) or "_target_" not in settings:
            raise ValueError(
                f"metrics.{name} must have a _target_, such as torchmetrics.classification.MulticlassAUROC"
            )
        if name in ("loss", "acc") or not re.fullmatch(r"[A-Za-z]\w*", str(name)):
            raise ValueError(f"metrics.{name}: a metric has a name of letters, digits and _, but not loss or acc")
        check_metric(str(settings._target_), f"metrics.{name}._target_={settings._target_}")
        if any(OmegaConf.is_config(value) and "_target_" in str(value) for value in settings.values()):
            raise ValueError(f"metrics.{name} takes numbers and words, no object with a _target_ of its own")
        taken = _parameters(_locate(settings._target_))
        kind = settings._target_.split(".")[1]
        if (kind == "classification") != bool(classes):
            takes, gives = ("classes", "numbers") if kind == "classification" else ("numbers", "classes")
            raise ValueError(f"metrics.{name} takes {takes}, and the targets of the data are {gives}")
        if ".Binary" in settings._target_ and classes != 2:
            raise ValueError(f"metrics.{name}={settings._target_} takes two classes, and the data has {classes}")
        if "num_classes" in taken and "num_classes" not in settings:
            settings = OmegaConf.merge({"num_classes": classes}, settings)
        metrics[str(name)] = instantiate(settings)
    return metrics


def model_class(cfg: DictConfig) -> Any:
    """Return the class of the model. Raise ValueError where it is no LightningModule."""
    import lightning.pytorch as pl

    found = _locate(target := cfg.model._target_)
    if not (inspect.isclass(found) and issubclass(found, pl.LightningModule)):
        raise ValueError(f"model._target_={target} is not a LightningModule; a net goes to model.net._target_")
    return found


def _locate(target: str) -> Any:
    """Return what a ``_target_`` names. Hydra's ``get_object`` would log the error as well as raise it."""
    from hydra.utils import instantiate

    return instantiate({"_target_": str(target), "_partial_": True}).func


def _parameters(cls: Any) -> set[str]:
    """Return the names of a constructor's parameters, with those of its bases as long as it passes ``**kwargs`` on."""
    names: set[str] = set()
    for base in inspect.getmro(cls) if inspect.isclass(cls) else (cls,):
        if base.__module__.startswith(("torch.nn.modules.module", "lightning.")):
            break
        if inspect.isclass(base) and "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base).get("__init__", base)).parameters.values()
        names |= {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break
    return names


def load_run(
    run: str,
    checkpoint: str,
    moved: DictConfig | None = None,
    keep_float64: bool = False,
    make: Callable[[DictConfig], tuple[Any, Any]] = build,
) -> tuple[DictConfig, Any, Any]:
    """Return the config, the datamodule and the trained module of a run, from its checkpoint alone.

    Args:
        run: see :func:`find_checkpoint`.
        checkpoint: see :func:`find_checkpoint`.
        moved: the ``data:`` of ``conf/command.yaml``. What is not null there replaces the stored setting.
        keep_float64: do not round the weights of a training in double precision to float32.
        make: makes the datamodule and the module, and by default seeds this process.
    """
    stored = load_checkpoint(file := find_checkpoint(run, checkpoint)[1])
    cfg = stored_config(stored)
    _move_data(cfg.data, moved or {})
    datamodule, model = make(cfg)
    model.configure_model()  # builds layers in some models
    check_names(model)
    if keep_float64 and str(cfg.trainer.precision) in ("64-true", "64"):
        model.double()
    load_weights(model, stored, file)
    return cfg, datamodule, model.eval()


def _move_data(data: DictConfig, moved: Any) -> None:
    """Let the config of a run's data name the files where they are now.

    Raises:
        ValueError: this data set has no such setting.
    """
    for name, place in moved.items():
        if place is None:
            continue
        if name not in data:
            has = [f"data.{one}" for one in moved if one in data]
            raise ValueError(f"data.{name}={place}: the data of this run has {' and '.join(has) or 'no files'}")
        data[name] = str(place)  # the name of a file may look like a number
        if name == "root":
            data.pop("only_read", None)


def load_weights(model: Any, checkpoint: dict[str, Any], file: Path, is_complete: bool = True) -> None:
    """Load the weights in a checkpoint.

    Args:
        model: the module.
        checkpoint: that of ``file``.
        file: for the error.
        is_complete: False for a module of which some layers may be built later.

    Raises:
        ValueError: some are missing, of another shape, or of another model.
    """
    try:
        missing = model.load_state_dict(checkpoint["state_dict"], strict=is_complete).missing_keys
        reason = f"Missing key(s): {', '.join(missing)}" if missing else ""
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).partition(":")[2].split())
    if reason:
        raise ValueError(f"{file}: its weights are not those of the model of its config: {reason[:300]}")


def load_classifier(run: str) -> tuple[Any, Any]:
    """Return the datamodule and the trained module of a run, to judge the images of another one.

    The seed and the threads stay those of the other run.
    """
    return _load_beside(run)[1:]


def _load_beside(run: str) -> tuple[DictConfig, Any, Any]:
    """Return the config, the datamodule and the trained module of a run, and change no random number of this one."""
    import torch

    with torch.random.fork_rng():
        return load_run(run, "last", make=_instantiate)


def stored_config(checkpoint: dict[str, Any]) -> DictConfig:
    """Return the config in a checkpoint, without what would read or write a file that the checkpoint names.

    A published data set is read from the stored data root where that holds the whole of it, and nothing is downloaded,
    written or removed there: ``data.only_read`` says so to :func:`build`. Otherwise the data root is that of this
    machine. From a directory of images only those of the run are read.
    """

    cfg = OmegaConf.create(checkpoint["config"])
    # Without its fitted state a data set is new, and any files of this machine would be taken for it.
    is_fitted = "fitted_state" in _parameters(_locate(cfg.data._target_))
    if is_fitted and cfg.data.get("fitted_state") is None:
        raise ValueError("the checkpoint is damaged: it holds no data.fitted_state, which says what its data was")
    _clear_weights(cfg.model)
    if "teacher" in cfg.model and not OmegaConf.is_dict(cfg.model.teacher):
        cfg.model.teacher = None  # build() puts the teacher's net in place of the run that is typed
    if cfg.trainer.get("profiler") not in (None, *PRINTING_PROFILERS) and not OmegaConf.is_config(cfg.trainer.profiler):
        cfg.trainer.profiler = None
    has_data = getattr(_locate(cfg.data._target_), "has_data", None)  # of a published data set
    cfg.data.pop("only_read", None)
    if is_fitted:
        if "root" in cfg.data:
            cfg.data.only_read = True
    elif has_data:
        root = str(cfg.data.get("root"))
        if os.path.realpath(root) != os.path.realpath(data_root()) and has_data(root):
            cfg.data.only_read = True
        else:
            cfg.data.root = data_root()
    return cfg


def _clear_weights(model: DictConfig) -> None:
    """Name no file of initial weights: the trained ones are in the checkpoint."""
    for key, value in model.items():
        if key == "weights":
            model[key] = None
        elif OmegaConf.is_dict(value):
            _clear_weights(value)
