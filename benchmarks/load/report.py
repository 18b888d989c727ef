"""What the rounds say, as a table in Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.load.client import Round

HEAD = (
    "view",
    "who",
    "requests/s",
    "p50, ms",
    "p99, ms",
    "connection held: mean, ms",
    "p99, ms",
)


def percentile(values: Sequence[float], part: float) -> float:
    """Return the smallest value that is not exceeded by that part of all values."""
    ordered = sorted(values)
    return ordered[max(math.ceil(part * len(ordered)) - 1, 0)]


def row(view: str, who: str, rounds: Iterable[Round]) -> list[str]:
    """Return a line: the median of the rounds' throughputs, and what all their requests took."""
    rounds = list(rounds)
    latencies = [latency * 1000 for one in rounds for latency in one.latencies]
    held = [seconds * 1000 for one in rounds for seconds in one.held]
    return [
        view,
        who,
        f"{statistics.median(one.throughput for one in rounds):.0f}",
        f"{percentile(latencies, 0.5):.1f}",
        f"{percentile(latencies, 0.99):.1f}",
        f"{statistics.fmean(held):.2f}",
        f"{percentile(held, 0.99):.2f}",
    ]


def table(found: Mapping[tuple[str, str], Iterable[Round]]) -> str:
    """Return all that was found, by view and subject."""
    lines = [list(HEAD), ["---", "---"] + ["---:"] * (len(HEAD) - 2)]
    lines += [row(view, who, rounds) for (view, who), rounds in found.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
