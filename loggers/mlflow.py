"""Runs in MLflow."""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
import numpy as np
from filelock import FileLock
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags

from loggers.guarded import Guarded, check_no_link, check_place, first_line, is_resumed, read_run_id, write_run_id
from runs.files import atomic_write, encode_png, is_within
from runs.format import printable
from runs.sqlite import TIMEOUT, check_files, table_names

log = logging.getLogger(__name__)

MLFLOW_TRACKING_URI = "MLFLOW_TRACKING_URI"  # the name of the environment variable
DEFAULT_FILE = Path("outputs", "mlflow.db")
DEFAULT_URI = f"sqlite:///{DEFAULT_FILE}"
ARTIFACTS = "mlruns"  # MLflow's own name for the directory of artifacts
MAX_NAME = 200  # MLflow takes 250 letters for the whole name of a metric
RUN_DIR = "run_dir"  # the tag with the run directory
# Three of these names are also those of other programs.
MLFLOW_TABLES = {"alembic_version", "experiments", "runs", "metrics", "latest_metrics", "params", "tags"}
# MLflow has a trigger that refuses a change. One of this kind does nothing else.
REFUSING_TRIGGER = (
    r"CREATE TRIGGER \w+\s+BEFORE UPDATE ON \w+\s[^;'\"]*\sBEGIN\s+SELECT RAISE\(ABORT, '[^';]*'\);\s+END"
)
OMITTED = ("logger", "resume")  # of the settings: they say nothing about the run
STATUSES = {"finished": "FINISHED", "diverged": "FINISHED", "interrupted": "KILLED", "pruned": "KILLED"}


