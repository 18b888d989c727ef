"""What it costs to undo a test: each strategy of the toolkit, beside what one would write by hand.

Run ``tox run -e bench``, or ``python -m benchmarks.isolation --help``. One test is an insert and a
commit. All ways take turns, round by round, so that whatever else the machine does falls on each of
them alike; the quickest round of each is printed, in milliseconds a test.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from benchmarks.databases import SERVERS, server_database
from flask_autosession import AutoSession
from flask_autosession.testing import isolate, schema

TABLES = (10, 50)
BUDGET_BY_HAND = 1.2
BUDGET_RECREATE = {10: 10.0, 50: 40.0}
Way = Callable[[], None]


@dataclass
class Result:
    """Milliseconds a test, by way."""

    database: str
    tables: int
    costs: dict[str, float]

    @property
    def problems(self) -> list[str]:
        """The budgets that do not hold."""
        rollback, by_hand = self.costs["rollback"], self.costs["by hand"]
        here = f"{self.database}, {self.tables} tables: rollback costs"
        found = []
        if rollback > BUDGET_BY_HAND * by_hand:
            found.append(f"{here} {rollback / by_hand:.2f} times a savepoint by hand")
        if self.costs["recreate"] < BUDGET_RECREATE[self.tables] * rollback:
            found.append(
                f"{here} only {self.costs['recreate'] / rollback:.0f} times less than recreate"
            )
        return found


@contextmanager
def database(kind: str) -> Iterator[str]:
    """Make a database for the measurements, and remove it."""
    if kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{Path(folder) / 'bench.db'}"
        return
    with server_database(kind) as uri:
        yield uri


def make_app(uri: str, tables: int) -> tuple[Flask, SQLAlchemy, Any]:
    """Make an application with so many tables, each with a foreign key, and its first model."""
    # By hand it takes this option; it changes nothing where a session has an engine of its own.
    options = {"join_transaction_mode": "create_savepoint"}
    app, db = Flask(f"bench_{tables}"), SQLAlchemy(session_options=options)
    app.config["SQLALCHEMY_DATABASE_URI"] = uri
    AutoSession(app, db=db)

    class Item(db.Model):  # type: ignore[name-defined,misc]
        __tablename__ = "item_0"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50), unique=True)

    for number in range(1, tables):
        db.Table(
            f"item_{number}",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("name", sa.String(50), unique=True),
            sa.Column("before", sa.ForeignKey(f"item_{number - 1}.id")),
        )
    return app, db, Item


def ways(uri: str, tables: int) -> Iterator[dict[str, Way]]:
    """Yield the ways to run one test and undo it."""
    app, db, item = make_app(uri, tables)
    hand, hand_db, hand_item = make_app(uri, tables)
    with hand.app_context():
        hand_db.create_all()
        engines = hand_db.engines
    engine = engines[None]
    held = engine.connect()

    def bare() -> None:
        held.exec_driver_sql("SELECT 1")
        held.rollback()

    def by_hand() -> None:
        transaction = held.begin()
        if engine.dialect.name == "sqlite":
            held.exec_driver_sql("BEGIN")  # which its driver does not send before a savepoint
        engines[None] = held
        try:
            with hand.app_context():
                hand_db.session.add(hand_item(name="a"))
                hand_db.session.commit()
        finally:
            engines[None] = engine
            transaction.rollback()

    def strategy(name: str) -> Way:
        def run() -> None:
            with isolate(app, name), app.app_context():
                db.session.add(item(name="a"))
                db.session.commit()

        return run

    names = ("rollback", "truncate", "recreate")
    try:
        yield {"bare": bare, "by hand": by_hand} | {name: strategy(name) for name in names}
    finally:
        held.close()
        with app.app_context():
            db.drop_all()
            db.engine.dispose()
        engine.dispose()
        schema.forget()


def measure(kind: str, uri: str, tables: int, rounds: int, times: int) -> Result:
    """Measure all ways on one database."""
    for all_ways in ways(uri, tables):
        found: dict[str, list[float]] = {name: [] for name in all_ways}
        for way in all_ways.values():
            way()
        for _ in range(rounds):
            for name, way in all_ways.items():
                repeat = times if name in ("bare", "by hand", "rollback") else 1
                start = time.perf_counter()
                for _ in range(repeat):
                    way()
                found[name].append((time.perf_counter() - start) / repeat * 1000)
        costs = {name: min(values) for name, values in found.items()}
    return Result(kind, tables, costs)


def table(results: list[Result]) -> str:
    """Return the results as a table."""
    names = list(results[0].costs)
    lines = [
        "| database | tables | "
        + " | ".join(names)
        + " | rollback / by hand | recreate / rollback |"
    ]
    lines.append("|---" * (len(names) + 4) + "|")
    for result in results:
        costs = result.costs
        cells = [result.database, str(result.tables), *(f"{costs[name]:.2f}" for name in names)]
        cells.append(f"{costs['rollback'] / costs['by hand']:.2f}")
        cells.append(f"{costs['recreate'] / costs['rollback']:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Measure, print the table, and return 1 if a budget does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("databases", nargs="*", default=["sqlite", *SERVERS])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--times", type=int, default=40, help="tests a round, of the quick ways")
    parser.add_argument("--check", action="store_true", help="fail if a budget does not hold")
    given = parser.parse_args(arguments)
    results = []
    for kind in given.databases:
        with database(kind) as uri:
            results += [measure(kind, uri, count, given.rounds, given.times) for count in TABLES]
    print(table(results))
    problems = [problem for result in results for problem in result.problems]
    print(*problems, sep="\n", file=sys.stderr)
    return int(given.check and bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
