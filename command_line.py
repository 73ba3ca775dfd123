"""From what was typed to a config and a folder for the run, and from an error to one line and an exit code.

Imports nothing heavy: a mistake is answered before torch is loaded.
"""

import ctypes
import difflib
import functools
import itertools
import json
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

import runs
from callbacks.files import replacing

PROJECT = Path(__file__).parent
log = logging.getLogger(__name__)


def run(task: Callable[[DictConfig, Path], object], config: str = "config") -> None:
    """Runs ``task(cfg, folder)`` for the command line, under Hydra. Ends the process with an exit code.

    Args:
        task: takes the config and the folder of the run.
        config: the main file in ``conf/``.
    """
    register_resolvers()
    whole_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"

    main_file = PROJECT / "conf" / config
    if main_file.parent.name == "scripts":
        # The groups of conf/ are not beside them (data=test is none of those), but what conf/hydra holds is for all.
        for file in (PROJECT / "conf").glob("hydra/*/*.yaml"):
            ConfigStore.instance().store(file.stem, OmegaConf.load(file), group=f"hydra/{file.parent.name}")

    failures: list[BaseException] = []

    @hydra.main(version_base="1.3", config_path=str(main_file.parent), config_name=main_file.name)
    def main(cfg: DictConfig) -> object:
        os.environ["HYDRA_FULL_ERROR"] = str(int(whole_traceback))  # what child processes are to see
        logging.captureWarnings(True)  # into the run's log
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            if missing := OmegaConf.missing_keys(cfg):
                raise ValueError(f"say {', '.join(f'{key}=…' for key in missing)}: without it nothing can be done")
            return task(cfg, folder)
        except BaseException as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN and getattr(error, "exit_code", 1) < 128:
                note_failure(folder, error)  # and the other jobs of the sweep still run
                failures.append(error)
                return say(error, whole_traceback)
            discard_if_unused(folder)
            leave(error, whole_traceback)
        finally:
            os.environ["HYDRA_FULL_ERROR"] = "1"

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        leave(error, whole_traceback)
    if failures:
        sys.exit(1)


def compose(*overrides: str) -> DictConfig:
    """The config that ``python train.py OVERRIDES`` works with, for programs that call ``train`` themselves."""
    register_resolvers()
    with hydra.initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        cfg = hydra.compose("config", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return cfg


def settle(seed: int, threads: int | None) -> None:
    """What is of the whole process: the seed, the threads, and a Lightning that speaks up for warnings only."""
    import lightning.pytorch as pl
    import torch

    _keep_freed_memory()
    logging.getLogger("lightning").handlers.clear()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    default = _default_threads()
    torch.set_num_threads(threads or default)
    pl.seed_everything(seed, workers=True, verbose=False)


@functools.cache
def _keep_freed_memory() -> None:
    """glibc may return large freed blocks to the kernel, which clears their pages anew in every step: then a step with
    activations of some megabytes takes up to 1.4 times as long. Whether it does is chance, from process to process."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None:
        mmap_threshold, trim_threshold = -3, -1  # malloc.h
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


@functools.cache
def _default_threads() -> int:
    """As torch has it before anybody changes it: a job of a sweep does not inherit those of the job before."""
    import torch

    return torch.get_num_threads()


# --- the folder of a run -----------------------------------------------------------------------------------------


def register_resolvers() -> None:
    """The functions that conf/ calls."""
    OmegaConf.register_new_resolver("run_folder", run_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("new_folder", new_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver(
        "run_name", lambda experiment, data, model: experiment or f"{data}_{model}", replace=True
    )
    OmegaConf.register_new_resolver("run_title", run_title, replace=True)
    OmegaConf.register_new_resolver("data_root", runs.data_root, replace=True)
    OmegaConf.register_new_resolver("folder_of", lambda run: str(runs.find(run)[0]), replace=True)


def run_folder(resume: str | None, name: str) -> str:
    """The folder of the run that goes on, or a new one."""
    return str(runs.find(resume)[0]) if resume else new_folder(name)


def new_folder(name: str) -> str:
    """Makes the folder ``name``, or ``name-2`` … when it is taken, and says which: never one for two runs."""
    for number in itertools.count(1):
        folder = name if number == 1 else f"{name}-{number}"
        try:
            os.makedirs(folder)
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def point_last_at(folder: Path) -> None:
    """Lets ``outputs/last`` be the run in ``folder``."""
    last = Path("outputs", "last")
    last.parent.mkdir(exist_ok=True)
    temporary = last.with_name(f".last.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(folder.resolve(), last.parent.resolve()), target_is_directory=True)
    os.replace(temporary, last)


def typed() -> list[str]:
    """The overrides that were typed for this run, or that make it as a job of a sweep."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


# Settings that do not change what an experiment measures.
HARMLESS = ("experiment", "seed", "check", "expect", "resume", "threads", "name", "logger", "checkpoint", "record")
HARMLESS += ("callbacks.progress", "callbacks.per_class", "callbacks.predicted_labels", "callbacks.pictures")
HARMLESS += ("data.root", "data.eval_batch_size", "trainer.accelerator", "trainer.log_every_n_steps")


def changed(overrides: list[str], may_change: list[str]) -> list[str]:
    """Those of a run's overrides that make it another one than its experiment."""
    harmless = rf"[+~]*({'|'.join(map(re.escape, (*HARMLESS, *may_change)))})[.=]"
    return [override for override in overrides if not re.match(harmless, override)]


def run_title(name: str, overrides: list[str], seed: int) -> str:
    """``mnist_cnn/lr=0.1 seed=2``: what sets a run apart, as a path."""
    in_name = ("experiment", "seed")
    if not any(override.startswith("experiment=") for override in overrides):
        in_name += ("model", "data")
    settings = [override.lstrip("+").partition("=") for override in changed(list(overrides), [])]
    shown = [f"{key.rpartition('.')[2]}={value}" for key, _, value in settings if key not in in_name]
    title = re.sub(r"[^-\w .,=+]", "_", " ".join([*shown, f"seed={seed}"]))
    return f"{name}/{title[:120]}"


def discard_if_unused(folder: Path) -> None:
    """Removes the folder of a run that never started: there is its log in it and nothing else."""
    own_log = folder / f"{HydraConfig.get().job.name}.log"
    if set(folder.iterdir()) - {own_log}:
        return
    for handler in logging.getLogger().handlers:
        handler.close()
    own_log.unlink(missing_ok=True)
    for path in (folder, *folder.parents[:2]):  # outputs/name/date_time
        try:
            path.rmdir()
        except OSError:  # other runs are in it
            break


def note_failure(folder: Path, error: BaseException) -> None:
    """Lets the result.json of a sweep's job say why it failed; a job that never started gets one."""
    file = folder / "result.json"
    result: dict[str, object] = {"command": shlex.join(["python", "train.py", *typed()]), "overrides": typed()}
    result |= {"status": "failed", "metrics": {}}
    if file.exists():
        result = json.loads(file.read_text())
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(result | {"reason": one_line(error)}, indent=1) + "\n")


