"""From a drawing to PNG and SVG bytes, without a display and without global state.

Matplotlib's objects are used without pyplot, whose figures are global. The same numbers give the
same bytes, given the same fonts: no dates, no random ids.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

Drawing = Callable[[Figure, Callable[[str], bool]], None]
"""Draws on a figure; may ask of a text whether its letters can be drawn there."""

# Blue and vermilion of Okabe and Ito's palette, which the colour-blind tell apart.
BLUE, VERMILION, GREY, PALE = "#0072B2", "#D55E00", "#595959", "#d9d9d9"
_DOTS_PER_INCH = 120
_FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Noto Sans",
)


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, in two formats."""

    png: bytes
    svg: bytes


def picture(draw: Drawing) -> Picture:
    """Draw once for each format: an SVG's letters stay text, which the viewer's fonts draw."""
    return Picture(
        png=_rendered(draw, _can_draw, "png", {"Software": None}),
        svg=_rendered(draw, lambda _: True, "svg", {"Date": None, "Creator": None}),
    )


def _rendered(
    draw: Drawing, can_draw: Callable[[str], bool], kind: str, metadata: dict[str, Any]
) -> bytes:
    settings: dict[Any, Any] = {
        "font.family": [*_installed_fonts(), "sans-serif"],
        "font.sans-serif": ["DejaVu Sans"],
        "svg.hashsalt": "tunesmith",
        "svg.fonttype": "none",
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The viewer's fonts have what those here lack.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        figure = Figure()
        canvas = FigureCanvasSVG(figure) if kind == "svg" else FigureCanvasAgg(figure)
        draw(figure, can_draw)
        content = io.BytesIO()
        canvas.print_figure(content, format=kind, dpi=_DOTS_PER_INCH, metadata=metadata)
    return content.getvalue()


def _can_draw(text: str) -> bool:
    return _letters().issuperset(map(ord, text))


@cache
def _letters() -> frozenset[int]:
    """Return the code points that the installed fonts have."""
    maps = [
        font_manager.get_font(font_manager.findfont(name)).get_charmap()
        for name in _installed_fonts()
    ]
    return frozenset().union(*maps)


def _installed_fonts() -> list[str]:
    installed = set(font_manager.fontManager.get_font_names())
    return [name for name in _FONTS if name in installed]
