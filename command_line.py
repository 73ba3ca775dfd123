"""From what was typed to a config and a folder for the run, and from an error to one line and an exit code.

Imports nothing heavy: a mistake is answered before torch is loaded.
"""

import atexit
import contextlib
import ctypes
import functools
import io
import logging
import math
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, read_write

import explain
import folders
import runs
from callbacks.sweep import SweepSummary
from errors import LOST, nearest, one_line, say
from folders import helps, in_sweep

PROJECT = Path(__file__).parent
log = logging.getLogger(__name__)

# Read when torch is loaded. OpenMP's threads wait for each other in a loop, by default of 300,000 rounds, and meanwhile
# the one that they wait for may not get a core: one busy program beside a training on two cores made 200 steps take
# 23 s in place of 0.8 s. With a third of the rounds they take 4 to 6 s, and alone no longer than before.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")


def run(task: Callable[[DictConfig, Path], object], config: str = "config") -> NoReturn:
    """Runs ``task(cfg, folder)`` for the command line, under Hydra. Ends the process with an exit code.

    Args:
        task: takes the config and the folder of the run.
        config: the main file in ``conf/``.
    """
    code: int | str | None = 1
    logging.raiseExceptions = False  # a run goes on when nobody reads what it says

    def end() -> None:
        logging.shutdown()
        with contextlib.suppress(OSError):  # nobody reads any more
            sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 1)

    # At its own end Python takes torch down object by object, for the best part of a second. What is registered first
    # is called last: whoever else has something to do at the end has done it.
    atexit.register(end)
    if helps():
        if any("_ddp_process_" in word for word in sys.argv):  # Lightning's name for one that it has started
            # The first process waits for this one, deaf to signals, and then stops it: callbacks/interrupts.py.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else torch prints its stack where another process ends
        # The run's folder and its log are the first process's; what this one writes is for nobody.
        own = tempfile.mkdtemp(prefix="lit-classics-")
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        sys.argv += [f"hydra.run.dir={own}", "hydra/job_logging=none"]
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
            with folders.alone_in(folder, wait=in_sweep()):
                if not in_sweep():
                    return task(cfg, folder)
                if result := folders.take_up(folder, cfg):
                    return result
                with as_one_command(folder, cfg.resume):
                    return task(cfg, folder)
        except BaseException as error:
            if in_sweep() and isinstance(error, Exception) and getattr(error, "exit_code", 1) < 128:
                result = folders.note_failure(folder, one_line(error))  # and the other jobs of the sweep still run
                if result["status"] == "pruned":
                    log.info(error)
                else:
                    say(error, whole_traceback)
                return result
            folders.discard_if_unused(folder)
            leave(error, whole_traceback, again() if in_sweep() else None)
        finally:
            os.environ["HYDRA_FULL_ERROR"] = "1"

    processes = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1
    if {"-m", "--multirun"} & set(sys.argv) and int(processes) > 1:
        words = "a sweep starts the processes of its jobs itself, trainer.devices of them: leave torchrun and srun out"
        leave(ValueError(words), whole_traceback)
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        try:
            get_args_parser().parse_args()
        except SystemExit:
            complaint = printed.getvalue().strip().rpartition("error: ")[2]
            print(f"error: {complaint}; a setting is NAME=VALUE, and --help shows all", file=sys.__stderr__)
            raise
    # Processes that a launcher starts for jobs find the project too.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print
    try:
        if {"--cfg", "-c"} & set(sys.argv) and config == "config":
            show(main)
        else:
            main()
    except (Exception, KeyboardInterrupt) as error:
        if SweepSummary.folder:
            folders.discard_sweep_if_unused(SweepSummary.folder)
        leave(error, whole_traceback)


