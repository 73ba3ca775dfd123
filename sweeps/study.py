"""The study of a search: Optuna's database in the folder of the sweep, and its picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna


def open_study(folder: Path, **settings: Any) -> "optuna.Study":
    """The study in ``study.db``, made where there is none. Several processes may work on it.

    Args:
        folder: of the sweep.
        **settings: for ``optuna.create_study``.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{folder.resolve() / 'study.db'}", engine_kwargs={"connect_args": {"timeout": 60}}
    )
    return optuna.create_study(storage=storage, study_name="search", load_if_exists=True, **settings)


def importances(study: "optuna.Study") -> dict[str, float]:
    """How much of the difference between good trials and all is due to each parameter, the largest first: PED-ANOVA
    (Watanabe et al. 2023, arXiv:2304.10255). Empty where there is nothing to tell apart."""
    import optuna

    ended = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(ended) < 4 or len(ended[0].distributions) < 2:
        return {}
    return optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
    )


def draw(folder: Path, metric: str, path: Path) -> None:
    """The trials in their order with the best so far, the importances, and the metric over each parameter."""
    import optuna

    from plots.charts import TRAIN, VAL, WRONG, new_figure, plain, save

    study = open_study(folder)
    trials = study.get_trials(deepcopy=False)
    ended = [trial for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE]
    pruned = [trial for trial in trials if trial.state == optuna.trial.TrialState.PRUNED and trial.value is not None]
    if not ended:
        return
    names, shares, best = list(ended[0].distributions), importances(study), study.best_trial
    panels = 1 + bool(shares) + len(names)
    columns = 3 if panels > 4 else min(panels, 2)
    rows = -(-panels // columns)
    figure = new_figure(4.2 * columns, 3.4 * rows)
    places = iter(figure.subplots(rows, columns, squeeze=False).flat)

    def show(axes: Any, x_of: Any) -> None:
        axes.plot([x_of(t) for t in pruned], [t.value for t in pruned], "x", color="#9a9a9a", label="pruned")
        axes.plot([x_of(t) for t in ended], [t.value for t in ended], "o", color=TRAIN, markersize=4, label="trained")
        axes.plot(x_of(best), best.value, "o", color=WRONG, markersize=8, label="best")

    axes = plain(next(places), "trial", metric)
    best_so_far = max if study.direction == optuna.study.StudyDirection.MAXIMIZE else min
    values: list[Any] = [t.value for t in ended]
    course = [best_so_far(values[: end + 1]) for end in range(len(values))]
    axes.step([t.number for t in ended], course, where="post", color=VAL, linewidth=1.2, label="best so far")
    show(axes, lambda trial: trial.number)
    axes.locator_params("x", integer=True)
    axes.legend(frameon=False, fontsize=8)
    if shares:
        axes = plain(next(places), "importance", "")
        axes.barh([name.rpartition(".")[2] for name in shares], list(shares.values()), 0.5, color=TRAIN)
        axes.invert_yaxis()
    for name in names:
        axes = plain(next(places), name, metric)
        show(axes, lambda trial, name=name: _number(trial.params[name]))
        if getattr(ended[0].distributions[name], "log", False):
            axes.set_xscale("log")
    for axes in places:
        axes.axis("off")
    save(figure, path)


def _number(value: Any) -> Any:
    """One of the choices 64, 128 … is stored as text."""
    try:
        return float(value)
    except ValueError:
        return value
