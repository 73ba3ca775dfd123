"""The jobs of a sweep, read from their directories."""

import contextlib
import copy
import math
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from runs.files import JOB_DIR, check_folder, read_yaml
from runs.format import printable
from runs.gpus import visible_gpus
from runs.monitor import MODES
from runs.overrides import override_values
from runs.result import ENDED, read_result
from runs.safety import stored_command
from sweeps.study import check_study, has_study
from sweeps.study import exists as study_exists

LEFT = "left"  # the status of a job that did not begin, because another has failed and sweep_fail_fast=true
# The status of a job that failed before it began where an earlier command has begun it, or another one runs it.
REFUSED = "refused"
# Made in the sweep directory by the first job of a command that fails, and named by the command.
FIRST_FAILURE = ".first_failure-{}"
COMMAND = "LIT_CLASSICS_SWEEP"  # the environment variable with the name of the command, for the processes of its jobs
UNIQUE_FOLDER = re.compile(r"\.submitit/[0-9a-f]{16}")  # of submitit, see cli.run_dir.RecordDirs
NOT_SUBMITTED = re.compile(r"[0-9a-f]{32}\.pkl|\.submission_file_[0-9a-f]{32}\.sh")  # their later names have a job id
SUMMARY_FILES = ("summary.csv", "summary.md", "summary.png")


