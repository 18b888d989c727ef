"""From what each round has shown, the figures that are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.contenders import CONTENDERS

Key = tuple[str, str]
"""A contender's name, and a workload's."""
Samples = Mapping[Key, Sequence[float]]
"""What a request has cost, round by round."""


def to_their_bases(samples: Samples) -> dict[Key, float]:
    """Hold each contender against its explicit form: the median of all rounds' ratios.

    What else the machine does comes and goes in seconds. Two blocks that run one after the other
    mostly see the same of it, so that a round's ratio is nearly free of it; the median is free of
    those rounds that were not.
    """
    return {
        (name, workload): median(
            one / other for one, other in zip(costs, samples[base, workload], strict=True)
        )
        for (name, workload), costs in samples.items()
        if (base := CONTENDERS[name].base)
    }


def medians(samples: Samples, factor: float = 1) -> dict[Key, float]:
    """Return the median of all rounds, times a factor."""
    return {key: median(costs) * factor for key, costs in samples.items()}