class MLflow(Guarded, MLFlowLogger):
    """Records parameters, metrics, tags, pictures, ``config.yaml`` and ``result.json`` of a run in MLflow.

    ``mlflow.txt`` in the run directory holds the id of the run and where it is, so that a resumed run continues it. An
    address in it is not used, because a run may come from anyone: it must be given again. Nor is the id of a run that
    began in another directory.

    Args:
        save_dir: run directory.
        experiment_name: MLflow's experiment.
        run_name: name of the run in MLflow.
        tracking_uri: an SQLite file or a server. None takes the environment variable ``MLFLOW_TRACKING_URI``, or
            ``sqlite:///outputs/mlflow.db``. Artifacts of a file are in ``mlruns/`` beside it.

    Raises:
        ValueError: the run to resume is at an address that was not given again, or the address cannot be used.
    """

    title = "MLflow"

    def __init__(
        self, save_dir: str, experiment_name: str, run_name: str | None = None, tracking_uri: str | None = None
    ) -> None:
        for name in ("mlflow", "alembic"):  # they report each table that they make
            logging.getLogger(name).setLevel(logging.WARNING)
        self._file, self.is_resumed = Path(save_dir, "mlflow.txt"), is_resumed(save_dir)
        stored = read_run_id(self._file)
        given = tracking_uri or os.environ.get(MLFLOW_TRACKING_URI)
        uri = given or DEFAULT_URI
        self._artifact_root: Path | None = None  # that of a server is its own matter
        if file := _sqlite_file(uri):  # MLflow keeps a connection for each address, whatever the working directory
            check_sqlite_file(file, uri, is_made=os.path.realpath(file) == os.path.realpath(DEFAULT_FILE))
            uri = f"sqlite:///{os.path.abspath(file)}"
            self._artifact_root = Path(os.path.abspath(file)).parent / ARTIFACTS
            if set("?#%") & set(uri):  # it would be another file
                where = printable(os.path.abspath(file))
                raise ValueError(f"logger=mlflow: its database cannot be {where}, because of ?, # or % in the path")
        if len(stored) > 1:
            check_place(stored[1], uri, not given, "MLflow", "logger.mlflow.tracking_uri")
        self._stored_id = stored[0] if stored and re.fullmatch("[0-9a-f]{32}", stored[0]) else None
        self._uri, self._names = uri, (experiment_name, run_name)
        self._known: set[str] = set()  # the metrics that were logged
        self._artifacts = ""  # the place of the artifacts, as it was checked at the start
        # The constructor of MLFlowLogger would make the database. begin() calls it.

    save_dir = None  # Lightning writes no files for this logger

    def begin(self) -> None:
        """Begin the run in MLflow, or find the one to continue.

        Raises:
            ValueError: MLflow cannot be used at this address.
        """
        shown = printable(_without_password(self._uri))
        for name in ("urllib3", "mlflow.store.db.utils"):  # they report each attempt
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            with _few_retries(), one_at_a_time(self._uri):
                client = MlflowClient(self._uri)
                found = self._find_run(client, shown)
                self._is_new, run_id = found is None, found or self._create_run(client)
                super().__init__(*self._names, self._uri, save_dir=str(self._file.parent), run_id=run_id)
                with _kept_environment():
                    _ = self.experiment
        except Exception as error:
            raise ValueError(f"logger.mlflow.tracking_uri={shown} cannot be used: {first_line(error)}") from error

    def abandon(self) -> None:
        if self._is_new:
            self.experiment.delete_run(self.run_id)
        else:
            status, end_time, name = self._before
            self.experiment.update_run(self.run_id, name=name)
            self.experiment.set_terminated(self.run_id, status, end_time)

    def _find_run(self, client: MlflowClient, shown: str) -> str | None:
        """Return the id of the run to continue, or None where there is none."""
        if not self._stored_id:
            if self.is_resumed:
                log.info("%s does not name an MLflow run to continue: one begins in %s", self._file, shown)
            return None
        try:
            run = client.get_run(self._stored_id)
            is_here = run.data.tags.get(RUN_DIR) == os.path.abspath(self._file.parent)
            if is_here and run.info.lifecycle_stage == "active" and self._is_own(run.info.artifact_uri):
                self._before = run.info.status, run.info.end_time, run.info.run_name
                self._artifacts = run.info.artifact_uri
                client.update_run(self._stored_id, status="RUNNING", name=self._names[1])
                return self._stored_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        log.warning("%s has no MLflow run %s of this directory: another one begins", shown, self._stored_id)
        return None

    def _is_own(self, artifact_uri: str) -> bool:
        """Return whether artifacts are where this run may write them. An SQLite file may come with runs of others."""
        if not (root := self._artifact_root):
            return True
        # A URL, or a path that MLflow reads as one (%2e is a dot), would be another place than it seems.
        is_path = os.path.isabs(artifact_uri) and not set("?#%") & set(artifact_uri)
        return is_path and is_within(Path(artifact_uri, "any"), root, DEFAULT_FILE.parent / ARTIFACTS)

    def _create_run(self, client: MlflowClient) -> str:
        experiment, run_name = self._names
        found = client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            raise ValueError(f"its experiment {experiment} was deleted; logger.mlflow.experiment_name=… names another")
        if found is None:  # beside the database; MLflow would take the working directory
            experiment_id = client.create_experiment(
                experiment, str(self._artifact_root) if self._artifact_root else None
            )
        else:
            experiment_id = found.experiment_id
            if not self._is_own(found.artifact_location):
                raise ValueError(
                    f"logger.mlflow.experiment_name=… must name another experiment: {experiment} has its artifacts at "
                    f"{printable(found.artifact_location)}, not in {self._artifact_root}"
                )
        tags = resolve_tags({RUN_DIR: os.path.abspath(self._file.parent), "mlflow.runName": str(run_name)})
        tags = {name: _without_password(value) for name, value in tags.items()}  # of git's remote
        run = client.create_run(experiment_id, tags=tags).info
        if not self._is_own(run.artifact_uri):
            raise ValueError(f"its run has its artifacts at {printable(run.artifact_uri)}")
        run_id, self._artifacts = str(run.run_id), run.artifact_uri
        return run_id

    def _write_metrics(self, metrics: dict[str, float], step: int | None) -> None:
        # Lightning would leave all but ASCII letters out of the names.
        now, named = int(1000 * time.time()), {_metric_name(name): float(value) for name, value in metrics.items()}
        self._known |= set(named)
        self.experiment.log_batch(self.run_id, [Metric(name, value, now, step or 0) for name, value in named.items()])

    def log_config(self, config: dict[str, Any], text: str) -> None:
        self._guard(lambda: self._log_config(config, text))

    def _log_config(self, config: dict[str, Any], text: str) -> None:
        write_run_id(self._file, str(self.run_id), _without_password(self._uri))
        choices = config["choices"]
        tags = {name: choices[name] for name in ("experiment", "model", "data") if choices[name]}
        for name, value in (tags | {"tags": ", ".join(map(str, config.get("tags") or []))}).items():
            if value:
                self.experiment.set_tag(self.run_id, name, value)
        # A parameter of MLflow never changes. What was changed on resume is a tag.
        known = self.experiment.get_run(str(self.run_id)).data.params
        params = {
            name: str(value)[:250] for name, value in _flatten(config).items() if name.partition(".")[0] not in OMITTED
        }
        super().log_hyperparams({name: value for name, value in params.items() if name not in known})
        for name in params.keys() & known.keys():
            if known[name] != params[name]:
                self.experiment.set_tag(self.run_id, name, params[name])
        self._write_artifact("config.yaml", text.encode())

    def _write_artifact(self, name: str, content: bytes) -> None:
        """Write an artifact ``DIRECTORY/FILE`` or ``FILE``.

        Those of an SQLite file go beside it, whatever it says by now: it may come with runs of others.
        """
        if self._artifact_root:
            path = Path(self._artifacts, name)
            for parent in itertools.takewhile(lambda folder: folder.name != ARTIFACTS, path.parents):
                check_no_link(parent)
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
            return
        directory, _, file_name = name.rpartition("/")
        with tempfile.TemporaryDirectory() as folder:
            (file := Path(folder, file_name)).write_bytes(content)
            self.experiment.log_artifact(self.run_id, str(file), directory or None)

    @rank_zero_only
    def log_plot(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Add a plot, uint8 ``(H, W, 3)``, to the artifacts."""
        self._guard(lambda: self._write_artifact(f"{name}.png", encode_png(pixels)))

    @rank_zero_only
    def log_end(self, result: dict[str, Any], settings: dict[str, Any]) -> None:
        """Record the result, and end the run in MLflow."""
        self._guard(lambda: self._log_end(result))

    def _log_end(self, result: dict[str, Any]) -> None:
        left = {name: value for name, value in result["metrics"].items() if value is not None}
        self.log_metrics(
            {name: value for name, value in left.items() if _metric_name(name) not in self._known}, result["steps"]
        )
        self.experiment.set_tag(self.run_id, "status", result["status"])
        self._write_artifact("result.json", f"{json.dumps(result, indent=1)}\n".encode())
        self.experiment.set_terminated(self.run_id, STATUSES.get(result["status"], "FAILED"))

    def finalize(self, status: str = "success") -> None:
        pass  # after the training, before the test; log_end() ends the run


def _metric_name(name: str) -> str:
    """Return a name that MLflow takes as a path. The names of classes may hold anything, and stay different."""
    *parts, last = name.split("/", 2)
    last = re.sub(r"[^\w .-]|^\.+$|_(?=[0-9a-f]+_)", lambda found: "".join(f"_{ord(one):x}_" for one in found[0]), last)
    last = last or "_"
    if len(last) > MAX_NAME:
        last = f"{last[:MAX_NAME]} {hashlib.blake2b(last.encode(), digest_size=4).hexdigest()}"
    return "/".join([*parts, last])


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by names such as ``optimizer.lr``, those that MLflow can name."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{name}.")
        elif re.fullmatch(r"[\w./ -]{1,250}", name):
            flat[name] = value
    return flat


def _sqlite_file(uri: str) -> Path | None:
    found = re.match(r"sqlite(\+\w+)?:///", uri, re.IGNORECASE)  # with the name of a driver or without
    return Path(uri[found.end() :].partition("?")[0]) if found else None


def _without_password(uri: str) -> str:
    """Return an address without the user and the password in it."""
    return re.sub(r"//[^/]*@", "//", uri)


def check_sqlite_file(file: Path, uri: str, is_made: bool) -> None:
    """Raise ValueError for what is no database of MLflow and cannot become one.

    Args:
        file: the SQLite file, which need not exist.
        uri: for the error.
        is_made: whether it is ``outputs/mlflow.db``, whose directory is made. It may be no link, as one that is typed.
    """
    check_no_link(file.parent / ARTIFACTS)
    if is_made or file.is_file():
        check_files(file if is_made else Path(os.path.realpath(file)), made_by="MLflow")
    reason = None
    if "?" in uri or file.name == ":memory:":
        reason = "only the name of a file may follow sqlite:///"
    elif not is_made and not file.parent.is_dir():
        reason = f"there is no directory {file.parent}"
    elif os.path.lexists(file):
        if not file.is_file():
            reason = "that is no file"
        elif not os.access(file, os.R_OK | os.W_OK):
            reason = "that cannot be written"
        elif file.stat().st_size and file.open("rb").read(16) != b"SQLite format 3\0":
            reason = "that is no SQLite file"
        elif not _is_of_mlflow(file):
            reason = "that is a database of another program, or has triggers or views"
    if reason:
        raise ValueError(f"logger.mlflow.tracking_uri={printable(uri)}: {reason}")


def _is_of_mlflow(file: Path) -> bool:
    """Return whether a database is empty or has the tables of MLflow, and nothing that would run when they are used."""
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=TIMEOUT)) as database:
            tables = table_names(database, REFUSING_TRIGGER)
    except sqlite3.Error:
        return False
    return tables is not None and (not tables or tables >= MLFLOW_TABLES)


@contextlib.contextmanager
def _kept_environment() -> Iterator[None]:
    """Undo that Lightning makes the address that of all later runs of this process: MLflow stores it there."""
    before = os.environ.get(MLFLOW_TRACKING_URI)
    try:
        yield
    finally:
        os.environ.pop(MLFLOW_TRACKING_URI, None)
        if before is not None:
            os.environ[MLFLOW_TRACKING_URI] = before


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """Let MLflow report within seconds that a server does not answer. Its own retries take minutes."""
    few = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    added = {name: value for name, value in few.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
    """Let one process make the tables of an SQLite file, as a whole: of half of them MLflow makes no use."""
    if not (file := _sqlite_file(uri)):
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        if not file.is_file() or not file.stat().st_size:
            with atomic_write(file) as temporary:
                MlflowClient(f"sqlite:///{os.path.abspath(temporary)}").search_experiments(max_results=1)
        yield
