"""Hydra's own sweeper over a grid, made quick for small jobs."""

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GridSweeper(BasicSweeper):
    """Hydra composes the config of each job twice: to check them all before the first one runs, and to run it. Of a job
    as short as those of ``experiment=line_scan`` that is the larger part, so here it is done once."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        loader: Any = _ComposedOnce(hydra_context.config_loader)
        context = HydraContext(config_loader=loader, callbacks=hydra_context.callbacks)
        super().setup(hydra_context=context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        try:
            return super().sweep(arguments)
        except HydraException as error:
            if "INTERVAL_SWEEP" in str(error):
                raise ValueError("an interval is for a search: add hydra/sweeper=optuna") from error
            raise


class _ComposedOnce:
    """A config loader that hands out a second time what it has composed before."""

    MOST = 200  # configs that it keeps: each takes some hundred kilobytes

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._kept: dict[tuple[str, ...], DictConfig] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __reduce__(self) -> tuple[Any, ...]:  # to another process goes none of what is kept
        return type(self), (self._loader,)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        key = tuple(sweep_overrides)
        if key in self._kept:
            return self._kept.pop(key)
        config = self._loader.load_sweep_config(master_config, sweep_overrides)
        if len(self._kept) < self.MOST:
            self._kept[key] = config
        return config


# It takes the place of Hydra's.
OPTIONS = {"_target_": f"{__name__}.GridSweeper", "max_batch_size": None, "params": None}
ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=OPTIONS)
