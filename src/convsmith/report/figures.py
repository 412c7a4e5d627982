"""Numbers to inline SVG: readable in grey, on a phone, and on a light or a dark page.

Text and axes are drawn in one sentinel colour that becomes ``currentColor``, so the page decides; series differ in
colour (Okabe-Ito), dash and marker, so they stay apart without colour. Text stays text and takes the page's font.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

#: side in pixels at which images are shown; those of at most PIXELS show every pixel as a square
SIDE, PIXELS = 320, 64
_INK = "#010203"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#777777")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
_MARKERS = "osD^vPX*"
#: clouds overlap, so they differ in brightness and filling too
_CLOUDS: tuple[Mapping[str, Any], ...] = (
    {"marker": "o", "color": "#56b4e9", "markersize": 5.0, "markeredgewidth": 0, "alpha": 0.6},
    {"marker": "x", "color": "#d55e00", "markersize": 4.0, "markeredgewidth": 1.0},
    {"marker": "^", "color": _INK, "markersize": 4.5, "markerfacecolor": "none", "markeredgewidth": 0.8},
    {"marker": "s", "color": "#cc79a7", "markersize": 4.0, "markeredgewidth": 0},
    {"marker": "+", "color": "#009e73", "markersize": 5.0, "markeredgewidth": 1.0},
    {"marker": "D", "color": "#8c6d31", "markersize": 4.0, "markerfacecolor": "none", "markeredgewidth": 0.8},
)


@dataclass(frozen=True)
class Series:
    """A curve: ``x`` and ``y`` of equal length, with ``low`` and ``high`` where there is an interval."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "convsmith",
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "axes.grid": False,
    "font.family": "sans-serif",
}


