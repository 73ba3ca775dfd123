"""From what was typed to a config and a folder for the run, and from an error to one line and an exit code.

Imports nothing heavy: a mistake is answered before torch is loaded.
"""

import atexit
import contextlib
import ctypes
import difflib
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

import runs
from callbacks.files import replacing
from callbacks.sweep import SweepSummary

PROJECT = Path(__file__).parent
log = logging.getLogger(__name__)


def run(task: Callable[[DictConfig, Path], object], config: str = "config") -> NoReturn:
    """Runs ``task(cfg, folder)`` for the command line, under Hydra. Ends the process with an exit code.

    Args:
        task: takes the config and the folder of the run.
        config: the main file in ``conf/``.
    """
    code: int | str | None = 1

    def end() -> None:
        logging.shutdown()
        with contextlib.suppress(OSError):  # nobody reads any more
            sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 1)

    # At its own end Python takes torch down object by object, for the best part of a second. What is registered first
    # is called last: whoever else has something to do at the end has done it.
    atexit.register(end)
    try:
        _run(task, config)
        code = int(SweepSummary.failed > 0)
    except SystemExit as error:
        code = error.code or 0
    sys.exit(code)


def _run(task: Callable[[DictConfig, Path], object], config: str) -> None:
    register_resolvers()
    whole_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1" or "debug=traceback" in sys.argv

    main_file = PROJECT / "conf" / config
    if main_file.parent.name == "scripts":
        # The groups of conf/ are not beside them (data=test is none of those), but what conf/hydra holds is for all.
        for file in (PROJECT / "conf").glob("hydra/*/*.yaml"):
            ConfigStore.instance().store(file.stem, OmegaConf.load(file), group=f"hydra/{file.parent.name}")

    @hydra.main(version_base="1.3", config_path=str(main_file.parent), config_name=main_file.name)
    def main(cfg: DictConfig) -> object:
        os.environ["HYDRA_FULL_ERROR"] = str(int(whole_traceback))  # what child processes are to see
        logging.captureWarnings(True)  # into the run's log
        folder = Path(HydraConfig.get().runtime.output_dir)
        if in_sweep():
            number_lines(HydraConfig.get().job.num)
        try:
            if missing := OmegaConf.missing_keys(cfg):
                raise ValueError(f"say {', '.join(f'{key}=…' for key in missing)}: without it nothing can be done")
            if config != "config":  # a script that asks a run and makes none
                return task(cfg, folder)
            if cfg.sweep_resume and not in_sweep():
                raise ValueError("sweep_resume goes on with a sweep: add -m and what the sweep was started with")
            check_values(cfg)
            with alone_in(folder, wait=in_sweep()):
                return (in_sweep() and take_up(folder, cfg)) or task(cfg, folder)
        except BaseException as error:
            if in_sweep() and isinstance(error, Exception) and getattr(error, "exit_code", 1) < 128:
                result = note_failure(folder, error)  # and the other jobs of the sweep still run
                if result["status"] == "pruned":
                    log.info(error)
                else:
                    say(error, whole_traceback)
                return result
            discard_if_unused(folder)
            if in_sweep():
                error.again = again()
            leave(error, whole_traceback)
        finally:
            os.environ["HYDRA_FULL_ERROR"] = "1"

    # Processes that a launcher starts for jobs find the project too.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        if SweepSummary.folder:
            discard_sweep_if_unused(SweepSummary.folder)
        leave(error, whole_traceback)


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
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads={threads} must be a whole number of at least 1")
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
    OmegaConf.register_new_resolver("sweep_folder", sweep_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
    OmegaConf.register_new_resolver(
        "run_name", lambda experiment, data, model: experiment or f"{data}_{model}", replace=True
    )
    OmegaConf.register_new_resolver("run_title", run_title, replace=True)
    OmegaConf.register_new_resolver("options", options, replace=True)
    OmegaConf.register_new_resolver("data_root", runs.data_root, replace=True)
    OmegaConf.register_new_resolver("folder_of", lambda run: str(runs.find(run)[0]), replace=True)


def options() -> str:
    """What can be chosen, with the first line of each file's header, for ``--help``."""
    groups = "experiment model data optimizer scheduler trainer callbacks logger sweep debug"
    lines = []
    for group in groups.split():
        lines.append(f"  {group}=")
        for file in sorted((PROJECT / "conf" / group).glob("*.yaml")):
            header = (line[2:] for line in file.read_text().splitlines() if line.startswith("# "))
            about = next((text for text in header if not text.startswith(("@package", "python "))), "")
            lines.append(f"    {file.stem:<18} {about}")
    return "\n".join(lines)


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


def sweep_folder(sweep_resume: str | None, name: str) -> str:
    """The folder of the sweep that goes on, or a new one."""
    if sweep_resume is None:
        return new_folder(name)
    folder = Path("outputs/last_sweep" if sweep_resume == "last" else sweep_resume)
    if not folder.is_dir():
        missing = "there is no sweep yet in outputs/" if sweep_resume == "last" else f"{folder} is no folder of a sweep"
        raise FileNotFoundError(f"{missing}; python train.py -m model=mlp,cnn makes one")
    return os.path.relpath(folder.resolve())


def job_folder(sweep: str, number: int, *, _root_: DictConfig) -> str:
    """``3-1f0c9a2b``: the number of a job and what it is, so that the same job finds its folder again."""
    config = {key: _root_._get_node(key) for key in _root_ if key not in ("hydra", "resume", "sweep_resume")}
    plain = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    what = hashlib.blake2b(repr(plain).encode(), digest_size=4).hexdigest()
    return next((path.name for path in Path(sweep).glob(f"*-{what}")), f"{number}-{what}")


@contextlib.contextmanager
def alone_in(folder: Path, wait: bool) -> Iterator[None]:
    """No other run trains in the folder meanwhile; the other processes of this one may."""
    if any(int(os.environ.get(rank) or 0) for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        yield
        return
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=-1 if wait else 0):
            yield
    except Timeout:
        raise ValueError(f"another process is training in {folder}") from None


def take_up(folder: Path, cfg: DictConfig) -> dict | None:
    """What a job of a sweep gave that was done before; lets one that was interrupted go on."""
    result = json.loads((folder / "result.json").read_text()) if (folder / "result.json").exists() else {}
    if result.get("status") in ("finished", "diverged", "pruned"):
        log.info("%s: done before", " ".join(typed()))
        return result
    log.info(" ".join(typed()))
    if (folder / "checkpoints" / "last.ckpt").exists():
        cfg.resume = str(folder)
    return None


def number_lines(number: int) -> None:
    """Lets what a job of a sweep says begin with its number: jobs may run side by side."""

    class Numbered(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return "\n".join(f"[{number}] {line}" for line in super().format(record).splitlines())

    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(Numbered())


def again() -> str:
    """The command that goes on with the newest sweep."""
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("sweep_resume=")]
    return shlex.join(["python", "train.py", *arguments, "sweep_resume=last"])


def typed() -> list[str]:
    """The overrides that were typed for this run, or that make it as a job of a sweep. What makes the sweep is none."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return [override for override in overrides if not override.startswith(("sweep=", "sweep_resume="))]


def in_sweep() -> bool:
    """Whether this run is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


@functools.cache
def _as_in_conf(groups: tuple[str, ...]) -> DictConfig:
    """The config with these parts and with no value changed. Jobs of a sweep ask for the same one again and again."""
    return hydra.compose("config", list(groups))


def check_values(cfg: DictConfig) -> None:
    """Raises ValueError for a typed value that is of another kind than the one in conf/, before torch is loaded."""
    hydra_cfg = HydraConfig.get()
    settings = {text.partition("=")[0]: text for text in hydra_cfg.overrides.task if text[0] not in "+~"}
    parts = tuple(text for key, text in settings.items() if key.partition("@")[0] in hydra_cfg.runtime.choices)
    for key in settings:
        if key.partition("@")[0] in hydra_cfg.runtime.choices or key in LIGHTNING_KNOWS:
            continue
        value, default = OmegaConf.select(cfg, key), OmegaConf.select(_as_in_conf(parts), key)
        if key == "trainer.max_epochs" and value == -1:  # no end
            continue
        if expected := _expected(value, default):
            raise ValueError(f"{key}={value} must be {expected}, such as {default}")


LIGHTNING_KNOWS = ("trainer.devices", "trainer.precision")  # numbers or words


def _expected(value: Any, default: Any) -> str | None:
    """What a value must be to stand in for the default, if it is not."""
    if value is None or default is None:  # what may be left out is checked by the part that takes it
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, (int, float)):
        whole = isinstance(default, int)
        kind = "a whole number" if whole else "a number"
        right = number and math.isfinite(value) and (isinstance(value, int) or not whole)
        if default >= 0:
            kind, right = f"{kind} of at least 0", right and value >= 0
        return None if right else kind
    if isinstance(default, str):
        return None if isinstance(value, str) or number else "a word"
    kinds = {DictConfig: "settings by name", ListConfig: "a list"}
    return next((words for kind, words in kinds.items() if isinstance(default, kind) > isinstance(value, kind)), None)


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
    own = {folder / f"{HydraConfig.get().job.name}.log", folder / ".lock"}
    if set(folder.iterdir()) - own:
        return
    for handler in logging.getLogger().handlers:
        handler.close()
    for file in own:
        file.unlink(missing_ok=True)
    for path in (folder, *folder.parents[:2]):  # outputs/name/date_time
        try:
            path.rmdir()
        except OSError:  # other runs are in it
            break