# --- errors ------------------------------------------------------------------------------------------------------


def leave(error: BaseException, whole_traceback: bool) -> NoReturn:
    """Says what went wrong in one line and ends the process. The exit codes are those of the README."""
    if isinstance(error, SystemExit):
        raise error
    say(error, whole_traceback)
    if again := getattr(error, "again", None):
        print(f"go on with: {again}", file=sys.stderr)
    codes = {FloatingPointError: 4, KeyboardInterrupt: 130}
    sys.exit(codes.get(type(error), getattr(error, "exit_code", 1)))


def say(error: BaseException, whole_traceback: bool) -> None:
    """One line about an error, on stderr."""
    if whole_traceback:
        traceback.print_exception(error)
    print(f"error: {one_line(error)}", file=sys.stderr)


def one_line(error: BaseException) -> str:
    """What went wrong in one line, with the nearest name for one that does not exist."""
    while isinstance(error, (HydraException, OmegaConfBaseException)) and (error.__cause__ or error.__context__):
        if isinstance(error, OverrideParseException):
            break
        error = error.__cause__ or error.__context__
    if isinstance(error, KeyboardInterrupt):
        return "interrupted before there was anything to save"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"there is no {group}={name}{nearest(name, error.options)}; there are {', '.join(error.options)}"
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)) and isinstance(error.parent_node, DictConfig):
        parent, _, key = str(error.full_key).rpartition(".")
        keys = [str(name) for name in error.parent_node if not str(name).startswith("_")]
        name = f"{parent}.{key}" if parent else key
        close = nearest(name, [f"{parent}.{other}" if parent else other for other in keys])
        return f"there is no {name}{close}; {parent or 'the config'} has {', '.join(keys)}"
    text = " ".join(str(error).split())
    if isinstance(error, InstantiationException):
        return text
    known = (ValueError, OSError, RuntimeError, ArithmeticError, HydraException, OmegaConfBaseException)
    speaks = isinstance(error, known) or hasattr(error, "exit_code") or type(error).__module__.startswith("lightning")
    return text if text and speaks else f"{type(error).__name__}: {text}"


def nearest(name: str, options: list[str]) -> str:
    """`` (did you mean X?)``, or nothing when no option is close."""
    match = difflib.get_close_matches(name, options, n=1)
    return f" (did you mean {match[0]}?)" if match else ""
