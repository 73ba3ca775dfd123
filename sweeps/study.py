"""The study of a search: Optuna's database in the directory of the sweep."""

import contextlib
import functools
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.format import printable
from runs.monitor import metric_name
from runs.sqlite import TIMEOUT, check_files, statements, table_names

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

STUDY_NAME = "search"
MARK = "lit-classics"  # an attribute of each study that this project makes
STUDY_TABLES = {"studies", "study_user_attributes", "trials", "trial_user_attributes"}
VERSION_TABLES = {"version_info", "alembic_version"}
# Studies of earlier versions have no mark, but their trials name the process that ran them.
OWN_STUDY = f"""
SELECT 1 FROM studies WHERE study_name = '{STUDY_NAME}' AND (
    study_id IN (SELECT study_id FROM study_user_attributes WHERE key = '{MARK}')
    OR study_id IN (SELECT study_id FROM trials JOIN trial_user_attributes USING (trial_id) WHERE key = 'worker')
    OR study_id NOT IN (SELECT study_id FROM trials))
"""


def exists(sweep_dir: Path) -> bool:
    """Return whether a sweep is a search."""
    return os.path.lexists(sweep_dir / "study.db")


def check_study(sweep_dir: Path) -> None:
    """Raise ValueError for a ``study.db`` that is not ours to write, before SQLite opens it.

    The sweep may come from anyone, and SQLite acts on the files beside a database. Of these only the journal of a
    killed search is used, which SQLite rolls back.

    Raises:
        OSError: the file cannot be read, or is not a database.
    """
    file = sweep_dir / "study.db"
    check_files(file, made_by="a search")
    if file.exists() and not _is_ours(file):
        raise ValueError(
            f"{file} is refused: it is not the study of a search of this project: hydra.sweep.dir=… names another "
            "directory"
        )


def _is_ours(file: Path) -> bool:
    """Return whether a database has a study of this project, or nothing that could be lost."""
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=TIMEOUT)) as database:
            if (tables := table_names(database)) is None or not statements(database) <= _optuna_statements():
                return False
            if tables >= STUDY_TABLES and database.execute(OWN_STUDY).fetchone():
                return True
            names = [name.replace('"', '""') for name in tables - VERSION_TABLES]
            return not any(database.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone() for name in names)
    except sqlite3.Error as error:
        raise OSError(f"{file}: {error}") from error


def has_study(sweep_dir: Path) -> bool:
    """Return whether a search has begun in a directory. Of its study it is known that it is ours."""
    if not (sweep_dir / "study.db").is_file():
        return False
    with contextlib.closing(sqlite3.connect(sweep_dir / "study.db", timeout=TIMEOUT)) as database:
        tables = table_names(database) or set()
        return tables >= STUDY_TABLES and database.execute(OWN_STUDY).fetchone() is not None


@functools.cache
def _optuna_statements() -> set[str]:
    """Return the statements by which Optuna makes its tables. Another column might change what is in theirs."""
    import optuna
    from sqlalchemy.pool import StaticPool

    with contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as database:
        settings = {"creator": lambda: database, "poolclass": StaticPool}
        optuna.storages.RDBStorage("sqlite://", engine_kwargs=settings)
        return statements(database)


def open_study(sweep_dir: Path, **settings: Any) -> "optuna.Study":
    """Return the study in ``study.db``, which is created where there is none. Several processes may use it.

    Args:
        **settings: for ``optuna.create_study``.

    Raises:
        ValueError, OSError: see :func:`check_study`.
    """
    import optuna
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    check_study(sweep_dir)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(storage=_storage(sweep_dir), study_name=STUDY_NAME, load_if_exists=True, **settings)
        _ = study.direction, study.user_attrs
        if not study.get_trials(deepcopy=False):
            study.set_user_attr(MARK, True)
    except (StorageInternalError, SQLAlchemyError):  # see storage_errors
        raise
    except Exception as error:  # Optuna raises many kinds of errors for what it did not write
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise OSError(
            f"{sweep_dir / 'study.db'} is damaged or of another version of Optuna ({reason[:200]})"
        ) from error
    return study