def show(main: Callable[[], object]) -> None:
    """What ``--cfg`` prints, with the comments of conf/."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main()
    overrides = [argument for argument in sys.argv[1:] if "=" in argument and not argument.startswith("-")]
    with hydra.initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        choices = hydra.compose("config", overrides, return_hydra_config=True).hydra.runtime.choices
    print(explain.commented(printed.getvalue(), choices), end="")


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
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.WARNING)
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


def register_resolvers() -> None:
    """The functions that conf/ calls."""
    OmegaConf.register_new_resolver("run_folder", folders.run_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("new_folder", folders.new_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("sweep_folder", folders.sweep_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("job_folder", folders.job_folder, replace=True)
    OmegaConf.register_new_resolver(
        "run_name", lambda experiment, data, model: experiment or f"{data}_{model}", replace=True
    )
    OmegaConf.register_new_resolver("run_title", run_title, replace=True)
    OmegaConf.register_new_resolver("options", explain.options, replace=True)
    OmegaConf.register_new_resolver("data_root", runs.data_root, replace=True)
    OmegaConf.register_new_resolver("steps", lambda batch_size: 1000 if batch_size is None else 1, replace=True)
    OmegaConf.register_new_resolver("folder_of", lambda run: str(runs.find(run)[0]), replace=True)


def number_lines(number: int) -> None:
    """Lets what a job of a sweep says begin with its number: jobs may run side by side."""

    class Numbered(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return "\n".join(f"[{number}] {line}" for line in super().format(record).splitlines())

    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(Numbered())


@contextlib.contextmanager
def as_one_command(folder: Path, resume: str | None) -> Iterator[None]:
    """Lightning starts the other processes of a run with the command that was typed. That of a sweep would be the whole
    sweep again; this is the one of a job. The next job finds neither its processes nor what it said to them."""
    arguments, environment = sys.argv, dict(os.environ)
    go_on = [f"resume={resume}"] if resume else []
    sys.argv = [str(PROJECT / "train.py"), *HydraConfig.get().overrides.task, *go_on]
    hydra_cfg: Any = HydraConfig.get()
    with read_write(hydra_cfg):
        hydra_cfg.run.dir = str(folder)
    try:
        yield
    finally:
        sys.argv = arguments
        for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
            if name not in environment:
                os.environ.pop(name, None)
        distributed = sys.modules.get("torch.distributed")
        if distributed and distributed.is_initialized():
            distributed.destroy_process_group()


def again() -> str:
    """The command that goes on with the newest sweep."""
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("sweep_resume=")]
    return shlex.join(["python", "train.py", *arguments, "sweep_resume=last"])


@functools.cache
def _as_in_conf(groups: tuple[str, ...]) -> DictConfig:
    """The config with these parts and with no value changed. Jobs of a sweep ask for the same one again and again."""
    return hydra.compose("config", list(groups))


# What is said before torch is loaded. The parts that take these settings refuse the same, and say it later.
SIGNED = ("model.net.weight", "model.net.bias", "data.scale")
AT_LEAST_ONE: tuple[str, ...] = ("data.batch_size", "data.eval_batch_size", "model.steps_per_batch", "threads")
AT_LEAST_ONE += ("trainer.num_nodes", "trainer.accumulate_grad_batches", "trainer.check_val_every_n_epoch")
AT_LEAST_ONE += ("checkpoint.every_n_steps", "record.every_n_batches", "callbacks.pictures.every_n_epochs")
ONE_OF = {
    "data.validate_on": ("val", "test", "train"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.precision": (
        "32-true",
        "bf16-mixed",
        "16-mixed",
        "64-true",
        "bf16-true",
        "16-true",
        "32",
        "64",
        "16",
        "bf16",
    ),
}
LIGHTNING_KNOWS = ("trainer.devices",)  # numbers or words


def check_values(cfg: DictConfig) -> None:
    """Raises ValueError for a typed value that cannot be, or is of another kind than the one in conf/."""
    for group in ("model", "data", "optimizer", "trainer"):
        if cfg.get(group) is None:
            raise ValueError(f"{group} cannot be left out")
    hydra_cfg = HydraConfig.get()
    settings = {text.partition("=")[0]: text for text in hydra_cfg.overrides.task if text[0] not in "+~"}
    parts = tuple(text for key, text in settings.items() if key.partition("@")[0] in hydra_cfg.runtime.choices)
    for key in settings:
        if key.partition("@")[0] in hydra_cfg.runtime.choices or key in LIGHTNING_KNOWS:
            continue
        value, default = OmegaConf.select(cfg, key), OmegaConf.select(_as_in_conf(parts), key)
        if key == "trainer.max_epochs" and value == -1:  # no end
            continue
        if key in ONE_OF and str(value) not in ONE_OF[key]:
            choices = ", ".join(ONE_OF[key])
            raise ValueError(f"{key}={value} must be one of {choices}{nearest(str(value), list(ONE_OF[key]))}")
        if key == "seed" and isinstance(value, int) and value >= 2**32:
            raise ValueError(f"seed={value} must be at most {2**32 - 1}")
        if key in AT_LEAST_ONE and value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{key}={value} must be a whole number of at least 1")
        if key not in ONE_OF and (expected := _expected(key, value, default)):
            example = "" if isinstance(default, bool) else f", such as {default}"
            raise ValueError(f"{key}={value} must be {expected}{example}")


def _expected(key: str, value: Any, default: Any) -> str | None:
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
        if default >= 0 and key not in SIGNED:
            kind, right = f"{kind} of at least 0", right and value >= 0
        return None if right else kind
    if isinstance(default, str):
        return None if (isinstance(value, str) and value) or number else "a word"
    kinds = {DictConfig: "settings by name", ListConfig: "a list"}
    return next((words for kind, words in kinds.items() if isinstance(default, kind) > isinstance(value, kind)), None)


# Settings that do not change what an experiment measures.
HARMLESS: tuple[str, ...] = ("experiment", "seed", "check", "expect", "resume", "threads", "compile", "name", "logger")
HARMLESS += ("record", "callbacks.progress", "callbacks.per_class", "callbacks.predicted_labels", "callbacks.pictures")
HARMLESS += ("checkpoint", "data.root", "data.eval_batch_size", "trainer.accelerator", "trainer.log_every_n_steps")


def changed(overrides: list[str], may_change: list[str]) -> list[str]:
    """Those of a run's overrides that make it another one than its experiment."""
    harmless = rf"[+~]*({'|'.join(map(re.escape, (*HARMLESS, *may_change)))})[.=]"
    return [override for override in overrides if not re.match(harmless, override)]


