"""The confusion matrix: which true class was predicted as which."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from worker.evaluation.measure import Confusion, Floats
from worker.evaluation.pictures.rendering import BLUE, PALE, Picture, picture

MAX_CLASSES = 50
_MAX_NAME_LENGTH = 24
_SHARES = LinearSegmentedColormap.from_list("shares", ["#ffffff", "#9ecae1", BLUE, "#00304d"])


def draw_confusion_matrix(confusion: Confusion, title: str = "Confusion matrix") -> Picture:
    """Draw the confusion matrix: cells hold counts, colours the share of the true class.

    Beyond `MAX_CLASSES` classes, the rarest are drawn together.
    """
    shown = _with_rarest_together(confusion)
    counts = np.array(shown.counts, np.int64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def draw(figure: Figure, can_draw: Callable[[str], bool]) -> None:
        names = _names(shown.labels, can_draw)
        cell = max(0.5, 0.1 + 0.09 * len(str(counts.max(initial=0))))
        names_width = max(map(_width, names))
        axes, beside = _square(figure, max(2.8, cell * len(names)), names_width)
        edges = np.arange(len(names) + 1) - 0.5
        image = axes.pcolormesh(
            edges, edges, shares, cmap=_SHARES, vmin=0, vmax=1, edgecolors=PALE, linewidth=0.4
        )
        axes.invert_yaxis()
        _write_counts(axes, counts, shares)
        _label_cells(axes, names, is_turned=_is_turned(names_width))
        axes.set_title(title, loc="left", fontsize=13)
        bar = figure.colorbar(image, cax=beside)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
        bar.set_label("share of the true class", fontsize=10)
        bar.outline.set_visible(False)

    return picture(draw)


def _square(figure: Figure, side: float, names_width: float) -> tuple[Axes, Axes]:
    """Lay out a square with names to the left and below it; return it and what is beside it.

    Lengths are in inches. The layout is computed here, since matplotlib's own measures every
    number in every cell.
    """
    left, top, right = names_width + 0.65, 0.45, 1.15
    bottom = _height_of_turned(names_width) + 0.5
    width, height = left + side + right, bottom + side + top
    figure.set_size_inches(width, height)
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    beside = figure.add_axes(
        ((left + side + 0.15) / width, bottom / height, 0.2 / width, side / height)
    )
    axes.set_ylabel("true", fontsize=11)
    axes.yaxis.set_label_coords(-(names_width + 0.3) / side, 0.5)
    axes.set_xlabel("predicted", fontsize=11)
    return axes, beside


def _label_cells(axes: Axes, names: Sequence[str], is_turned: bool) -> None:
    ticks = np.arange(len(names))
    axes.set_xticks(
        ticks,
        names,
        rotation=45 if is_turned else 0,
        ha="right" if is_turned else "center",
        rotation_mode="anchor" if is_turned else "default",
        fontsize=9,
    )
    axes.set_yticks(ticks, names, fontsize=9)
    axes.tick_params(length=0)


def _width(name: str) -> float:
    """Return how many inches a name takes at 9 points."""
    return float(TextPath((0, 0), name, size=9).get_extents().width) / 72


def _is_turned(names_width: float) -> bool:
    return names_width > 0.4


def _height_of_turned(names_width: float) -> float:
    return 0.15 + names_width * 0.71 if _is_turned(names_width) else 0.15


def _write_counts(axes: Axes, counts: NDArray[np.int64], shares: Floats) -> None:
    """Write each count that is not zero, in the ink that its cell's colour lets through."""
    for row, column in np.argwhere(counts > 0):
        axes.text(
            float(column),
            float(row),
            str(counts[row, column]),
            ha="center",
            va="center",
            fontsize=11 if len(counts) <= 4 else 9,
            color="white" if shares[row, column] > 0.6 else "black",
        )


def _with_rarest_together(confusion: Confusion) -> Confusion:
    counts = np.array(confusion.counts, np.int64)
    if len(counts) <= MAX_CLASSES:
        return confusion
    by_size = np.argsort(-(counts.sum(axis=1) + counts.sum(axis=0)), kind="stable")
    kept = np.sort(by_size[: MAX_CLASSES - 1])
    group = np.full(len(counts), MAX_CLASSES - 1)
    group[kept] = np.arange(MAX_CLASSES - 1)
    merged = np.zeros((MAX_CLASSES, MAX_CLASSES), np.int64)
    np.add.at(merged, (group[:, None], group[None, :]), counts)
    rest = f"{len(counts) - len(kept)} others"
    return Confusion(
        (*(confusion.labels[place] for place in kept), rest),
        tuple(tuple(line) for line in merged.tolist()),
    )


def _names(labels: Sequence[str], can_draw: Callable[[str], bool]) -> list[str]:
    """Return names that fit; a label that cannot be drawn becomes its number in the report."""
    names = []
    for number, label in enumerate(labels):
        name = " ".join(label.split()) or "(empty)"
        name = name if can_draw(name) else f"class {number}"
        cut = name if len(name) <= _MAX_NAME_LENGTH else name[: _MAX_NAME_LENGTH - 1] + "…"
        names.append(cut.replace("$", r"\$"))  # Dollars would start a formula.
    return names
