"""A grid sweeper that replaces Hydra's and composes the config of each job only once.

Hydra's own (hydra._internal.core_plugins.basic_sweeper) composes each of them twice: to check them all before the first
job runs, and to run it. For jobs as short as those of ``experiment=line_scan`` that takes most of the time.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from runs.files import atomic_write, atomic_write_text
from sweeps.callback import SweepSummary
from sweeps.jobs import (
    LEFT,
    REFUSED,
    check_gpus,
    check_kind,
    check_repeated,
    check_subdir,
    check_submitit,
    check_sweep_dir,
    ends_at_failure,
    mark_of_failure,
    removed_if_not_submitted,
)
from sweeps.overrides import parse_overrides
from sweeps.parallel import launch


class GridSweeper(Sweeper):
    """Runs a job for each combination of the given values.

    Args:
        max_batch_size: number of jobs to check and pass to the launcher at once; None is all of them.
        params: overrides that those of the command line replace.
    """

    config: DictConfig
    launcher: Launcher

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None) -> None:
        self.max_batch_size, self.params = max_batch_size, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.loader = cast(ConfigLoader, _CachingLoader(hydra_context.config_loader))
        context = HydraContext(config_loader=self.loader, callbacks=hydra_context.callbacks)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Any]:
        overrides = parse_overrides(self.loader, self.params, arguments)
        jobs = [list(job) for job in itertools.product(*map(_expand, overrides.values()))]
        sweep_dir = Path(self.config.hydra.sweep.dir)
        check_submitit(self.config, sweep_dir)
        sweep_dir.mkdir(parents=True, exist_ok=True)
        check_sweep_dir(sweep_dir)
        check_kind(sweep_dir, is_search=False)
        if overrides.keys() == {"sweep_resume"}:
            check_repeated(sweep_dir)
        fails_fast = ends_at_failure(self.config)
        size, returns = self.max_batch_size or len(jobs), []
        with contextlib.ExitStack() as begun:
            for start in range(0, len(jobs), size):
                batch = jobs[start : start + size]
                for job in {tuple(job): job for job in batch}.values():  # a repeated job would take its config back
                    config = self.loader.load_sweep_config(self.config, job)  # an error comes before the first job runs
                    check_subdir(config, sweep_dir)
                    if len(jobs) > 1:
                        check_gpus(config, len(jobs))
                if not start:
                    if fails_fast:
                        begun.enter_context(mark_of_failure(sweep_dir))
                    begun.enter_context(_multirun_yaml(self.config, sweep_dir))
                    begun.enter_context(removed_if_not_submitted(self.config))
                returns.append(launch(self.launcher, batch, start))
                for job_return in returns[-1]:
                    result = job_return.return_value  # raises the exception of the job
                    status = result.get("status") if isinstance(result, dict) else None
                    SweepSummary.left += status == LEFT
                    SweepSummary.complete &= status not in ("failed", REFUSED)
        return returns


@contextlib.contextmanager
def _multirun_yaml(config: DictConfig, sweep_dir: Path) -> Iterator[None]:
    """Write ``multirun.yaml``, by which a sweep is recognized. A resumed sweep keeps it: it tells how the sweep began.

    After an error it is removed, if it is still the file of this process, and nothing else was made beside it.
    """
    before, file, made = set(os.listdir(sweep_dir)), sweep_dir / "multirun.yaml", None
    if file.name in before:  # written anew, so that a command that has made it, and is refused, does not remove it
        atomic_write_text(file, file.read_text(encoding="utf-8"))
    else:
        with contextlib.suppress(ValueError), atomic_write(file, overwrite=False) as temporary:
            OmegaConf.save(config, temporary)
            made = os.stat(temporary)  # if another process makes the file at the same time, that one is kept
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            now = file.stat()  # the number of a file that was removed may be that of the next one
            is_ours = made and (now.st_ino, now.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
            if is_ours and set(os.listdir(sweep_dir)) - before <= {file.name}:
                file.unlink()
        raise


def _expand(override: Override) -> list[str]:
    """Return ``KEY=VALUE`` for each value of an override."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise ValueError(f"{override.input_line}: an interval is for a search: add hydra/sweeper=optuna")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


class _CachingLoader:
    """A config loader that keeps each config it composes until it is requested a second time."""

    MAX_CONFIGS = 1000  # kept at once; each takes 0.13 MB

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._kept: dict[tuple[str, ...], DictConfig] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __reduce__(self) -> tuple[Any, ...]:  # a pickled loader leaves the configs behind
        return type(self), (self._loader,)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        key = tuple(sweep_overrides)
        if key in self._kept:
            return self._kept.pop(key)
        config = self._loader.load_sweep_config(master_config, sweep_overrides)
        if len(self._kept) < self.MAX_CONFIGS:
            self._kept[key] = config
        return config


# Replaces Hydra's sweeper of this name.
OPTIONS = {"_target_": f"{__name__}.GridSweeper", "max_batch_size": None, "params": None}
ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=OPTIONS)
