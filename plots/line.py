"""Plots of a line: its fit to the points, and the path of its training over the loss surface."""

from typing import TYPE_CHECKING

import numpy as np

from plots.figure import TRAIN, VAL, WRONG, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def line_fit(x: np.ndarray, y: np.ndarray, weight: float, bias: float) -> "Figure":
    """Draw the points, the fitted line, and the least-squares line."""
    figure = new_figure(6.4, 4)
    axes = style_axes(figure.subplots(), "input", "target")
    axes.plot(x, y, "o", color=TRAIN, label="points")
    ends = np.array([x.min(), x.max()])
    axes.plot(ends, weight * ends + bias, color=VAL, label=f"fitted: {_formula(weight, bias)}")
    if len(set(x)) > 1:
        slope, intercept = np.polyfit(x, y, 1)
        label = f"least squares: {_formula(slope, intercept)}"
        axes.plot(ends, slope * ends + intercept, "--", color="gray", linewidth=1, label=label)
    axes.legend(frameon=False)
    return figure


def _formula(weight: float, bias: float) -> str:
    return f"{weight:,.4g} x {'-' if bias < 0 else '+'} {abs(bias):,.4g}"


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):,.10g}" if 1e-4 < value < 1e6 else f"{value:.1e}"


def loss_surface(x: np.ndarray, y: np.ndarray, path: np.ndarray) -> "Figure":
    """Draw the mean squared error over weight and bias, with the path ``(steps + 1, 2)`` of the training on it."""
    from matplotlib.colors import LogNorm

    optimum = np.array(np.polyfit(x, y, 1)) if len(set(x)) > 1 else path[-1]
    corners = np.vstack([path, optimum])
    low, high = corners.min(0), corners.max(0)
    margin = 0.15 * np.maximum(high - low, 0.1 * np.maximum(np.abs(high), 1))
    weights, biases = (np.linspace(low[axis] - margin[axis], high[axis] + margin[axis], 150) for axis in (0, 1))
    residuals = weights[None, :, None] * x + biases[:, None, None] - y  # (biases, weights, points)
    errors = (residuals**2).mean(-1)
    figure = new_figure(6.4, 4.6)
    axes = style_axes(figure.subplots(), "weight", "bias")
    levels = np.geomspace(max(errors.min(), 1e-9 * errors.max(), 1e-12), errors.max(), 16)
    errors = np.maximum(errors, levels[0])
    surface = axes.contourf(weights, biases, errors, levels=levels, norm=LogNorm(), cmap="Blues_r")
    figure.colorbar(surface, label="mean squared error", format=lambda value, _: _two_digits(value))
    axes.locator_params("x", nbins=5)
    label = "path of the training, a dot after each epoch" if len(path) < 50 else "path of the training"
    axes.plot(*path.T, "-o", color=VAL, markersize=3.5, linewidth=1.2, label=label)
    axes.plot(*path[0], "s", color="black", markersize=6, label="start")
    axes.plot(*optimum, "*", color=WRONG, markersize=11, label="least squares")
    axes.legend(fontsize=8)
    return figure
