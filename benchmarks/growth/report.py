"""What the measurements say: tables for people, and what a budget has against them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from benchmarks.growth.measure import Point
from benchmarks.growth.memory import Left
from benchmarks.growth.subjects import BY_HAND, OURS

STEEP = 1.15
"""How much more than its size a cost may grow, from the size before the largest to that."""
LEAK = 0.01
"""Blocks of memory a request; one that is kept by each hundredth request would be a leak."""
MANY = 10_000
"""Over how many requests at least, so that what is kept once does not count."""
RAISING = frozenset({"aborted", "taken", "late", "core", "mended", "redirected", "raised"})
"""Kinds of requests in which something is raised. Flask and SQLAlchemy leave such a request to the
garbage collector as a whole, its stack and its context, and what is ours in them goes with it."""

Costs = dict[tuple[str, int], dict[str, float]]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_size(points: Iterable[Point]) -> Costs:
    """Return what was measured by series and size, and in there by subject."""
    costs: Costs = {}
    for point in points:
        costs.setdefault((point.series.name, point.size), {})[point.who] = point.cost
    return costs


def growth_table(points: Sequence[Point], unit: str) -> str:
    """Return the costs of one topic's series, in whole and for each thing."""
    things = points[0].series.things
    head = ["series", things, *(f"{who}, {unit}" for who in (BY_HAND, OURS))]
    head += [f"by hand, of {things} one", f"ours, of {things} one", "ours / by hand"]
    rows = [
        [
            name,
            f"{size:,}",
            *(f"{cost[who]:,.0f}" for who in (BY_HAND, OURS)),
            *(f"{cost[who] / size:,.1f}" for who in (BY_HAND, OURS)),
            f"{cost[OURS] / cost[BY_HAND]:.2f}",
        ]
        for (name, size), cost in by_size(points).items()
    ]
    return table(head, rows)


def steepness(points: Sequence[Point], who: str) -> dict[str, float]:
    """Return by series how much faster than its size the cost grows between its largest sizes."""
    found = {}
    for name, group in groupby(by_size(points).items(), key=lambda item: item[0][0]):
        ((_, small), below), ((_, large), above) = list(group)[-2:]
        found[name] = (above[who] / below[who]) / (large / small)
    return found


def growth_problems(points: Sequence[Point]) -> list[str]:
    """Tell of the series in which ours grows faster than its size, and than it does by hand."""
    by_hand = steepness(points, BY_HAND)
    return [
        f"{points[0].series.topic}, {name}: grows {steep:.2f} times as much as the size does,"
        f" by hand {by_hand[name]:.2f} times"
        for name, steep in steepness(points, OURS).items()
        if steep > STEEP * max(1.0, by_hand[name])
    ]


def memory_table(left: Iterable[Left]) -> str:
    """Return how memory grows."""
    head = ["requests", "who", "how many", "MiB before", "MiB after", "blocks a request"]
    mebibyte = 2**20
    rows = [
        [
            one.kind,
            one.who,
            f"{one.looks[-1].requests:,}",
            *(f"{look.resident / mebibyte:.1f}" for look in (one.looks[0], one.looks[-1])),
            f"{one.blocks_per_request:.4f}",
        ]
        for one in left
        if one.looks
    ]
    return table(head, rows)


def garbage_by_kind(left: Iterable[Left]) -> dict[str, dict[str, float]]:
    """Return the garbage of a request by its kind, and in there by subject."""
    found: dict[str, dict[str, float]] = {}
    for one in left:
        found.setdefault(one.kind, {})[one.who] = one.garbage
    return found


def garbage_table(left: Iterable[Left]) -> str:
    """Return how many objects are left to the garbage collector."""
    rows = [
        [kind, f"{garbage[BY_HAND]:.2f}", f"{garbage[OURS]:.2f}"]
        for kind, garbage in garbage_by_kind(left).items()
    ]
    return table(["request", f"{BY_HAND}, objects", f"{OURS}, objects"], rows)


def memory_problems(left: Sequence[Left]) -> list[str]:
    """Tell of memory that grows, and of garbage that Flask alone would not leave."""
    found = [
        f"{one.kind}, {one.who}: {one.blocks_per_request:.3f} blocks are kept of each request"
        for one in left
        if one.blocks_per_request > LEAK and one.looks[-1].requests >= MANY
    ]
    found += [
        f"{kind}: {garbage[OURS]:.2f} objects are left to the garbage collector, by hand"
        f" {garbage[BY_HAND]:.2f}"
        for kind, garbage in garbage_by_kind(left).items()
        if kind not in RAISING and garbage[OURS] > garbage[BY_HAND]
    ]
    return found
