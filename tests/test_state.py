"""The facts about one unit of work, and what follows from them, without any database."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from flask_autosession import DoomedError, NoUnitError
from flask_autosession.phases import State
from flask_autosession.state import Failure, Unit, decide
from flask_autosession.statements import is_write


def savepoint() -> Any:
    return cast(Any, object())


def fail(unit: Unit, error: Exception) -> None:
    unit.failed(error, lambda: "app.py:1", level=unit.level)


@pytest.mark.parametrize(
    ("success", "failure", "commits"),
    [
        (True, None, True),
        (False, None, False),
        (True, Failure(None, "app.py:1"), False),
        (False, Failure(ValueError(), "app.py:1"), False),
    ],
)
def test_only_success_without_failure_is_committed(
    success: bool, failure: Failure | None, commits: bool
) -> None:
    """Doom overrides what the response says, and the reason says so."""
    commit, reason = decide(success=success, failure=failure)
    assert commit is commits
    assert ("doomed" in reason) is (failure is not None)


def test_a_unit_passes_through_its_states() -> None:
    """Idle until it is used, doomed by a failure, and in the end what became of it."""
    unit = Unit()
    history = [unit.state]
    unit.on_commit.append(lambda: None)
    history.append(unit.state)
    fail(unit, ValueError())
    history.append(unit.state)
    unit.outcome = State.ROLLED_BACK
    history.append(unit.state)
    assert history == [State.IDLE, State.ACTIVE, State.DOOMED, State.ROLLED_BACK]


def test_a_rolled_back_savepoint_takes_its_failure_and_callbacks_along() -> None:
    """What came before the savepoint stays; on_rollback functions stay as well."""
    unit, outer, inner = Unit(), savepoint(), savepoint()
    unit.on_commit.append(before := lambda: None)
    unit.savepoint_set(outer)
    unit.savepoint_set(inner)
    unit.on_commit.append(lambda: None)
    unit.on_rollback.append(audit := lambda: None)
    fail(unit, error := ValueError())
    assert unit.savepoint_rolled_back(outer) == Failure(error, "app.py:1", 2, silent=True)
    assert (unit.failure, unit.level) == (None, 0)
    assert (unit.on_commit, unit.on_rollback) == ([before], [audit])


def test_a_released_savepoint_hands_its_failure_on() -> None:
    """A failure that was not undone harms what is around it."""
    unit, outer, inner = Unit(), savepoint(), savepoint()
    unit.savepoint_set(outer)
    unit.savepoint_set(inner)
    fail(unit, ValueError())
    unit.savepoint_released(inner)
    assert unit.failure is not None
    assert unit.failure.level == 1
    unit.savepoint_released(outer)
    assert unit.failure.level == 0


def test_a_rolled_back_savepoint_leaves_a_failure_around_it() -> None:
    """What failed before the savepoint was set is not undone by it; the first failure is told."""
    unit, inner = Unit(), savepoint()
    fail(unit, first := ValueError())
    unit.savepoint_set(inner)
    fail(unit, KeyError())
    assert unit.savepoint_rolled_back(inner) is None
    assert unit.failure == Failure(first, "app.py:1", 0)


def test_savepoints_of_others_are_ignored() -> None:
    """A transaction that is no savepoint of this unit changes nothing."""
    unit = Unit()
    unit.savepoint_set(savepoint())
    unit.savepoint_released(savepoint())
    unit.savepoint_released(None)
    assert unit.savepoint_rolled_back(savepoint()) is None
    assert unit.level == 1


def test_the_end_of_a_transaction_costs_the_same_however_many_savepoints_are_open() -> None:
    """10,000 nested savepoints, and a flush in each, are followed within a second, not a minute."""
    unit, open_ = Unit(), [savepoint() for _ in range(10_000)]
    start = time.process_time()
    for one in open_:
        unit.savepoint_set(one)
        assert unit.savepoint_rolled_back(savepoint()) is None  # the flush's own transaction
    for one in reversed(open_):
        unit.savepoint_released(one)
    assert unit.level == 0
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("statement", "writes"),
    [
        ("SELECT 1", False),
        ("  ( select 1 )", False),
        ("-- INSERT\nSELECT 1", False),
        ("/* DELETE\n */ SELECT 1", False),
        ("PRAGMA foreign_keys = ON", False),
        ("VACUUM", False),
        ("WITH a AS (SELECT 1) SELECT * FROM a", False),
        ("WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", True),
        ("WITH a AS (SELECT 1) SELECT replace(x, 'a', 'b') FROM a", False),
        ("WITH a AS (SELECT 1) SELECT * FROM a WHERE b = ') DELETE FROM t'", False),
        ('WITH a AS (SELECT 1) SELECT * FROM ") update x" -- ) INSERT INTO', False),
        ("WITH a AS (SELECT * FROM t FOR UPDATE) SELECT * FROM a FOR UPDATE OF a", False),
        ("WITH a AS (DELETE FROM t RETURNING *) SELECT * FROM a", True),
        ("WITH a AS (SELECT 1) -- c\nINSERT/**/INTO t SELECT * FROM a", True),
        ("WITH a AS (SELECT 1) /* c */ UPDATE`t` SET x = 1", True),
        ("WITH a AS (/* it's */ DELETE FROM [t] RETURNING *) SELECT 'x'", True),
        ('WITH a AS (SELECT 1)REPLACE INTO"t" SELECT 1', True),
        ("insert into t values (1)", True),
        ("-- only a comment\nUPDATE t SET a = 1", True),
        ("CREATE TABLE t (a)", True),
        ("CALL procedure()", True),
        ("", True),
        ("SAVEPOINT a", False),
    ],
)
def test_statements_that_write_are_told_apart(statement: str, writes: bool) -> None:
    """By the first word behind white space, comments and parentheses; when in doubt, it writes."""
    assert is_write(statement) is writes


def test_errors_carry_data_and_build_their_own_sentence() -> None:
    """An error says what happened, where, and what to do, and never a value of a row."""
    cause = ValueError("secret")
    doomed = DoomedError(cause, "app.py:7")
    assert (doomed.first_failure, doomed.where, doomed.__cause__) == (cause, "app.py:7", cause)
    assert "ValueError" in str(doomed)
    assert "app.py:7" in str(doomed)
    assert "savepoint" in str(doomed)
    assert "secret" not in str(doomed)
    assert NoUnitError("auto.commit()").name == "auto.commit()"
