"""The unit of measuring: some requests of one kind to one contender."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext

from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.databases import server_database
from benchmarks.ratios import Key
from benchmarks.workloads import WORKLOADS, Visitor, Workload

WARM_UP = 30


class Block:
    """Some requests of one kind to one contender, which are measured together."""

    def __init__(self, name: str, contender: Contender, workload: Workload) -> None:
        self.key: Key = (name, workload.name)
        self.repeat: int = workload.repeat
        self.enter = contender.enter
        self._count = contender.count
        self._workload = workload
        self._visit = Visitor(contender.app, workload)

    def warm_up(self, times: int = WARM_UP) -> None:
        """Send requests until all caches are filled, and check what they leave behind.

        :raises RuntimeError: If that is not what the workload says.
        """
        self.enter()
        before = self._count()
        for _ in range(times):
            self._visit()
        kept = self._count() - before
        if kept != times * self._workload.kept:
            raise RuntimeError(f"{self.key}: {times} requests have left {kept} rows behind")

    def __call__(self, times: int) -> None:
        """Send so many requests, after :attr:`enter`."""
        visit = self._visit
        for _ in range(times):
            visit()


def warm_up(blocks: Sequence[Block]) -> None:
    """Warm up all blocks, and take all that there is by then out of the garbage collector's sight.

    An application has no eight others beside it, whose modules are looked through each time.
    """
    for block in blocks:
        block.warm_up()
    gc.collect()
    gc.freeze()


@contextmanager
def make_blocks(names: list[str], database: str) -> Iterator[list[Block]]:
    """Make the contenders, each with a database of its own, and what is measured of them.

    :param names: Their names.
    :param database: ``sqlite`` or ``postgresql``.
    """
    with ExitStack() as stack:
        contenders = {}
        for name in names:
            home = nullcontext("sqlite://") if database == "sqlite" else server_database(database)
            contenders[name] = CONTENDERS[name].make(stack.enter_context(home))
            stack.callback(contenders[name].close)
        yield [
            Block(name, contender, workload)
            for workload in WORKLOADS
            for name, contender in contenders.items()
        ]
