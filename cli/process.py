"""Set up the process: imports, the seed, threads, freed memory, and the command that starts the other ranks."""

import contextlib
import ctypes
import functools
import itertools
import logging
import os
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import read_write

from cli import CONF, PROJECT
from runs.format import check_positive_int
from runs.gpus import take_gpus, visible_gpus
from runs.overrides import quote_value
from runs.threads import TINY_BATCH, choose_wait_policy, fewer_threads, start_thread_pool

log = logging.getLogger(__name__)

# Where the dynamic loader looks for a library besides a directory itself.
LOADER_DIRS = ("glibc-hwcaps", "tls", "x86_64", "haswell", "xeon_phi", "avx512_1", "aarch64", "atomics")
MAX_THREADS = 1024  # torch ends the process with a segmentation fault where the system has no more
# Multiplications in a layer for which one thread is faster than two: the second takes longer to wake than it saves.
SMALL_LAYER = 2**20
LIGHTNING_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric")
# Those of the tables of trainer.profiler and enable_model_summary.
LIGHTNING_TABLES = ("lightning.pytorch.profilers", "lightning.pytorch.callbacks.model_summary")


class ImportElsewhere(MetaPathFinder):
    """Imports torch and matplotlib while another directory is the working directory, which may be a run from anyone.

    Matplotlib reads a ``matplotlibrc`` there, which can start LaTeX, and whose ``axes.prop_cycle`` version 3.10
    evaluates. A library of NVIDIA's that torch loads (cusparseLt) looks there for ``libcuda.so.1``. Before torch, which
    loads OpenMP, the time is for choosing how its threads wait.
    """

    @classmethod
    def install(cls) -> None:
        if not any(isinstance(finder, cls) for finder in sys.meta_path):
            sys.meta_path.insert(0, cls())

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in ("torch", "matplotlib"):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def execute_elsewhere(module: Any) -> None:
                if name == "torch":
                    choose_wait_policy()
                with contextlib.chdir(CONF):
                    execute(module)

            spec.loader.exec_module = execute_elsewhere  # type: ignore[method-assign]
        return spec


def check_libraries() -> None:
    """Raise ValueError where a compiler would use libraries of the working directory, which may be a run from anyone.

    For a GPU torch.compile runs a linker there, which takes a ``libgcc_s.so.1`` for the system's, and processes that
    import torch and so load a ``libcuda.so.1``.
    """
    found = (file for name in LOADER_DIRS for file in Path(name).rglob("lib*.so*"))
    if library := next(itertools.chain(Path().glob("lib*.so*"), found), None):
        raise ValueError(f"compile=true: a compiler may use {library} in this directory: start in another one")


def take_job_gpus(trainer: Any) -> None:
    """Give a job, which a launcher runs beside others on this machine, GPUs of its own.

    Args:
        trainer: the settings of its Trainer.
    """
    launcher = HydraConfig.get().runtime.choices.get("hydra/launcher")
    if launcher not in ("joblib", "submitit_local") or trainer.get("accelerator") not in ("auto", "gpu", "cuda"):
        return
    import torch

    if not (gpus := visible_gpus(torch.cuda.device_count())):  # it does not start CUDA
        return
    devices = trainer.get("devices")
    if isinstance(devices, bool) or not isinstance(devices, int) or not 1 <= devices <= len(gpus):
        raise ValueError(
            f"trainer.devices={devices}: a job beside others takes a number of GPUs, here 1 to {len(gpus)}"
        )
    log.info("GPUs %s of %s", ",".join(take_gpus(devices, gpus)), ",".join(gpus))


def seed_and_set_threads(seed: int, threads: int | None) -> None:
    """Seed all random numbers, set the number of CPU threads, and let Lightning log warnings and reports only."""
    import lightning.pytorch as pl
    import torch

    _keep_freed_memory()
    for name in LIGHTNING_LOGGERS:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in LIGHTNING_TABLES:
        logging.getLogger(name).setLevel(logging.INFO)
    default = _default_threads()
    if threads is not None:
        check_positive_int("threads", threads)
        if threads > MAX_THREADS:
            raise ValueError(f"threads={threads} must be at most {MAX_THREADS}")
    torch.set_num_threads(threads or default)
    start_thread_pool()
    pl.seed_everything(seed, workers=True, verbose=False)


def limit_threads(model: Any, datamodule: Any) -> None:
    """Use one thread for a net whose layers are small, given the number of examples in a batch.

    Of a net whose layers are built later, in ``configure_model``, nothing is known.
    """
    import torch

    sizes = [parameter.numel() for parameter in model.parameters()]
    rows = datamodule.batch_size or len(datamodule.train_indices)
    if sizes and not _is_convolutional(model) and rows * max(sizes) < SMALL_LAYER:
        torch.set_num_threads(1)


def may_share_cores(model: Any, datamodule: Any) -> bool:
    """Return whether threads may wait for each other on one core. In oneDNN's convolutions they wait in busy loops."""
    return not _is_convolutional(model) or (datamodule.batch_size or TINY_BATCH + 1) <= TINY_BATCH


def _is_convolutional(model: Any) -> bool:
    return any(parameter.dim() > 2 for parameter in model.parameters())


@functools.cache  # once for all jobs of a sweep
def suggest_fewer_threads() -> None:
    """Log a line if other programs keep cores busy that the threads of this process compute on."""
    if line := fewer_threads():
        log.info(line)


@functools.cache
def _keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of returning them to the kernel.

    The kernel clears returned pages anew in every step, and a step with activations of some megabytes then takes up to
    1.4 times as long. Whether glibc returns them differs from process to process.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None:
        mmap_threshold, trim_threshold = -3, -1  # malloc.h
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


@functools.cache
def _default_threads() -> int:
    """Return torch's own number of threads, so that a job of a sweep does not inherit that of the job before."""
    import torch

    return torch.get_num_threads()


@contextlib.contextmanager
def single_job_argv(resume: str | None) -> Iterator[None]:
    """Make ``sys.argv`` the command of one job of a sweep while it runs.

    Lightning starts the other ranks of a run with ``sys.argv``, which would be the whole sweep again. Afterwards this
    destroys the process group and removes the environment variables that Lightning set for the job.
    """
    arguments, environment = sys.argv, dict(os.environ)
    resume_override = [f"resume={quote_value(resume)}"] if resume else []
    sys.argv = [str(PROJECT / "train.py"), *HydraConfig.get().overrides.task, *resume_override]
    sys.modules["__main__"].__spec__ = None  # in a process of joblib or submitit Lightning would start theirs
    hydra_cfg: Any = HydraConfig.get()
    with read_write(hydra_cfg):
        hydra_cfg.run.dir = "."  # Lightning passes it to the other ranks, which have directories of their own
    try:
        yield
    finally:
        sys.argv = arguments
        for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
            if name not in environment:
                os.environ.pop(name, None)
        leave_process_group()


def leave_process_group() -> None:
    """Destroy the process group of a run that has ended, so that the next one may have another."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_initialized():
        distributed.destroy_process_group()
