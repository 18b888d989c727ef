"""Counts the instructions that a piece of Python runs, with valgrind's callgrind.

A count is repeatable where a time is not: the same program gives the same number on a busy machine.
The program that counts is this process's child, run by callgrind; it marks the beginning and the
end of what is to be counted by calling a function of the C library that nobody else calls.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_TOTAL = re.compile(r"^totals: (\d+)$", re.MULTILINE)


def is_available() -> bool:
    """Tell whether callgrind is installed."""
    return shutil.which("valgrind") is not None and shutil.which("callgrind_control") is not None


def run_counted(command: list[str]) -> Iterator[int]:
    """Run a Python program under callgrind, and yield the counts of its blocks, in order.

    :param command: The program and its arguments, which calls :func:`switch_on` and then
        :func:`count`.
    :raises subprocess.CalledProcessError: If it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        subprocess.run(
            [
                *("valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no"),
                *("--dump-before=getpriority", f"--callgrind-out-file={out}"),
                *(sys.executable, *command),
            ],
            check=True,
            # Sets and dictionaries come in the same order each time.
            env=os.environ | {"PYTHONHASHSEED": "0"},
        )
        parts = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        totals = [_TOTAL.search(part.read_text()) for part in parts]
    # Every other part is what lies between two blocks.
    yield from (int(total[1]) for total in totals[1::2] if total)


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
