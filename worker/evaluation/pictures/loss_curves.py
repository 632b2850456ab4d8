"""The loss by step, of training and of validation."""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from worker.evaluation.measure import Floats
from worker.evaluation.pictures.rendering import BLUE, GREY, PALE, VERMILION, Picture, picture

Points = Sequence[tuple[int, float]]
"""Steps and losses, in the order of the steps."""


def draw_loss_curves(
    train: Points, validation: Points, best_step: int | None = None, title: str = "Loss"
) -> Picture:
    """Draw the loss by step; a point that is not finite leaves a gap.

    Args:
        train: one point a step.
        validation: a point wherever it was measured; may be empty.
        best_step: marked, if given: the checkpoint that was chosen.
        title: what the picture is of.
    """

    def draw(figure: Figure, _: Callable[[str], bool]) -> None:
        figure.set_size_inches(8, 4.5)
        figure.set_layout_engine("constrained")
        axes = figure.add_subplot()
        _draw_train(axes, _finite(train))
        _draw_validation(axes, _finite(validation))
        if best_step is not None:
            axes.axvline(best_step, color=GREY, linestyle=":", label=f"chosen: step {best_step}")
        axes.set_title(title, loc="left", fontsize=13)
        axes.set_xlabel("step", fontsize=11)
        axes.set_ylabel("loss (nats)", fontsize=11)
        axes.grid(axis="y", color=PALE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        _span_steps(axes, [step for step, _ in (*train, *validation)])
        _tell_gaps(axes, [loss for _, loss in (*train, *validation)])
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=10)

    return picture(draw)


def _draw_train(axes: Axes, points: Floats) -> None:
    """Draw a line; of many steps, a faint one with its moving mean on top."""
    steps, losses = points.T
    if not np.isfinite(losses).any():
        return
    window = len(steps) // 50
    if window < 2:
        axes.plot(steps, losses, color=BLUE, label="train", **_line(steps))
        return
    axes.plot(steps, losses, color=BLUE, linewidth=0.6, alpha=0.3)
    smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    label = f"train (mean of {window} steps)"
    axes.plot(steps[window - 1 :], smooth, color=BLUE, linewidth=1.8, label=label)


def _draw_validation(axes: Axes, points: Floats) -> None:
    steps, losses = points.T
    if np.isfinite(losses).any():
        line = _line(steps)
        axes.plot(steps, losses, color=VERMILION, linestyle="--", label="validation", **line)


def _span_steps(axes: Axes, steps: Sequence[int]) -> None:
    """Let the axis reach over all steps, those without a loss too, with whole numbers on it."""
    first, last = min(steps, default=0), max(steps, default=1)
    margin = max(0.5, 0.03 * (last - first))
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def _tell_gaps(axes: Axes, losses: Sequence[float]) -> None:
    num_missing = sum(not isfinite(loss) for loss in losses)
    if not losses or num_missing == len(losses):
        axes.set_yticks([])
    if not losses or num_missing:
        said = f"{num_missing} of {len(losses)} losses are not finite" if losses else "no losses"
        axes.set_title(said, loc="right", color=GREY, fontsize=10)


def _line(steps: Floats) -> dict[str, Any]:
    """Return how a line looks: few points are marked, or a single one would not be seen."""
    return {"linewidth": 1.8, "marker": "o" if len(steps) <= 40 else "", "markersize": 5}


def _finite(points: Points) -> Floats:
    """Return steps and losses [points, 2], NaN for a loss that cannot be drawn."""
    table = np.array(points, np.float64).reshape(-1, 2)
    return np.where(np.isfinite(table), table, np.nan)