@dataclass
class Job:
    """One job of a sweep, from its ``result.json``.

    Attributes:
        status: status of the run, ``killed`` without a result.json, or ``unreadable`` with a damaged one.
        command: repeats it, or says why it is not shown.
        metrics: the finite metrics.
        settings: the value of each override, by its key.
        monitor: the metric that its best epoch was chosen by, and its mode; None where it does not say so.
        published: the published figures of its experiment, by metric.
    """

    run_dir: Path
    status: str
    reason: str = ""
    command: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    monitor: tuple[str, str] | None = None
    published: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether the job did not finish, or missed what ``check=true`` expects."""
        return self.status not in (*ENDED, "pruned") or (bool(self.reason) and self.status != "pruned")

    @property
    def ended(self) -> bool:
        return self.status in ENDED


def read_jobs(sweep_dir: Path) -> list[Job]:
    """Return the jobs of a sweep in their order, without those that another process is running."""
    run_dirs = _job_dirs(sweep_dir)
    jobs = [_read_job(run_dir) for run_dir in sorted(run_dirs, key=lambda path: (len(path.name), path.name))]
    return [job for job in jobs if job.status != "killed" or not _is_locked(job.run_dir / ".lock")]


def is_sweep(directory: Path) -> bool:
    """Return whether a sweep was begun in a directory."""
    has_config = {"hydra", "sweep_resume"} <= read_yaml(directory / "multirun.yaml").keys()
    return has_config or study_exists(directory) or any(map(_is_named_as_job, directory.glob("*/")))


def check_sweep_dir(sweep_dir: Path) -> None:
    """Raise ValueError for a directory with files that a sweep would overwrite, unless a sweep has made them.

    A grid writes ``multirun.yaml`` before its first job, and a search its study. Links out of it are refused too.
    """
    check_study(sweep_dir)
    has_config = {"hydra", "sweep_resume"} <= read_yaml(sweep_dir / "multirun.yaml").keys()
    begun = has_config or has_study(sweep_dir)
    is_run = read_yaml(sweep_dir / "config.yaml").keys() >= {"choices", "model"}
    if not begun and (is_run or os.path.lexists(sweep_dir / ".lock")):
        raise ValueError(f"{sweep_dir} is the directory of a run: hydra.sweep.dir=… names another directory")
    overwritten = [*(() if has_config else ("multirun.yaml",)), *(() if begun else SUMMARY_FILES)]
    if found := [name for name in overwritten if os.path.lexists(sweep_dir / name)]:
        raise ValueError(
            f"{sweep_dir} has {', '.join(found)} in it, which this sweep would overwrite: hydra.sweep.dir=… names "
            "another directory"
        )
    for directory in (sweep_dir, *_job_dirs(sweep_dir)):  # the jobs too, where nothing tells that this is a sweep
        check_folder(directory, begins=True)


def check_submitit(config: DictConfig, sweep_dir: Path) -> None:
    """Raise ValueError for a path in which submitit would replace ``%j`` and the like: it writes to another directory.

    Args:
        config: that of the sweep.
    """
    path = sweep_dir.absolute()
    if "%" in str(path) and "submitit_folder" in (OmegaConf.select(config, "hydra.launcher") or {}):
        raise ValueError(f"hydra/launcher=submitit_… replaces % in {printable(str(path))}: choose a path without it")


@contextlib.contextmanager
def removed_if_not_submitted(config: DictConfig) -> Iterator[None]:
    """Remove what submitit has written for jobs after an error before it has submitted one of them.

    Args:
        config: that of the sweep.
    """
    try:
        yield
    except BaseException:
        folder = Path(str(OmegaConf.select(config, "hydra.launcher.submitit_folder"))).parent
        if UNIQUE_FOLDER.fullmatch("/".join(folder.parts[-2:])) and folder.is_dir():  # of this command
            files = list(folder.iterdir())
            if all(NOT_SUBMITTED.fullmatch(file.name) for file in files):
                with contextlib.suppress(OSError):  # the first error is the one to report
                    for file in files:
                        file.unlink()
                    folder.rmdir()
                    folder.parent.rmdir()  # it may have those of an earlier command
        raise


def check_kind(sweep_dir: Path, is_search: bool) -> None:
    """Raise ValueError for a grid in the directory of a search, and the other way round: one summary ranks all jobs."""
    if study_exists(sweep_dir) and not is_search:
        raise ValueError(f"{sweep_dir} is that of a search, which hydra/sweeper=optuna or its sweep= continues")
    if is_search and not study_exists(sweep_dir) and os.path.lexists(sweep_dir / "multirun.yaml"):
        raise ValueError(f"{sweep_dir} is that of a grid, which a search cannot continue")


def check_repeated(sweep_dir: Path) -> None:
    """Raise ValueError where a sweep that has overrides is resumed without any: one default run would join it."""
    stored = read_yaml(sweep_dir / "multirun.yaml")
    with contextlib.suppress(KeyError, TypeError):
        texts = [str(text) for text in stored["hydra"]["overrides"]["task"]]
        if before := [text for text in texts if not text.startswith("sweep_resume=")]:
            command = stored_command(before).replace("train.py", "train.py -m", 1)
            raise ValueError(f"sweep_resume= goes with the overrides of its sweep, which began as: {command}")


def ends_at_failure(config: DictConfig) -> bool:
    """Return whether a sweep ends at its first failure.

    Raises:
        ValueError: ``sweep_fail_fast`` is neither true nor false.
    """
    if not isinstance(asked := config.sweep_fail_fast, bool):
        raise ValueError(f"sweep_fail_fast={asked} must be true or false")
    return asked


@contextlib.contextmanager
def mark_of_failure(sweep_dir: Path) -> Iterator[None]:
    """Give this command a mark of its own for its first failure. Other commands may run jobs in the same directory.

    After an error the mark stays, because jobs that a launcher has started may be left.
    """
    os.environ[COMMAND] = secrets.token_hex(6)
    yield
    _mark(sweep_dir).unlink(missing_ok=True)


def _mark(sweep_dir: Path) -> Path:
    return sweep_dir / FIRST_FAILURE.format(os.environ[COMMAND])


def check_subdir(config: DictConfig, sweep_dir: Path) -> None:
    """Raise ValueError where the directory of a job, named by the user, does not lie directly in that of the sweep.

    Args:
        config: that of the job.
    """
    subdir = OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"]  # type: ignore[call-overload, index]
    if "${job_dir:" in str(subdir):  # of conf/: it makes a directory
        return
    config = copy.deepcopy(config)
    with read_write(config), open_dict(config), contextlib.suppress(OmegaConfBaseException):  # Hydra raises it again
        config.hydra.job.update({"id": "0", "num": 0})
        directory = sweep_dir / str(config.hydra.sweep.subdir)
        if directory.resolve().parent != sweep_dir.resolve():
            raise ValueError(
                f"{directory} does not lie directly in {sweep_dir}, the directory of the sweep: hydra.sweep.subdir "
                "must name a directory for each job"
            )


def check_gpus(config: DictConfig, jobs: int) -> None:
    """Raise ValueError for more processes of joblib than there are GPUs: each keeps its own, also between two jobs.

    Args:
        config: that of a job.
        jobs: how many there are.
    """
    devices, launcher = config.trainer.devices, config.hydra.runtime.choices.get("hydra/launcher")
    is_number = isinstance(devices, int) and devices > 0
    if launcher != "joblib" or not is_number or config.trainer.accelerator not in ("auto", "gpu", "cuda"):
        return
    import torch

    gpus = visible_gpus(torch.cuda.device_count())
    n_jobs = config.hydra.launcher.n_jobs
    side_by_side = min(jobs, n_jobs if n_jobs > 0 else (os.cpu_count() or 1) + 1 + n_jobs)  # as joblib counts
    if gpus and side_by_side * devices > len(gpus):
        raise ValueError(
            f"{side_by_side} jobs beside each other with trainer.devices={devices} need {side_by_side * devices} GPUs, "
            f"and there are {len(gpus)}: hydra.launcher.n_jobs={len(gpus) // devices or 1}"
        )


def record_first_failure(sweep_dir: Path) -> None:
    """Let no other job of this command begin, in any process."""
    if COMMAND in os.environ:
        with contextlib.suppress(OSError):  # a full disk: the other jobs report it too
            _mark(sweep_dir).touch()


def has_failed(sweep_dir: Path) -> bool:
    """Return whether a job of this command has failed."""
    return COMMAND in os.environ and _mark(sweep_dir).exists()


def _job_dirs(sweep_dir: Path) -> list[Path]:
    """Return the directories of the jobs in a sweep. A link is none: it may lead to a run of the user's."""
    if not sweep_dir.is_dir():
        return []
    directories = [path for path in sweep_dir.iterdir() if path.is_dir() and not path.is_symlink()]
    return [path for path in directories if _is_named_as_job(path) or (path / "result.json").exists()]


