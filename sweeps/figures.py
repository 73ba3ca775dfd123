"""The figure of a sweep: the study of a search, or the metric over the swept settings."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from plots.figure import TRAIN, VAL, WRONG, literal, new_figure, style_axes
from runs.format import is_percentage
from sweeps import study
from sweeps.summary import Summary

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from optuna.trial import FrozenTrial

MAX_COMBINATIONS = 20  # in one figure
Scores = dict[tuple[str, ...], list[float]]  # values of the swept settings -> metric of each replicate


def summary_figure(summary: Summary) -> "Figure | None":
    """Draw the results of a sweep. Return None where no job has ended.

    Two settings make a heat map, one setting with numbers a line, and everything else a row for each combination.
    """
    if study.exists(summary.sweep_dir):
        return study_figure(study.open_study(summary.sweep_dir), summary.monitor)
    scores = {values: found for values, jobs in summary.groups.items() if (found := summary.scores(jobs))}
    if not scores:
        return None
    if len(summary.keys) == 2 and len(scores) > 3:
        return _heat_map(summary, scores)
    if len(summary.keys) == 1 and (numbers := _as_numbers([value for (value,) in scores])):
        return _metric_curve(summary, numbers, scores)
    return _ranking(summary, scores)


def _metric_curve(summary: Summary, numbers: list[float], scores: Scores) -> "Figure":
    """Plot the metric over the only swept setting, with the spread over the replicates."""
    figure = new_figure(6.4, 4)
    (key,) = summary.keys
    axes = style_axes(figure.subplots(), key, summary.monitor)
    _show_percent(axes.yaxis, summary.monitor)
    points = sorted(zip(numbers, scores.values(), strict=True))
    x, means = [x for x, _ in points], [statistics.mean(found) for _, found in points]
    if summary.replicates:
        spreads = [statistics.stdev(found) if len(found) > 1 else 0.0 for _, found in points]
        label = f"mean ± standard deviation over {', '.join(summary.replicates)}"
        axes.errorbar(x, means, spreads, color=TRAIN, marker="o", markersize=4, linewidth=1.2, capsize=3, label=label)
    else:
        axes.plot(x, means, color=TRAIN, marker="o", markersize=4, linewidth=1.2)
    (best,), found = next(iter(scores.items()))
    label = literal(f"best: {key} = {best}")
    axes.plot(numbers[0], statistics.mean(found), "o", markersize=9, color=WRONG, label=label)
    if min(x) > 0 and max(x) >= 30 * min(x):
        axes.set_xscale("log")
    axes.legend(frameon=False)
    return figure


def _ranking(summary: Summary, scores: Scores) -> "Figure":
    """Draw a row for each of the best combinations, with a dot for each replicate and a bar at their mean."""
    shown = list(scores.items())[:MAX_COMBINATIONS]
    figure = new_figure(7, 1.2 + 0.32 * len(shown))
    mean = f" (bar: mean over {', '.join(summary.replicates)})" if summary.replicates else ""
    axes = style_axes(figure.subplots(), summary.monitor + mean, "")
    _show_percent(axes.xaxis, summary.monitor)
    for row, (_, found) in enumerate(shown):
        axes.plot(found, [row] * len(found), "o", color=TRAIN, markersize=4, alpha=0.5)
        axes.plot(statistics.mean(found), row, "|", color=VAL, markersize=14, markeredgewidth=2.5)
    keys = [key.rpartition(".")[2] for key in summary.keys]
    names = [" ".join(map("=".join, zip(keys, values, strict=True))) for values, _ in shown]
    axes.set_yticks(range(len(shown)), [literal(name) or "all" for name in names])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    return figure


def _heat_map(summary: Summary, scores: Scores) -> "Figure":
    """Draw the mean metric as a heat map over the two swept settings."""
    rows, columns = (_sorted_values([values[place] for values in scores]) for place in (0, 1))
    table = [
        [statistics.mean(scores[row, column]) if (row, column) in scores else math.nan for column in columns]
        for row in rows
    ]
    figure = new_figure(2.5 + 0.75 * len(columns), 1.6 + 0.5 * len(rows))
    axes = figure.subplots()
    cmap = "Blues" if summary.higher_is_better else "Blues_r"
    image: Any = axes.imshow(table, cmap=cmap, aspect="auto")
    _show_percent(figure.colorbar(image, label=literal(summary.monitor)).ax.yaxis, summary.monitor)
    axes.set_xticks(range(len(columns)), list(map(literal, columns)))
    axes.set_yticks(range(len(rows)), list(map(literal, rows)))
    axes.set_xlabel(literal(summary.keys[1]))
    axes.set_ylabel(literal(summary.keys[0]))
    for y, cells in enumerate(table):
        for x, value in enumerate(cells):
            if not math.isnan(value):
                dark = image.norm(value) > 0.6 if summary.higher_is_better else image.norm(value) < 0.4
                style: dict[str, Any] = {"color": "white" if dark else "black", "ha": "center", "va": "center"}
                text = f"{100 * value:.2f} %" if is_percentage(summary.monitor) else f"{value:.3g}"
                axes.text(x, y, text, fontsize=8, **style)
    return figure


def study_figure(search: "optuna.Study", metric: str) -> "Figure | None":
    """Draw the trials in their order with the best so far, the importances, and the metric over each parameter."""
    from optuna.trial import TrialState

    trials = search.get_trials(deepcopy=False)
    ended = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED and trial.value is not None]
    if not ended:
        return None
    distributions, importances = ended[0].distributions, study.importances(search)
    panels = 1 + bool(importances) + len(distributions)
    columns = 3 if panels > 4 else min(panels, 2)
    rows = -(-panels // columns)
    figure = new_figure(4.2 * columns, 3.4 * rows)
    places = iter(figure.subplots(rows, columns, squeeze=False).flat)

    axes = style_axes(next(places), "trial", metric)
    _show_percent(axes.yaxis, metric)
    _plot_best_so_far(axes, ended, maximize=search.direction.name == "MAXIMIZE")
    _plot_trials(axes, ended, pruned, [search.best_trial], lambda trial: trial.number)
    axes.locator_params("x", integer=True)
    axes.legend(frameon=False, fontsize=8)
    if importances:
        axes = style_axes(next(places), "importance", "")
        names = list(map(literal, importances))
        axes.barh(range(len(names)), list(importances.values()), 0.5, color=TRAIN)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
    for name, distribution in distributions.items():
        axes = style_axes(next(places), name, metric)
        _show_percent(axes.yaxis, metric)
        _plot_parameter(axes, ended, pruned, [search.best_trial], name)
        if getattr(distribution, "log", False):
            axes.set_xscale("log")
    for axes in places:
        axes.axis("off")
    return figure


def _plot_best_so_far(axes: "Axes", ended: Sequence["FrozenTrial"], maximize: bool) -> None:
    values: list[Any] = [trial.value for trial in ended]
    best = max if maximize else min
    best_values = [best(values[: end + 1]) for end in range(len(values))]
    axes.step(
        [trial.number for trial in ended], best_values, where="post", color=VAL, linewidth=1.2, label="best so far"
    )


def _plot_parameter(
    axes: "Axes",
    ended: Sequence["FrozenTrial"],
    pruned: Sequence["FrozenTrial"],
    best: Sequence["FrozenTrial"],
    name: str,
) -> None:
    """Plot the metric over a parameter. Optuna stores the choices 64, 128 … as text."""
    # A search that was resumed with other settings has trials without this parameter.
    ended, pruned, best = ([t for t in trials if name in t.params] for trials in (ended, pruned, best))
    values = _sorted_values([str(trial.params[name]) for trial in (*ended, *pruned)])
    if _as_numbers(values):
        _plot_trials(axes, ended, pruned, best, lambda trial: float(trial.params[name]))
        return
    place_of = {value: place for place, value in enumerate(values)}
    _plot_trials(axes, ended, pruned, best, lambda trial: place_of[str(trial.params[name])])
    axes.set_xticks(range(len(values)), list(map(literal, values)))


def _plot_trials(
    axes: "Axes",
    ended: Sequence["FrozenTrial"],
    pruned: Sequence["FrozenTrial"],
    best: Sequence["FrozenTrial"],
    x_of: Callable[["FrozenTrial"], float],
) -> None:
    styles: list[tuple[Sequence[FrozenTrial], str, dict[str, Any]]] = [
        (pruned, "x", {"color": "#9a9a9a", "label": "pruned"}),
        (ended, "o", {"color": TRAIN, "markersize": 4, "label": "trained"}),
        (best, "o", {"color": WRONG, "markersize": 8, "label": "best"}),
    ]
    for trials, marker, style in [one for one in styles if one[0]]:
        y: list[Any] = [trial.value for trial in trials]
        axes.plot([x_of(trial) for trial in trials], y, marker, **style)


def _show_percent(axis: "Axis", metric: str) -> None:
    from matplotlib.ticker import PercentFormatter

    if is_percentage(metric):
        axis.set_major_formatter(PercentFormatter(1, symbol=" %"))


def _sorted_values(values: Sequence[str]) -> list[str]:
    """Return the distinct values, sorted where all are numbers, else in their order."""
    distinct = list(dict.fromkeys(values))
    numbers = dict(zip(distinct, _as_numbers(distinct) or range(len(distinct)), strict=True))
    return sorted(distinct, key=numbers.__getitem__)


def _as_numbers(values: Sequence[str]) -> list[float]:
    """Return the values as finite numbers; an empty list if one of them is not."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []
