"""Measures the series: in instructions, which are repeatable, or in time, which is quick."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks import counting
from benchmarks.growth.series import SERIES, Block, Series
from benchmarks.growth.subjects import WHO, Subject

ROUNDS = {False: 3, True: 1}
"""How often a time is taken, also in a trial; the shortest one is kept."""
WARM_UP = (1, 2, 2)


@dataclass(frozen=True)
class Point:
    """What one size of a series has cost one of the subjects."""

    series: Series
    size: int
    who: str
    cost: float


@dataclass(frozen=True)
class _Case:
    series: Series
    size: int
    who: str


def _cases(topic: str, *, quick: bool) -> list[_Case]:
    return [
        _Case(series, size, who)
        for series in SERIES
        if series.topic == topic
        for size in (series.quick if quick else series.sizes)
        for who in WHO
    ]


def _run(cases: list[_Case], take: Callable[[Block], None]) -> Iterator[None]:
    """Run all the cases one after the other, each without the garbage of those before it."""
    rows = max(case.size for case in cases)
    subjects = {who: Subject(who, rows) for who in WHO}
    for series in dict.fromkeys(case.series for case in cases):
        for subject in subjects.values():
            for size in WARM_UP:
                with series.opened(subject, size) as block:
                    block()
    # When the collector runs is chance, and what it costs is what there was before. What was
    # there before needs no look at either, between the cases.
    gc.disable()
    gc.freeze()
    try:
        for case in cases:
            with case.series.opened(subjects[case.who], case.size) as block:
                gc.collect()
                take(block)
            yield
    finally:
        gc.unfreeze()
        gc.enable()
        for subject in subjects.values():
            subject.close()


def take_instructions(topic: str, *, quick: bool) -> None:
    """Run the cases under callgrind; what they have cost is counted there."""

    def take(block: Block) -> None:
        # To fill a session with 100,000 objects would take minutes if it was counted.
        counting.switch_on()
        counting.count(block)
        counting.switch_off()

    for _ in _run(_cases(topic, quick=quick), take):
        pass


def in_instructions(topic: str, *, quick: bool) -> list[Point]:
    """Measure a topic in a process of its own, under callgrind."""
    cases = _cases(topic, quick=quick)
    arguments = ["-m", "benchmarks.growth", "--inside", topic, *(["--quick"] if quick else [])]
    counts = counting.run_counted(arguments)
    return [
        Point(case.series, case.size, case.who, count)
        for case, count in zip(cases, counts, strict=True)
    ]


def in_time(topic: str, *, quick: bool) -> list[Point]:
    """Measure a topic in microseconds of this process's own time."""
    cases = _cases(topic, quick=quick)
    times: list[float] = []

    def take(block: Block) -> None:
        start = time.process_time_ns()
        block()
        times.append((time.process_time_ns() - start) / 1000)

    for _ in range(ROUNDS[quick]):
        for _ in _run(cases, take):
            pass
    rounds = [times[start :: len(cases)] for start in range(len(cases))]
    return [
        Point(case.series, case.size, case.who, min(found))
        for case, found in zip(cases, rounds, strict=True)
    ]
