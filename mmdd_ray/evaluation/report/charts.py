"""Charts of the report, as SVG to stand inside an HTML page: lines and text take the page's colour."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH_IN = 5.4  # 390 px in the page: as wide as a phone, half as wide as the page on a desktop
BAR_IN = 0.42
PANEL_IN = 1.25
LINES_IN = 3.1
SQUARE_IN = 4.6
COLOURS = ("#3b7ddd", "#e8862e", "#2fa37c", "#a764d6", "#8b95a5", "#d9534f", "#c9a227")
BACKGROUND: dict[str, Any] = {"ms": 3.0, "color": COLOURS[4], "alpha": 0.55}  # the first kind of points
PNG_DPI = 150  # 810 px wide
INK = "#010203"  # stands for the page's text colour, which SVG calls currentColor

_STYLE: dict[Any, Any] = {  # Any, because matplotlib types the names of its settings one by one
    "svg.fonttype": "none",  # text stays text: small, sharp and searchable
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    # svg.hashsalt is set by each chart: its ids are the same every time, and in no other chart of the page
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
    **{f"axes.{part}": INK for part in ("edgecolor", "labelcolor", "titlecolor")},
}


class Chart(str):
    """A chart as SVG."""

    figure: Figure

    def png(self) -> bytes:
        """The same as a picture on white, for those who show no SVG."""
        file = io.BytesIO()
        self.figure.savefig(file, format="png", dpi=PNG_DPI, facecolor="white")
        return file.getvalue()


def bars(
    labels: Sequence[str],
    means: Sequence[float],
    stds: Sequence[float],
    chance: float,
    what: str,
    draws: Sequence[Sequence[float]] = (),
) -> Chart:
    """Horizontal bars of mean scores in percent, the first on top, with error bars; chance as a line.

    ``draws`` are means of each draw of a bar, which are shown as dots on it.
    """
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "bars"}):
        figure, (axes,) = _figure(1, max(LINES_IN, 0.7 + BAR_IN * len(labels)))
        y = np.arange(len(labels))
        colours = [COLOURS[0], *[COLOURS[4]] * (len(labels) - 1)]
        axes.barh(y, means, xerr=stds, height=0.62, color=colours, ecolor=INK, error_kw={"lw": 1}, capsize=3)
        reach = max(mean + std for mean, std in zip(means, stds, strict=True)) or 1.0
        for i, (mean, std) in enumerate(zip(means, stds, strict=True)):
            axes.text(mean + std + 0.02 * reach, i, f"{mean:.1f}", va="center")
        for i, draw_means in enumerate(draws):
            axes.plot(draw_means, [i] * len(draw_means), "o", color=INK, ms=4, mfc="none")
        axes.axvline(chance, color=INK, lw=1, ls=":")
        axes.set(yticks=y, yticklabels=labels, xlabel=f"{what}, % (dotted: chance)", xlim=(0, 1.12 * reach))
        axes.set_ylim(len(labels) - 0.4, -0.5)  # the first on top
        axes.tick_params(axis="y", length=0)
        return _svg(figure)


def panels(step: Sequence[float], curves: Mapping[str, Sequence[float | None]]) -> Chart:
    """One small panel for each curve over ``step``, with its own scale; None is a gap."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "panels"}):
        figure, all_axes = _figure(len(curves), 0.4 + PANEL_IN * len(curves))
        for axes, (name, values), colour in zip(all_axes, curves.items(), _cycle(len(curves)), strict=True):
            axes.plot(step, np.array(values, dtype=float), color=colour, lw=1.3)
            axes.set_title(name, loc="left", fontsize=10)
        all_axes[-1].set_xlabel("step")
        return _svg(figure)


def lines(curves: Mapping[str, Sequence[float | None]], xlabel: str, ylabel: str) -> Chart:
    """Curves over the share of the training that is done; each of its own number of points, None is a gap."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "lines"}):
        figure, (axes,) = _figure(1, LINES_IN)
        for (name, values), colour in zip(curves.items(), _cycle(len(curves)), strict=True):
            done_pct = 100 * (np.arange(len(values)) + 0.5) / len(values)
            axes.plot(done_pct, np.array(values, dtype=float), color=colour, lw=1.4, label=name)
        axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, 100))
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
        return _svg(figure)


def curves(points: Mapping[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str) -> Chart:
    """Curves of (x, y), each with points of its own."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": f"curves {xlabel} {sorted(points)} {points}"}):
        figure, (axes,) = _figure(1, LINES_IN)
        for (name, (x, y)), colour in zip(points.items(), _cycle(len(points)), strict=True):
            axes.plot(x, y, "o-", color=colour, lw=1.4, ms=3, label=name)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
        return _svg(figure)