def run_title(name: str, overrides: list[str], seed: int) -> str:
    """``mnist_cnn/lr=0.1 seed=2``: what sets a run apart, as a path."""
    in_name: tuple[str, ...] = ("experiment", "seed")
    if not any(override.startswith("experiment=") for override in overrides):
        in_name += ("model", "data")
    settings = [override.lstrip("+").partition("=") for override in changed(list(overrides), [])]
    shown = [f"{key.rpartition('.')[2]}={value}" for key, _, value in settings if key not in in_name]
    title = re.sub(r"[^-\w .,=+]", "_", " ".join([*shown, f"seed={seed}"]))
    return f"{name}/{title[:120]}"


# --- errors ------------------------------------------------------------------------------------------------------


def _nobody_reads() -> bool:
    """Whether the other end of a pipe is gone, as in ``python train.py --help | head -3``."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def leave(error: BaseException, whole_traceback: bool, command: str | None = None) -> NoReturn:
    """Says what went wrong in one line and ends the process. The exit codes are those of the README."""
    if isinstance(error, SystemExit):
        raise error
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would only add a traceback to what is said here
    if isinstance(error, BrokenPipeError) and _nobody_reads():
        sys.exit(141)  # as other programs do: 128 and the number of SIGPIPE, which Windows does not have
    together = (KeyboardInterrupt, FloatingPointError)
    if helps() and (isinstance(error, together) or hasattr(error, "status") or LOST in one_line(error)):
        sys.exit(0)  # the first process says so, and Lightning would kill it for another exit code of this one
    say(error, whole_traceback)
    if isinstance(error, KeyboardInterrupt) and SweepSummary.folder:
        command = again()
    if command := command or getattr(error, "again", None):
        print(f"go on with: {command}", file=sys.stderr)
    codes = {FloatingPointError: 4, KeyboardInterrupt: 130}
    sys.exit(codes.get(type(error), getattr(error, "exit_code", 1)))
