"""Measures how the costs grow, prints tables, and draws a picture of each in docs/pictures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import counting
from benchmarks.growth import measure, memory, pictures, report
from benchmarks.growth.subjects import WHO

SERIES = ("endings", "callbacks", "savepoints")
TOPICS = (*SERIES, "memory")
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"


def _growth(topic: str, given: argparse.Namespace) -> list[str]:
    take = measure.in_time if given.times else measure.in_instructions
    points = take(topic, quick=given.quick)
    unit = "µs" if given.times else "instructions"
    print(f"\n## {topic}\n\n{report.growth_table(points, unit)}", flush=True)
    if given.write:
        pictures.draw_growth(points, unit, given.pictures / f"growth-{topic}.svg")
    return report.growth_problems(points)


def _memory(given: argparse.Namespace) -> list[str]:
    left = memory.measure(quick=given.quick)
    print(f"\n## memory\n\n{report.memory_table(left)}")
    print(f"\n## garbage\n\n{report.garbage_table(left)}", flush=True)
    if given.write:
        pictures.draw_memory(left, given.pictures / "growth-memory.svg")
        pictures.draw_garbage(left, given.pictures / "growth-garbage.svg")
    return report.memory_problems(left)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.growth", description=__doc__)
    parser.add_argument("topics", nargs="*", choices=[[], *TOPICS], help="all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it out")
    parser.add_argument("--times", action="store_true", help="measure time, not instructions")
    parser.add_argument("--write", action="store_true", help="draw the pictures, with matplotlib")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="where to")
    parser.add_argument("--check", action="store_true", help="fail if a budget does not hold")
    parser.add_argument("--inside", choices=[*SERIES, *WHO], help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Measure, print, draw; return 1 if a budget does not hold and that was asked for."""
    given = _parse(arguments)
    if given.inside in WHO:
        memory.print_left(given.inside, quick=given.quick)
        return 0
    if given.inside is not None:
        measure.take_instructions(given.inside, quick=given.quick)
        return 0
    if not given.times and not counting.is_available():
        print("valgrind is not installed: times are measured instead", file=sys.stderr)
        given.times = True
    problems: list[str] = []
    for topic in given.topics or TOPICS:
        problems += _memory(given) if topic == "memory" else _growth(topic, given)
    print(*problems, sep="\n", file=sys.stderr)
    return int(given.check and bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
