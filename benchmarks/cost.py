"""What a request costs: ours, beside the commit written by hand, and beside what others do.

Run ``tox run -e bench``, or ``python -m benchmarks.cost --help``. All contenders run in one process
and take turns. Each is held against its own framework's explicit form, which is 1.00.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import sqlalchemy as sa

from benchmarks import counting, report, timing
from benchmarks.blocks import make_blocks
from benchmarks.contenders import CONTENDERS, with_their_bases
from benchmarks.databases import SERVERS
from benchmarks.ratios import Key, medians, to_their_bases
from benchmarks.report import Result

BUDGET = {
    "ok": 1.00,
    "read": 1.05,
    "insert": 1.00,
    "insert_id": 0.66,
    "many": 1.01,
    "held": 1.01,
    "conflict": 0.99,
}
"""Instructions of ours on SQLite, by hand = 1.00."""
TIME_BUDGET = {"read": 0.95}
"""Time of ours on PostgreSQL. A read by hand ends with ROLLBACK, on which psycopg forgets all
statements that it has prepared, or was about to; ours ends with COMMIT, and keeps them."""
OURS = ["flask_by_hand", "ours"]
DATABASES = {"sqlite": "SQLite in memory", "postgresql": "PostgreSQL"}


def main(arguments: list[str]) -> int:
    """Measure, and print the tables; or check a budget, and return 1 if it does not hold."""
    given = _parse(arguments)
    if given.check or given.check_time:
        return check(instructions=given.check, time=given.check_time, rounds=given.rounds)
    if given.write:
        # What is wrong with the page is better known before than after a quarter of an hour.
        report.replace_marked(given.write.read_text(), "")
    command = shlex.join(["python", "-m", "benchmarks.cost", *arguments])
    parts = [report.describe(command, list(_servers(given.databases)))]
    print(parts[0])
    for database in given.databases:
        result = measure(with_their_bases(given.contenders), database, given.rounds)
        parts.append(result.to_markdown())
        print("", parts[-1], sep="\n", flush=True)
    if given.write:
        page = report.replace_marked(given.write.read_text(), "\n\n".join(parts))
        given.write.write_text(page)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    automatic = [name for name, entry in CONTENDERS.items() if entry.base]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost", description=__doc__.partition("\n\n")[0]
    )
    add = parser.add_argument
    add("databases", nargs="*", metavar="DATABASE", help=", ".join(DATABASES))
    add("--contenders", nargs="+", choices=automatic, default=automatic, metavar="NAME")
    add("--rounds", type=int, default=60, help="how many times all take turns, when timed")
    add("--check", action="store_true", help="fail if ours takes too many instructions, on SQLite")
    add("--check-time", action="store_true", help="fail if ours takes too long, on PostgreSQL")
    add("--write", type=Path, metavar="FILE", help="put the tables into this page, too")
    given = parser.parse_args(arguments)
    given.databases = given.databases or list(DATABASES)
    for database in given.databases:
        if database not in DATABASES:
            parser.error(f"no database {database!r}: choose among {', '.join(DATABASES)}")
    return given


def measure(names: list[str], database: str, rounds: int) -> Result:
    """Measure some contenders on one database by all means there are."""
    result = Result(DATABASES[database], names)
    if counting.is_available():
        counts = counting.count_instructions(names, database, rounds=1)
        result.ratios["instructions"] = to_their_bases(counts)
        result.absolutes["thousand instructions"] = medians(counts, 1e-3)
    else:
        print("valgrind is not installed: instructions are not counted", file=sys.stderr)
    with make_blocks(names, database) as blocks:
        cpu, wall = timing.take_times(blocks, rounds)
    result.ratios["CPU time"] = to_their_bases(cpu)
    result.ratios["time"] = to_their_bases(wall)
    result.absolutes["microseconds"] = medians(wall, 1e6)
    return result


def _servers(databases: list[str]) -> Iterator[str]:
    if "sqlite" in databases:
        yield f"SQLite {sqlite3.sqlite_version}"
    if "postgresql" in databases:
        engine = sa.create_engine(SERVERS["postgresql"], poolclass=sa.NullPool)
        with engine.connect() as connection:
            yield f"PostgreSQL {str(connection.scalar(sa.text('SHOW server_version'))).split()[0]}"


def check(*, instructions: bool, time: bool, rounds: int) -> int:
    """Hold ours against its budgets; print what exceeds them, and return 1 if anything does."""
    problems = []
    if instructions:
        if not counting.is_available():
            print("valgrind is not installed: the instructions were not checked", file=sys.stderr)
            return int(os.environ.get("AUTOSESSION_REQUIRE_SERVICES") == "1")
        counts = counting.count_instructions(OURS, "sqlite", rounds=3)
        problems += exceeded(to_their_bases(counts), BUDGET, "instructions on SQLite")
    if time:
        with make_blocks(OURS, "postgresql") as blocks:
            budgeted = [block for block in blocks if block.key[1] in TIME_BUDGET]
            _, wall = timing.take_times(budgeted, rounds)
        problems += exceeded(to_their_bases(wall), TIME_BUDGET, "time on PostgreSQL")
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


def exceeded(ratios: Mapping[Key, float], budget: Mapping[str, float], what: str) -> list[str]:
    """Return a line for each workload of ours that takes more than it may."""
    for workload, most in budget.items():
        print(f"{workload:10} {ratios['ours', workload]:.3f} of {most:.2f} {what}")
    return [
        f"{workload}: {ratios['ours', workload]:.3f} times the {what} of the commit by hand,"
        f" and the budget is {most:.2f}"
        for workload, most in budget.items()
        if ratios["ours", workload] > most
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
