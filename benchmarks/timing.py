"""Measures times, in many short rounds, in which all take turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence

from benchmarks.blocks import Block, warm_up
from benchmarks.ratios import Key

SHARE = 4
"""A timed block has this part of a counted one's requests, some ten milliseconds of them."""


def take_times(
    blocks: Sequence[Block], rounds: int
) -> tuple[dict[Key, list[float]], dict[Key, list[float]]]:
    """Run all blocks in turns, forwards and backwards, so that none is always the first of two.

    :returns: Seconds a request, round by round: of this process's CPU time, and on the clock.
    """
    warm_up(blocks)
    cpu: dict[Key, list[float]] = {block.key: [] for block in blocks}
    wall: dict[Key, list[float]] = {block.key: [] for block in blocks}
    for number in range(rounds):
        for block in blocks if number % 2 == 0 else reversed(blocks):
            times = max(1, block.repeat // SHARE)
            block.enter()
            gc.collect()
            wall_before, cpu_before = time.perf_counter(), time.process_time()
            block(times)
            cpu_after, wall_after = time.process_time(), time.perf_counter()
            cpu[block.key].append((cpu_after - cpu_before) / times)
            wall[block.key].append((wall_after - wall_before) / times)
    return cpu, wall
