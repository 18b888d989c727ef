"""What requests leave behind: memory over many of them, and garbage for the collector.

Each subject is measured in a process of its own, so that neither fills the other's memory.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.growth.subjects import KINDS, WHO, Subject
from benchmarks.workloads import Visitor

REQUESTS = {False: 100_000, True: 60}
"""How many requests are sent, and how many in a trial."""
INTERVALS = {False: 20, True: 3}
COLLECTED = 100
"""Over how many requests garbage is counted."""
LASTING = ("ok", "write")
"""The kinds of requests whose memory is looked at for long."""
WARM_UP = 200


@dataclass(frozen=True)
class Look:
    """What a process holds after so many requests.

    :param blocks: The blocks of memory that Python has allocated, counted exactly.
    :param resident: The memory that the process takes, in bytes.
    """

    requests: int
    blocks: int
    resident: int


@dataclass(frozen=True)
class Left:
    """What requests of one kind to one subject leave behind."""

    who: str
    kind: str
    garbage: float
    looks: tuple[Look, ...] = ()

    @property
    def blocks_per_request(self) -> float:
        """How fast the memory grows, from the first look, behind the warm-up, to the last."""
        if len(self.looks) < 2:
            return 0.0
        first, last = self.looks[0], self.looks[-1]
        return (last.blocks - first.blocks) / (last.requests - first.requests)


def _look(requests: int) -> Look:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Look(requests, sys.getallocatedblocks(), pages * os.sysconf("SC_PAGE_SIZE"))


def _repeat(visit: Callable[[], object], times: int) -> None:
    for _ in range(times):
        visit()


def look_on(visit: Callable[[], object], *, quick: bool) -> tuple[Look, ...]:
    """Look at the memory, again and again, while requests are sent."""
    step = REQUESTS[quick] // INTERVALS[quick]
    looks = [_look(0)]
    for number in range(1, INTERVALS[quick] + 1):
        _repeat(visit, step)
        looks.append(_look(number * step))
    return tuple(looks)


def collect(visit: Callable[[], object], requests: int = COLLECTED) -> float:
    """Return how many objects a request leaves that only the garbage collector can free."""
    for _ in range(3):  # what is freed may leave garbage itself
        gc.collect()
    gc.disable()
    try:
        _repeat(visit, requests)
        return gc.collect() / requests
    finally:
        gc.enable()


def print_left(who: str, *, quick: bool) -> None:
    """Measure one subject in this process, and print what is found."""
    subject, found = Subject(who), []
    gc.freeze()  # what is there for good need not be looked through each time
    for name, kind in KINDS.items():
        visit = Visitor(subject.app.wsgi_app, kind)
        _repeat(visit, 5 if quick else WARM_UP)
        garbage = collect(visit, 5 if quick else COLLECTED)
        looks = look_on(visit, quick=quick) if name in LASTING else ()
        values = [(look.requests, look.blocks, look.resident) for look in looks]
        found.append((name, garbage, values))
    subject.close()
    print(json.dumps(found))


def measure(*, quick: bool) -> list[Left]:
    """Measure all subjects, each in a process of its own."""
    found = []
    for who in WHO:
        command = [sys.executable, "-m", "benchmarks.growth", "--inside", who]
        done = subprocess.run(
            command + ["--quick"] * quick, check=True, stdout=subprocess.PIPE, text=True
        )
        for kind, garbage, looks in json.loads(done.stdout):
            found.append(Left(who, kind, garbage, tuple(Look(*look) for look in looks)))
    return found
