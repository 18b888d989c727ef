"""Draws what was measured, as SVG: text, small, and the same again from the same numbers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.growth.measure import Point
from benchmarks.growth.memory import LASTING, Left
from benchmarks.growth.report import garbage_by_kind
from benchmarks.growth.subjects import BY_HAND, OURS, WHO

STYLES = {BY_HAND: {"color": "0.55", "marker": "o"}, OURS: {"color": "tab:blue", "marker": "s"}}


def _pyplot() -> Any:
    # Imported here, because nobody needs matplotlib who does not draw.
    pyplot = importlib.import_module("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    # Letters stay letters, and what is given a name gets the same one each time.
    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "growth", "font.size": 8})
    return pyplot


def _figure(columns: int, width: float = 2.6, **options: Any) -> tuple[Any, list[Any]]:
    size = (width * columns + 0.6, 2.8)
    figure, axes = _pyplot().subplots(1, columns, figsize=size, squeeze=False, **options)
    return figure, list(axes[0])


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the day and the release of matplotlib, which would change the file each time.
    figure.savefig(path, metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    _pyplot().close(figure)
    # Lines without blanks at their ends, for those who check that.
    lines = [line.rstrip() for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")


def draw_growth(points: Sequence[Point], unit: str, path: Path) -> None:
    """Draw the cost of each series by its size, both on scales where a straight line is a power."""
    names = list(dict.fromkeys(point.series.name for point in points))
    figure, axes = _figure(len(names), sharey=True)
    for name, axis in zip(names, axes, strict=True):
        for who in WHO:
            mine = [point for point in points if (point.series.name, point.who) == (name, who)]
            sizes, costs = [point.size for point in mine], [point.cost for point in mine]
            axis.loglog(sizes, costs, label=who, markersize=4, **STYLES[who])
        axis.set(title=name, xlabel=points[0].series.things)
        axis.minorticks_off()  # each of them would be an element of its own
        axis.grid(visible=True, alpha=0.3)
    axes[0].set_ylabel(unit)
    axes[0].legend()
    _save(figure, path)


def draw_memory(left: Sequence[Left], path: Path) -> None:
    """Draw the memory that a process takes by the requests that it has answered."""
    figure, axes = _figure(len(LASTING), sharey=True)
    for kind, axis in zip(LASTING, axes, strict=True):
        for one in left:
            if one.kind == kind:
                requests = [look.requests for look in one.looks]
                resident = [look.resident / 2**20 for look in one.looks]
                axis.plot(requests, resident, label=one.who, markersize=3, **STYLES[one.who])
        axis.set(title=f"requests: {kind}", xlabel="requests answered")
        axis.set_ylim(bottom=0)
        axis.minorticks_off()  # each of them would be an element of its own
        axis.grid(visible=True, alpha=0.3)
    axes[0].set_ylabel("resident memory, MiB")
    axes[0].legend(loc="lower right")
    _save(figure, path)


def draw_garbage(left: Sequence[Left], path: Path) -> None:
    """Draw how many objects each kind of request leaves to the garbage collector."""
    figure, (axis,) = _figure(1, width=5.4)
    garbage = garbage_by_kind(left)
    for number, who in enumerate(WHO):
        places = [place + 0.4 * number for place in range(len(garbage))]
        counts = [found[who] for found in garbage.values()]
        axis.barh(places, counts, height=0.4, label=who, color=STYLES[who]["color"])
    axis.set_yticks([place + 0.2 for place in range(len(garbage))], list(garbage))
    axis.invert_yaxis()
    axis.set_xlabel("objects a request")
    axis.legend()
    _save(figure, path)
