"""What a request costs: ours, beside the commit written by hand, and beside what others do.

Run ``tox run -e bench``, or this file with ``--help``. All contenders run in one process and take
turns. Each is held against its own framework's explicit form, which is 1.00.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
from collections.abc import Iterator

from benchmarks import counting
from benchmarks.contenders import Contender
from benchmarks.workloads import WORKLOADS, Visitor, Workload

OURS = {"ours": "flask_by_hand"}
OTHERS = {"flask_naive": "flask_by_hand"}
BUDGET = {
    "ok": 1.00,
    "read": 1.05,
    "insert": 1.00,
    "insert_id": 0.66,
    "many": 1.01,
    "held": 1.01,
    "conflict": 0.97,
}
Costs = dict[tuple[str, str], float]
WARM_UP = 30


class Block:
    """Some requests of one kind to one contender, which are measured together."""

    def __init__(self, name: str, contender: Contender, workload: Workload) -> None:
        self.key: tuple[str, str] = (name, workload.name)
        self.repeat: int = workload.repeat
        self._contender = contender
        self._workload = workload
        self._visit = Visitor(contender.app, workload)

    def warm_up(self) -> None:
        """Send requests until all caches are filled, and check what they leave behind."""
        before = self._contender.count()
        for _ in range(WARM_UP):
            self._visit()
        kept = self._contender.count() - before
        if kept != WARM_UP * self._workload.kept:
            raise RuntimeError(f"{self.key}: {WARM_UP} requests have left {kept} rows behind")

    def __call__(self) -> None:
        visit = self._visit
        for _ in range(self.repeat):
            visit()


def make_blocks(names: list[str], uri: str) -> Iterator[Block]:
    """Make the applications, and what is measured of them, in turns."""
    contenders = {
        name: importlib.import_module(f"benchmarks.contenders.{name}").make(uri) for name in names
    }
    for workload in WORKLOADS:
        for name, contender in contenders.items():
            yield Block(name, contender, workload)


def take_instructions(blocks: list[Block], rounds: int) -> None:
    """Run the blocks under callgrind; what they have cost is counted there."""
    for block in blocks:
        block.warm_up()
    # What the applications themselves hold is not to be gone through in the middle of a block.
    gc.collect()
    gc.freeze()
    counting.switch_on()
    for _ in range(rounds):
        for block in blocks:
            gc.collect()
            counting.count(block)


def measure_instructions(names: list[str], rounds: int) -> Costs:
    """Return how many instructions a request takes, in the quietest round."""
    arguments = [
        "-m",
        "benchmarks.cost",
        "--inside",
        "--rounds",
        str(rounds),
        "--contenders",
        *names,
    ]
    counts = list(counting.run_counted(arguments))
    keys = [(name, workload) for workload in WORKLOADS for name in names]
    found: dict[tuple[str, str], list[float]] = {(name, one.name): [] for name, one in keys}
    for (name, workload), number in zip(keys * rounds, counts, strict=True):
        found[name, workload.name].append(number / workload.repeat)
    return {key: min(numbers) for key, numbers in found.items()}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--contenders", nargs="*", default=["flask_by_hand", "ours"])
    given = parser.parse_args(arguments)
    if given.inside:
        take_instructions(list(make_blocks(given.contenders, "sqlite://")), given.rounds)
        return 0
    costs = measure_instructions(given.contenders, given.rounds)
    for workload in WORKLOADS:
        base = costs["flask_by_hand", workload.name]
        print(
            f"{workload.name:10}",
            f"{base:12.0f}",
            *(
                f"{n} {costs[n, workload.name]:12.0f} {costs[n, workload.name] / base:.3f}"
                for n in given.contenders[1:]
            ),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