def discard_sweep_if_unused(folder: Path) -> None:
    """Removes the folder of a sweep none of whose jobs has begun, unless something else is in it."""
    if not folder.is_dir() or any(path.is_dir() for path in folder.iterdir()):
        return
    for name in ("multirun.yaml", ".study.lock"):  # what the sweepers write before the first job
        (folder / name).unlink(missing_ok=True)
    for path in (folder, *folder.parents[:2]):  # outputs/sweep/date_time
        try:
            path.rmdir()
        except OSError:
            break


def note_failure(folder: Path, error: BaseException) -> dict[str, Any]:
    """Lets the result.json of a sweep's job say why it failed; a job that never started gets one."""
    file = folder / "result.json"
    result: dict[str, Any] = {"command": shlex.join(["python", "train.py", *typed()]), "overrides": typed()}
    result |= {"status": "failed", "metrics": {}}
    if file.exists():
        result = json.loads(file.read_text())
    result["reason"] = one_line(error)
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    return result


# --- errors ------------------------------------------------------------------------------------------------------


def leave(error: BaseException, whole_traceback: bool) -> NoReturn:
    """Says what went wrong in one line and ends the process. The exit codes are those of the README."""
    if isinstance(error, SystemExit):
        raise error
    say(error, whole_traceback)
    if isinstance(error, KeyboardInterrupt) and SweepSummary.folder:
        error.again = again()
    if command := getattr(error, "again", None):
        print(f"go on with: {command}", file=sys.stderr)
    codes = {FloatingPointError: 4, KeyboardInterrupt: 130}
    sys.exit(codes.get(type(error), getattr(error, "exit_code", 1)))


