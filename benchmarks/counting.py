"""Counts the instructions that a piece of Python runs, with valgrind's callgrind.

A count is repeatable where a time is not: the same program gives the same number on a busy machine.
The program that counts is this process's child, run by callgrind; it marks the beginning and the
end of what is to be counted by calling a function of the C library that nobody else calls. What a
database's server does is not counted.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.blocks import Block, make_blocks, warm_up
from benchmarks.ratios import Key
from benchmarks.workloads import WORKLOADS

_TOTAL = re.compile(r"^totals: (\d+)$", re.MULTILINE)


def is_available() -> bool:
    """Tell whether callgrind is installed."""
    return shutil.which("valgrind") is not None and shutil.which("callgrind_control") is not None


def count_instructions(names: list[str], database: str, rounds: int) -> dict[Key, list[float]]:
    """Return how many instructions a request takes, round by round.

    :raises subprocess.CalledProcessError: If the program that counts fails.
    """
    totals = run_counted(["-m", "benchmarks.counting", database, str(rounds), *names])
    keys = [(name, workload) for workload in WORKLOADS for name in names]
    found: dict[Key, list[float]] = {}
    for (name, workload), total in zip(keys * rounds, totals, strict=True):
        found.setdefault((name, workload.name), []).append(total / workload.repeat)
    return found


def run_counted(program: list[str]) -> list[int]:
    """Run a Python program under callgrind, and return the counts of its blocks, in order.

    :param program: The program and its arguments, which calls :func:`switch_on` and then
        :func:`count`.
    :raises subprocess.CalledProcessError: If it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        subprocess.run(
            [
                *("valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no"),
                *("--dump-before=getpriority", f"--callgrind-out-file={out}"),
                *(sys.executable, *program),
            ],
            check=True,
            # Sets and dictionaries come in the same order each time.
            env=os.environ | {"PYTHONHASHSEED": "0"},
        )
        parts = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        return read_totals(part.read_text() for part in parts)


def read_totals(parts: Iterable[str]) -> list[int]:
    """Return the totals of the blocks from the parts of callgrind's output.

    Every other part, from the first, is what lies between two blocks.

    :raises ValueError: If a part has no total.
    """
    totals = [_TOTAL.search(part) for part in parts]
    return [_number(total) for total in totals[1::2]]


def _number(total: re.Match[str] | None) -> int:
    if total is None:
        raise ValueError("callgrind has written a part without a total")
    return int(total[1])


def run_blocks(blocks: Sequence[Block], rounds: int) -> None:
    """Run the blocks in turns; this is what is counted."""
    warm_up(blocks)
    # What the applications themselves hold is not to be gone through in the middle of a block.
    gc.collect()
    gc.freeze()
    switch_on()
    for _ in range(rounds):
        for block in blocks:
            block.enter()
            gc.collect()
            count(partial(block, block.repeat))


def switch_on() -> None:
    """Begin to count instructions. Before this, the program runs several times as fast."""
    _switch("on")


def switch_off() -> None:
    """Count no more for a while, to prepare something large for example."""
    _switch("off")


def _switch(how: str) -> None:
    subprocess.run(
        ["callgrind_control", f"--instr={how}", str(os.getpid())], check=True, capture_output=True
    )


def count(block: Callable[[], None]) -> None:
    """Run a block that is to be counted."""
    _mark()
    block()
    _mark()


def _mark() -> None:
    os.getpriority(os.PRIO_PROCESS, 0)


if __name__ == "__main__":
    with make_blocks(sys.argv[3:], sys.argv[1]) as made:
        run_blocks(made, int(sys.argv[2]))
