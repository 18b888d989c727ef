"""Whatever a program does, the database, the client and the log agree with the contract."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings

from ..world import Database
from .model import Model
from .program import Program, Runner, programs

EXAMPLES = int(os.environ.get("AUTOSESSION_MACHINE_EXAMPLES", "100"))


@pytest.fixture
def runner(database: Database) -> Iterator[Runner]:
    runner = Runner(database)
    with runner.warnings.listening():
        yield runner
    runner.close()


def check(runner: Runner, program: Program, *, postgresql: bool) -> None:
    """Run a program, and compare each of its requests with what the model says."""
    model = Model(program, postgresql=postgresql)
    for number, (told, expected) in enumerate(zip(runner.run(program), model.run(), strict=True)):
        note(f"request {number}: {told}\n  must be: {expected}\n  logged: {runner.warnings.texts}")
        assert told == expected
        if model.must_warn:
            assert runner.warnings.texts, "work was lost without a word"
        if not model.may_warn:
            assert runner.warnings.texts == [], "a warning of nothing"


# An object that nobody held is made anew when its row is read, and then SQLAlchemy does not know
# that a rollback has taken the row. If an exception holds it, and SQLite gives its id to the next
# row, SQLAlchemy 2.0 says so, with or without us.
@pytest.mark.filterwarnings("ignore:Identity map already had an identity")
@pytest.mark.machine
@pytest.mark.timeout(600)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_whatever_a_program_does_the_contract_holds(runner: Runner, database: Database) -> None:
    """What is durable, what clients were told, and what ran are what the contract says."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=False,
        database=None,
        print_blob=True,
        phases=[Phase.generate, Phase.shrink],  # explaining a failure takes minutes
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(program=programs())
    def run(program: Program) -> None:
        check(runner, program, postgresql=database.kind == "postgresql")

    run()
