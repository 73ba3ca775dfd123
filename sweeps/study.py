"""The study of a search: Optuna's database in the directory of the sweep."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

STUDY_NAME = "search"


def exists(sweep_dir: Path) -> bool:
    """Return whether a sweep is a search."""
    return (sweep_dir / "study.db").exists()


def open_study(sweep_dir: Path, **settings: Any) -> "optuna.Study":
    """Return the study in ``study.db``, which is created where there is none. Several processes may use it.

    Args:
        **settings: for ``optuna.create_study``.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(storage=_storage(sweep_dir), study_name=STUDY_NAME, load_if_exists=True, **settings)


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

    url = f"sqlite:///{sweep_dir.resolve() / 'study.db'}"
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})  # seconds


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
