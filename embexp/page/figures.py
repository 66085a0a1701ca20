"""Figures of a run as SVG that stands in a page: text stays text, colours are the page's, nothing is loaded.

matplotlib draws; its SVG is then made to fit, since the page allows no style attributes, shows several figures in one
document and is read in light and dark. Called by `page.content`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SVG, LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# colours that matplotlib draws with, and the page's own that they stand for
COLOURS = {"tuned": "#000001", "base": "#000002", "bm25": "#000003", "ink": "#000004", "line": "#000005"}
MARKS = {"tuned": ("o", "-"), "base": ("s", "--"), "bm25": ("^", ":")}  # not told apart by colour alone
NAMES = {"tuned": "tuned", "base": "base", "bm25": "BM25"}
LOOK: dict[Any, Any] = {  # the keys are literals to mypy
    "svg.fonttype": "none", "svg.hashsalt": "embexp", "font.size": 10, "axes.titlesize": 10, "legend.fontsize": 9,
    "axes.edgecolor": COLOURS["line"], "axes.labelcolor": COLOURS["ink"], "axes.titlecolor": COLOURS["ink"],
    "text.color": COLOURS["ink"], "xtick.color": COLOURS["ink"], "ytick.color": COLOURS["ink"],
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": COLOURS["line"], "grid.linewidth": 0.5, "legend.frameon": False,
}  # fmt: skip
INCHES = (5.0, 3.0)  # 360 units wide, so that its text can be read on a telephone
KEPT = {  # of matplotlib's styles, what is an attribute of SVG too; fonts are the page's
    "fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-dashoffset", "stroke-opacity",
    "stroke-linecap", "stroke-linejoin", "opacity", "text-anchor",
}  # fmt: skip
PLACES = {"d", "x", "y", "transform", "points"}  # of which a hundredth of a pixel is enough


@dataclass(frozen=True)
class Point:
    """A score and the ends of its interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


def at_every_k(name: str, measure: str, arms: Mapping[str, Mapping[int, Point]], *, says: str) -> Markup:
    """A measure of each arm by k. name: of the figure, unlike any other's on the page. says: the same in words."""
    with matplotlib.rc_context(LOOK):
        figure, axes = _figure()
        ks = sorted({k for points in arms.values() for k in points})
        for place, (arm, points) in enumerate(arms.items()):
            x = [ks.index(k) + (place - (len(arms) - 1) / 2) * 0.12 for k in points]
            marker, line = MARKS[arm]
            axes.errorbar(
                x, [point.value for point in points.values()], yerr=_whiskers(list(points.values())), marker=marker,
                linestyle=line, color=COLOURS[arm], label=NAMES[arm], markersize=5, capsize=2, elinewidth=1,
            )  # fmt: skip
        axes.set_xticks(range(len(ks)), [str(k) for k in ks])
        axes.set(xlabel="k", title=f"{measure}@k", ylim=(0, 1.02))
        axes.legend(loc="best")
        return _inline(figure, name, f"{measure} at every k", says)


def deltas(name: str, measure: str, points: Mapping[int, Point], *, says: str) -> Markup:
    """Tuned minus base by k, with the interval that the verdict rests on."""
    with matplotlib.rc_context(LOOK):
        figure, axes = _figure()
        shown = list(points.values())
        axes.axhline(0, color=COLOURS["ink"], linewidth=1)
        axes.errorbar(
            range(len(shown)), [point.value for point in shown], yerr=_whiskers(shown), marker="o", linestyle="none",
            color=COLOURS["tuned"], capsize=4, elinewidth=1.5,
        )  # fmt: skip
        axes.set_xticks(range(len(points)), [str(k) for k in points])
        axes.set(xlabel="k", title=f"{measure}@k: tuned minus base", xlim=(-0.5, len(points) - 0.5))
        return _inline(figure, name, f"{measure}: tuned minus base at every k", says)