def check_metric(study: "optuna.Study", sweep_dir: Path, metric: str) -> None:
    """Record the metric that a search is about, or raise ValueError where it has begun with another one."""
    metric = metric if metric.startswith("train") else metric_name("val", metric)  # whichever way it is typed
    begun = study.user_attrs.get("metric", metric)  # an earlier version recorded none
    if begun != metric:
        raise ValueError(
            f"the search in {sweep_dir} has begun with monitor={printable(str(begun)[:80])}: monitor={metric} cannot "
            "continue it"
        )
    if "metric" not in study.user_attrs:
        study.set_user_attr("metric", metric)


def check_space(study: "optuna.Study", sweep_dir: Path, space: "dict[str, BaseDistribution]") -> None:
    """Record the ranges of a search, or raise ValueError where it has begun with other ones.

    A trial whose process has died is continued by any later one, so each must hold its settings. Optuna also leaves a
    running trial behind where it refuses a range.
    """
    from optuna.trial import TrialState

    ranges = _format_space(space)
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    before = _format_space(ended[-1].distributions) if ended else ranges  # an earlier version recorded none
    if (begun := study.user_attrs.get("ranges", before)) != ranges:
        raise ValueError(
            f"the search in {sweep_dir} has begun with {printable(str(begun)[:300])}: other ranges cannot continue it"
        )
    if "ranges" not in study.user_attrs:
        study.set_user_attr("ranges", ranges)


def _format_space(space: "dict[str, BaseDistribution]") -> str:
    """Return the ranges of a search in one form, however they were typed."""
    return " ".join(f"{name}={_format_range(space[name])}" for name in sorted(space))


def _format_range(distribution: Any) -> str:
    if hasattr(distribution, "choices"):
        return f"choice({', '.join(map(str, distribution.choices))})"
    text = f"interval({distribution.low}, {distribution.high})"
    if isinstance(distribution.low, int):
        step = distribution.step
        text = f"int({text})" if step == 1 else f"range({distribution.low}, {distribution.high + 1}, {step})"
    return f"tag(log, {text})" if distribution.log else text


@contextlib.contextmanager
def storage_errors(sweep_dir: Path) -> Iterator[None]:
    """Raise OSError, with the message of SQLite, where ``study.db`` cannot be read or written."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        raise OSError(f"{sweep_dir / 'study.db'}: {getattr(cause, 'orig', None) or cause}") from error


def open_trial(study: "optuna.Study", sweep_dir: Path, number: int) -> "optuna.Trial":
    """Return a running trial of the study, to report to. ``study.trials`` are copies that can only be read."""
    import optuna

    storage = _storage(sweep_dir)
    study_id = storage.get_study_id_from_name(STUDY_NAME)
    return optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))


def read_trial(study: "optuna.Study", number: int) -> "optuna.trial.FrozenTrial":
    """Return a trial as it is now."""
    return next(trial for trial in study.get_trials(deepcopy=False) if trial.number == number)


def _storage(sweep_dir: Path) -> "optuna.storages.RDBStorage":
    import optuna
    from sqlalchemy.pool import QueuePool

    # The path is no part of the URL, in which Optuna replaces {...} and SQLAlchemy decodes %2F and ends it at a "?".
    file = str(sweep_dir.resolve() / "study.db")
    connect = functools.partial(sqlite3.connect, file, timeout=TIMEOUT, check_same_thread=False)
    return optuna.storages.RDBStorage("sqlite://", engine_kwargs={"creator": connect, "poolclass": QueuePool})


def importances(study: "optuna.Study") -> dict[str, float]:
    """Return the importance of each parameter for the metric, the most important first.

    By PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255). Empty for a study with too few trials or parameters.
    """
    import optuna

    ended = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(ended) < 4 or len(ended[0].distributions) < 2:
        return {}
    return optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
    )