def say(error: BaseException, whole_traceback: bool) -> None:
    """One line about an error, on stderr."""
    if whole_traceback:
        traceback.print_exception(error)
    number = f"[{HydraConfig.get().job.num}] " if in_sweep() else ""
    print(f"{number}error: {one_line(error)}", file=sys.stderr)


def one_line(error: BaseException) -> str:
    """What went wrong in one line, with the nearest name for one that does not exist."""
    while isinstance(error, (HydraException, OmegaConfBaseException)) and (error.__cause__ or error.__context__):
        if isinstance(error, OverrideParseException):
            break
        error = error.__cause__ or error.__context__
    if isinstance(error, KeyboardInterrupt):
        return "interrupted" if SweepSummary.folder else "interrupted before there was anything to save"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"this needs the package {error.name}: pip install {error.name}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if name.partition("_")[0] in LAUNCHERS:
            return f"{group}={name} needs a package: pip install hydra-{name.partition('_')[0]}-launcher"
        return f"there is no {group}={name}{nearest(name, error.options)}; there are {', '.join(error.options)}"
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)) and isinstance(error.parent_node, DictConfig):
        parent, _, key = str(error.full_key).rpartition(".")
        keys = [str(name) for name in error.parent_node if not str(name).startswith("_")]
        name = f"{parent}.{key}" if parent else key
        close = nearest(name, [f"{parent}.{other}" if parent else other for other in keys])
        return f"there is no {name}{close}; {parent or 'the config'} has {', '.join(keys)}"
    text = " ".join(str(error).split())
    for part, meaning in MEANINGS.items():
        if part in text or part == type(error).__name__:
            return f"{meaning} ({text[:160]})"
    if isinstance(error, InstantiationException):
        return text
    known = (ValueError, OSError, RuntimeError, ArithmeticError, HydraException, OmegaConfBaseException)
    speaks = isinstance(error, known) or hasattr(error, "exit_code") or type(error).__module__.startswith("lightning")
    return text if text and speaks else f"{type(error).__name__}: {text}"


# What others say, in the words of this project.
MEANINGS = {
    "No supported gpu backend found": "there is no GPU here that torch can use; accelerator=auto takes what there is",
    "the accelerator is not available": "this machine has no such trainer.accelerator; auto takes what there is",
    "MemoryError": "the memory is used up; a smaller data.batch_size needs less",
    "OutOfMemoryError": "the memory is used up; a smaller data.batch_size needs less",
    "can't allocate memory": "the memory is used up; a smaller data.batch_size needs less",
    "DataLoader worker": "a process that reads images has died, perhaps for want of memory; try data.num_workers=0",
}
# Hydra's launchers that are packages of their own.
LAUNCHERS = ("joblib", "submitit", "ray")


def nearest(name: str, options: list[str]) -> str:
    """`` (did you mean X?)``, or nothing when no option is close."""
    match = difflib.get_close_matches(name, options, n=1)
    return f" (did you mean {match[0]}?)" if match else ""