@contextmanager
def _axes(width: float, height: float, **named: str) -> Iterator[Any]:
    """Give axes in this page's style with their labels; `_svg` of them, inside the block, is the figure."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot(**named)
        axes.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
        yield axes


def with_own_identifiers(svg: str, number: int) -> str:
    """Return a figure whose identifiers carry ``number``, so that equal figures can stand on one page."""
    salt = re.search(r'\bid="(f[0-9a-f]{8})-', svg)
    return svg.replace(f"{salt.group(1)}-", f"{salt.group(1)}-{number}-") if salt else svg


def _svg(axes: Any) -> str:
    buffer = io.StringIO()
    with warnings.catch_warnings():  # text stays text: what draws it is not matplotlib's font
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        axes.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    salt = "f" + hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'\bid="([^"]+)"', rf'id="{salt}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{salt}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{salt}-\1)", text)
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = text.replace(_INK, "currentColor")
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font: \1px system-ui, sans-serif", text)
    return re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', _as_wide_as_the_page, text, count=1)


def _as_wide_as_the_page(size: re.Match[str]) -> str:
    return f' style="width:100%;max-width:{float(size[1]) * 1.33:.0f}px;height:auto"'


def _plain(names: Iterable[str]) -> list[str]:
    """Return names that are no formulas, whatever dollars stand in them."""
    return [name.replace("$", r"\$") for name in names]


def _legend(axes: Any, markerscale: float = 1.0) -> None:
    """Put the legend above the axes, where it hides nothing, in as many columns as fit; the figure grows with it."""
    handles, names = axes.get_legend_handles_labels()
    columns = max(1, min(len(names), int(11 * axes.figure.get_figwidth() / (max(map(len, names)) + 8))))
    rows = -(-len(names) // columns)
    axes.figure.set_figheight(axes.figure.get_figheight() + 0.19 * rows)
    look = {"fontsize": 10, "markerscale": markerscale, "columnspacing": 1.2, "handletextpad": 0.5}
    axes.legend(handles, _plain(names), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, **look)


def lines(
    series: Mapping[str, Series],
    *,
    xlabel: str,
    ylabel: str,
    logx: bool = False,
    reference: tuple[float, str] | None = None,
    diagonal: bool = False,
    counted: bool = False,
    size: tuple[float, float] = (6.0, 3.6),
) -> str:
    """Return curves as SVG.

    ``reference`` draws a named horizontal line, ``diagonal`` the line y = x; ``counted``: x has whole numbers only.
    """
    with _axes(*size, xlabel=xlabel, ylabel=ylabel) as axes:
        axes.xaxis.get_major_locator().set_params(integer=counted)
        for number, (name, curve) in enumerate(series.items()):
            colour = PALETTE[number % len(PALETTE)]
            many = len(curve.x) > 25
            axes.plot(
                curve.x,
                curve.y,
                label=name,
                color=colour,
                linestyle=_DASHES[number % len(_DASHES)],
                marker=None if many else _MARKERS[number % len(_MARKERS)],
                markersize=5,
                linewidth=1.8,
            )
            if curve.low is not None and curve.high is not None:
                if len(series) > 4 and not many:  # so many bands would hide each other
                    axes.vlines(curve.x, curve.low, curve.high, color=colour, linewidth=1.0, alpha=0.8)
                else:
                    axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
        if reference is not None:
            axes.axhline(reference[0], color=_INK, linewidth=0.8, linestyle=":", label=reference[1])
        if diagonal:
            axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":")
        axes.set_xscale("log" if logx else "linear")
        if len(series) > 1 or reference is not None:
            _legend(axes)
        return _svg(axes)


def bars(
    values: Mapping[str, tuple[float, float, float] | float],
    *,
    xlabel: str,
    reference: tuple[float, str] | None = None,
) -> str:
    """Return horizontal bars as SVG, each ``value`` or ``(value, low, high)`` with its interval drawn.

    Where all values lie close together, far from zero, points take the bars' place and the axis starts near them.
    """
    with _axes(6.0, 0.9 + 0.36 * len(values), xlabel=xlabel) as axes:
        names = _plain(values)
        triples = [value if isinstance(value, tuple) else (value, value, value) for value in values.values()]
        close = min(low for _, low, _ in triples) > 0.75 * max(high for *_, high in triples)
        for place, (middle, low, high) in enumerate(triples):
            if close:
                axes.plot(middle, place, "o", color=PALETTE[0], markersize=7)
            else:
                axes.barh(place, middle, height=0.62, color=PALETTE[0], alpha=0.8)
            if high > low:
                error = [[max(middle - low, 0)], [max(high - middle, 0)]]
                axes.errorbar(middle, place, xerr=error, color=_INK, capsize=3, linewidth=1.2)
        if reference is not None:
            axes.axvline(reference[0], color=_INK, linewidth=0.8, linestyle=":", label=reference[1])
            _legend(axes)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        return _svg(axes)


def scatter(
    points: Mapping[str, tuple[float, float]],
    *,
    xlabel: str,
    ylabel: str,
    front: Sequence[str] = (),
    logx: bool = False,
) -> str:
    """Return named points as SVG; those in ``front`` are joined in order of x (a Pareto front)."""
    from matplotlib import ticker

    with _axes(6.0, 4.0, xlabel=xlabel, ylabel=ylabel) as axes:
        for number, (name, (x, y)) in enumerate(points.items()):
            marker, letter = _MARKERS[number % len(_MARKERS)], chr(ord("a") + number % 26)
            look = {"marker": marker, "color": PALETTE[number % len(PALETTE)], "markersize": 7}
            axes.plot(x, y, linestyle="none", label=f"{letter}  {name}", **look)
            axes.annotate(letter, (x, y), xytext=(6, 4), textcoords="offset points", fontsize=9)
        if front:
            x_front, y_front = zip(*sorted(points[name] for name in front), strict=True)
            axes.plot(x_front, y_front, color=_INK, linewidth=0.9, linestyle=":", zorder=0)
        if logx:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(ticker.ScalarFormatter())
            axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        axes.margins(0.15)
        _legend(axes)
        return _svg(axes)


def groups(points: Mapping[str, np.ndarray], *, xlabel: str, ylabel: str) -> str:
    """Return clouds of points [N, 2] as SVG, one colour, marker and filling a group (an embedding)."""
    with _axes(6.0, 4.6, xlabel=xlabel, ylabel=ylabel) as axes:
        for number, (name, cloud) in enumerate(points.items()):
            look: dict[str, Any] = dict(_CLOUDS[number % len(_CLOUDS)])
            axes.plot(cloud[:, 0], cloud[:, 1], linestyle="none", label=name, **look)
        _legend(axes, markerscale=1.5)
        return _svg(axes)


def heatmap(matrix: np.ndarray, *, rows: Sequence[str], columns: Sequence[str], xlabel: str, ylabel: str) -> str:
    """Return a matrix as SVG, darker is more; cells carry their number when there are at most 400 of them."""
    values = np.asarray(matrix, dtype=float)
    with _axes(5.0, 5.0 * max(0.5, min(1.3, len(rows) / max(len(columns), 1))), xlabel=xlabel, ylabel=ylabel) as axes:
        top = float(np.nanmax(values)) if values.size else 1.0
        edges = np.arange(len(columns) + 1), np.arange(len(rows) + 1)
        axes.pcolormesh(*edges, values, cmap="Blues", vmin=min(0.0, float(np.nanmin(values))), vmax=top or 1.0)
        axes.invert_yaxis()
        rotation = 45 if max(map(len, columns), default=0) > 3 else 0
        axes.set_xticks(np.arange(len(columns)) + 0.5, _plain(columns), rotation=rotation, ha="center")
        axes.set_yticks(np.arange(len(rows)) + 0.5, _plain(rows))
        if values.size <= 400:
            digits = 0 if np.allclose(values, np.round(values)) else 2
            for (i, j), value in np.ndenumerate(values):
                if value != 0:
                    shade = "#ffffff" if value > 0.6 * top else "#111111"
                    text = f"{value:.{digits}f}"
                    axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=8, color=shade)
        return _svg(axes)


def strips(values: Mapping[str, Sequence[float]], *, xlabel: str) -> str:
    """Return one strip a name (a layer's gates by channel) as SVG; white is zero, dark is the strip's own maximum."""
    with _axes(7.0, 0.7 + 0.34 * len(values), xlabel=xlabel) as axes:
        for place, numbers in enumerate(values.values()):
            row = np.asarray(numbers, dtype=float)[None]
            edges, top = np.linspace(0, 1, row.shape[1] + 1), max(float(row.max()), 1e-12)
            axes.pcolormesh(edges, [place - 0.4, place + 0.4], row, cmap="Blues", vmin=0, vmax=top)
        axes.set_yticks(range(len(values)), _plain(values))
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set_xticks([0, 1], ["first", "last"])
        return _svg(axes)


def png(pixels: np.ndarray) -> str:
    """Return an image as base64 PNG: [H, W], [1, H, W] or [3, H, W] of floats in [0, 1]."""
    return _encoded(_picture(pixels), format="PNG")


def small(pixels: Any) -> bool:
    """Tell whether an image [..., H, W] is shown pixel by pixel."""
    return max(pixels.shape[-2:]) <= PIXELS


def photo(pixels: np.ndarray) -> str:
    """Return a photograph [C, H, W] as base64 JPEG, its larger side at most 320; a `small` one stays PNG.

    Sixty of them make at most three megabytes of a page.
    """
    if small(pixels):
        return png(pixels)
    image = _picture(pixels).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    return _encoded(image, format="JPEG", quality=82)


def _picture(pixels: np.ndarray) -> Any:
    from PIL import Image

    array = np.asarray(pixels, dtype=float)
    if array.ndim == 3:
        array = array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)
    return Image.fromarray(np.round(np.clip(array, 0, 1) * 255).astype(np.uint8))


def _encoded(image: Any, **settings: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, optimize=True, **settings)
    return base64.b64encode(buffer.getvalue()).decode()