def _is_named_as_job(path: Path) -> bool:
    return bool(JOB_DIR.fullmatch(path.name))


def _read_job(run_dir: Path) -> Job:
    try:
        result = read_result(run_dir)
        if result is None:
            return Job(run_dir, "killed", "no result.json")
        return _parse(run_dir, result)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        return Job(run_dir, "unreadable", printable(f"not the result of a run: {type(error).__name__}: {error}"))


def _parse(run_dir: Path, result: dict[str, Any]) -> Job:
    """Return the job of a result. Raise for anything that no run writes, because the file may come from anyone."""
    if result["status"] not in (*ENDED, "interrupted", "failed", "pruned"):
        raise ValueError(f"unknown status {result['status']!r}")
    texts = [result["command"], result.get("reason", ""), *result["overrides"], *result["metrics"]]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("text expected")
    command, reason, *overrides = map(printable, texts[: 2 + len(result["overrides"])])
    if result["status"] in ("interrupted", "failed"):
        reason = reason or result["status"]
    metrics = {name: float(value) for name, value in result["metrics"].items() if value is not None}
    finite = {printable(name): value for name, value in metrics.items() if math.isfinite(value)}
    name, mode = result.get("monitor"), str(result.get("mode"))
    if name is not None and not (isinstance(name, str) and mode in MODES):
        raise ValueError(f"unknown monitor {name!r} with mode {mode!r}")
    monitor = (printable(name), mode) if name else None
    published = {printable(name): float(value) for name, value in result.get("published", {}).items()}
    return Job(run_dir, result["status"], reason, command, finite, override_values(overrides), monitor, published)


def _is_locked(file: Path) -> bool:
    from filelock import FileLock, Timeout

    if not file.exists():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # such as in a read-only directory
        return False