def scatter(points: Mapping[str, Sequence[Sequence[float]]], xlabel: str, ylabel: str) -> Chart:
    """Points [x, y] of several kinds with equal scales of both axes: the first as a background, the others on top."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "scatter"}):
        figure, (axes,) = _figure(1, SQUARE_IN)
        for number, (name, own) in enumerate(points.items()):
            x, y = np.array(own, dtype=float).reshape(-1, 2).T
            look = BACKGROUND if number == 0 else {"ms": 4.2, "color": COLOURS[number % len(COLOURS)]}
            axes.plot(x, y, "o", ls="", mew=0, label=name, **look)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_aspect("equal", adjustable="datalim")
        axes.legend(
            frameon=False, labelcolor=INK, fontsize=9, ncols=2, loc="lower left", bbox_to_anchor=(0, 1)
        )
        return _svg(figure)


def against_seconds(
    timed: Mapping[str, tuple[float, float, float]], untimed: Mapping[str, float], ylabel: str
) -> Chart:
    """Scores against the seconds that a set took, on a scale from 0.

    Args:
        timed: Seconds, mean and standard deviation of the scores, by set.
        untimed: Means of sets that take no time, as horizontal lines.
    """
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "seconds"}):
        figure, (axes,) = _figure(1, LINES_IN)
        colours = _cycle(len(timed) + len(untimed))
        for (name, (seconds, mean, std)), colour in zip(timed.items(), colours, strict=False):
            axes.errorbar(
                [seconds], [mean], [std], fmt="o", color=colour, ecolor=colour, capsize=3, label=name
            )
        for (name, mean), colour in zip(untimed.items(), colours[len(timed) :], strict=True):
            axes.axhline(mean, color=colour, lw=1.2, ls="--", label=name)
        axes.set(xlabel="time to make the set, seconds", ylabel=ylabel)
        axes.margins(x=0.2)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:,g}")
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
        return _svg(figure)


def intervals(rows: Sequence[tuple[str, float, float, float]], xlabel: str) -> Chart:
    """A point with its interval for each row (label, mean, low, high), the first on top, beside a line at 0."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "intervals"}):
        figure, (axes,) = _figure(1, max(1.6, 0.7 + BAR_IN * len(rows)))
        labels, means, lows, highs = zip(*rows, strict=True)
        reach = np.abs([np.subtract(means, lows), np.subtract(highs, means)])
        y = np.arange(len(rows))
        axes.errorbar(
            means, y, xerr=reach, fmt="o", color=COLOURS[0], ecolor=INK, elinewidth=1, capsize=3, ms=5
        )
        axes.axvline(0, color=INK, lw=1, ls=":")
        axes.set(yticks=y, yticklabels=labels)
        # beside long labels the axis is shorter than its own, which has room on the left
        axes.set_xlabel(xlabel, loc="right")
        axes.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
        axes.tick_params(axis="y", length=0)
        return _svg(figure)


def described(chart: Chart, words: str) -> Chart:
    """A chart that is one picture with this description for readers who do not see it."""
    told = Chart(chart.replace("<svg ", f'<svg role="img" aria-label="{escape(words)}" ', 1))
    told.figure = chart.figure
    return told


def spectra(curves: Mapping[str, Sequence[float]]) -> Chart:
    """Singular values by their number, the largest first, both on logarithmic scales."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "spectra"}):
        figure, (axes,) = _figure(1, LINES_IN)
        for (name, values), colour in zip(curves.items(), _cycle(len(curves)), strict=True):
            axes.plot(np.arange(len(values)) + 1, values, color=colour, lw=1.4, marker=".", ms=3, label=name)
        axes.set(xlabel="number of the singular value", ylabel="singular value", xscale="log", yscale="log")
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
        return _svg(figure)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _figure(rows: int, height_in: float) -> tuple[Figure, list[Axes]]:
    """A figure with ``rows`` axes below each other; without pyplot, which keeps figures alive."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for each in axes:
        each.grid(axis="x" if rows == 1 else "y", color=INK, alpha=0.12, lw=0.6)
        each.set_axisbelow(True)
    return figure, list(axes)


def _svg(figure: Figure) -> Chart:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # matplotlib's names of groups would be there twice in a page with two charts; nothing refers to them
    chart = Chart(re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg))
    chart.figure = figure
    return chart
