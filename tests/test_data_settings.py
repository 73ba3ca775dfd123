"""Settings of data sets that the command line refuses before anything is made."""

from collections.abc import Iterator

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, read_write

from cli import CONF
from cli.compose import register_resolvers
from cli.validation import check_overrides
from datamodules import Separable


@pytest.fixture(scope="module")
def initialized() -> Iterator[None]:
    """Hydra as on the command line, where the defaults are composed too."""
    register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*choices: str) -> DictConfig:
    return hydra.compose("config", list(choices), return_hydra_config=True)


def refusal_of_null(cfg: DictConfig, key: str) -> str | None:
    """Return the line that refuses ``key=null``, or None. Afterwards the config is as before."""
    choices, before = list(cfg.hydra.overrides.task), OmegaConf.select(cfg, key)
    with read_write(cfg.hydra):
        cfg.hydra.overrides.task = [*choices, f"{key}=null"]
        OmegaConf.update(cfg, key, None)
    HydraConfig.instance().set_config(cfg)
    try:
        check_overrides(cfg)
    except ValueError as error:
        return str(error)
    finally:
        with read_write(cfg.hydra):
            cfg.hydra.overrides.task = choices
            OmegaConf.update(cfg, key, before)
    return None


@pytest.mark.parametrize("data", ["csv", "image_folder", "mnist", "one_digit", "readings", "sines", "tabular"])
def test_null_is_refused_where_it_means_nothing(data: str, initialized: None) -> None:
    cfg = composed(f"data={data}")
    required = {name for name in cfg.data if OmegaConf.is_missing(cfg.data, name)}
    for name in cfg.data:
        missing = name in required
        if name == "_target_" or (not missing and cfg.data[name] is None):
            continue
        line = refusal_of_null(cfg, f"data.{name}")
        if name in ("batch_size", "eval_batch_size"):  # all at once
            assert line is None
        elif missing:
            assert line == f"data.{name}=… is required, and null is none"
        else:
            assert line is not None
            assert line.startswith(f"data.{name}=null must be ")
            assert "None" not in line


@pytest.mark.parametrize(
    ("key", "choices", "line"),
    [
        ("seed", [], "seed=null must be a whole number of at least 0, such as 1"),
        ("optimizer.lr", [], "optimizer.lr=null must be a number of at least 0, such as 0.003"),
        ("model.loss", [], "model.loss=null must be a mapping"),
        ("model.net", [], "model.net=null must be a mapping"),
        ("optimizer.fused", [], None),
        ("trainer.max_epochs", [], None),
        ("trainer.max_time", [], None),
        ("callbacks.pictures", [], None),
        ("optimizer.line_search_fn", ["optimizer=lbfgs"], None),
        ("model.mean", ["model=vae"], None),
        ("threads", [], None),
    ],
)
def test_null_in_other_settings(key: str, choices: list[str], line: str | None, initialized: None) -> None:
    assert refusal_of_null(composed(*choices), key) == line


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"seed": None}, "data.seed=None must be a whole number"),
        ({"shuffle": None}, "data.shuffle=None must be true or false"),
    ],
)
def test_added_settings_are_checked_by_the_data_set(settings: dict, line: str) -> None:
    """Such as ``+data.shuffle=null``, where the file of a data set has no such setting."""
    with pytest.raises(ValueError, match=line):
        Separable(size=10, **settings)