def beside(name: str, metric: str, points: Mapping[str, Point], *, says: str) -> Markup:
    """What each arm scores more or less than the base, with the interval, a line each; the first is on top."""
    with matplotlib.rc_context(LOOK):
        figure, axes = _figure()
        figure.subplots_adjust(left=0.3)  # for the arms' names
        shown, lines = list(points.values()), range(len(points), 0, -1)
        axes.axvline(0, color=COLOURS["ink"], linewidth=1)
        axes.errorbar(
            [point.value for point in shown], list(lines), xerr=_whiskers(shown), marker="o", linestyle="none",
            color=COLOURS["tuned"], capsize=4, elinewidth=1.5,
        )  # fmt: skip
        axes.set_yticks(list(lines), list(points))
        axes.set(title=f"{metric} on test, minus base", ylim=(0.5, len(points) + 0.5))
        return _inline(figure, name, f"{metric} of each arm, minus the base's", says)


def curve(name: str, title: str, points: Sequence[tuple[int, float]], *, best: int | None, says: str) -> Markup:
    """A value by training step. best: the step whose weights were kept."""
    with matplotlib.rc_context(LOOK):
        figure, axes = _figure()
        marker = "o" if len(points) <= 30 else None
        axes.plot(*zip(*points, strict=True), color=COLOURS["tuned"], marker=marker, markersize=3.5, linewidth=1.5)
        axes.set(xlabel="step", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if best is not None:
            axes.axvline(best, color=COLOURS["ink"], linewidth=1, linestyle=":")
            early = best <= sum(axes.get_xlim()) / 2
            axes.annotate(
                "kept", (best, 0.03), xycoords=("data", "axes fraction"), ha="left" if early else "right",
                xytext=(3 if early else -3, 0), textcoords="offset points",
            )  # fmt: skip
        return _inline(figure, name, title, says)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=INCHES)
    figure.patch.set_visible(False)
    figure.subplots_adjust(left=0.13, right=0.985, top=0.9, bottom=0.17)  # matplotlib's own layout draws all twice
    axes = figure.subplots()
    axes.patch.set_visible(False)
    return figure, axes


def _whiskers(points: Sequence[Point]) -> list[list[float]] | None:
    if any(point.low is None or point.high is None for point in points):
        return None
    below = [max(0.0, point.value - point.low) for point in points if point.low is not None]
    return [below, [max(0.0, point.high - point.value) for point in points if point.high is not None]]


def _inline(figure: Figure, name: str, title: str, says: str) -> Markup:
    """The figure as an <svg> element that may stand in a page beside others."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", LINK)
    root = ElementTree.fromstring(file.getvalue())
    colours = {drawn: f"var(--{own})" for own, drawn in COLOURS.items()}
    linked = {found for element in root.iter() for found in re.findall(r"#([\w-]+)", " ".join(element.attrib.values()))}
    for element in root.iter():
        _as_attributes(element, colours, name, linked)
        for child in list(element):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                element.remove(child)
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    for place, (tag, text) in enumerate((("title", title), ("desc", says))):
        element = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(place, element)
    return Markup(re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode")))


def _as_attributes(element: ElementTree.Element, colours: Mapping[str, str], name: str, linked: set[str]) -> None:
    """Its style as attributes, its colours as the page's, its id apart from those of other figures."""
    for style in element.attrib.pop("style", "").split(";"):
        key, _, value = style.partition(":")
        if key.strip() in KEPT:
            element.set(key.strip(), value.strip())
    for key, value in list(element.attrib.items()):
        if key == "id":
            if value in linked:
                element.set(key, f"{name}-{value}")
            else:
                del element.attrib[key]
        elif key in ("fill", "stroke"):
            element.set(key, colours.get(value, value))
        elif key in (f"{{{LINK}}}href", "clip-path"):
            element.set(key, value.replace("#", f"#{name}-"))
        elif key in PLACES:
            element.set(key, re.sub(r"(\d+\.\d{2})\d+", r"\1", value))
    if element.tag == f"{{{SVG}}}text" and "fill" not in element.attrib:
        element.set("fill", "var(--ink)")
