"""Layers: several transactions on one connection, without a database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flask_autosession.testing.layers import Layers, Mark


class Row(NamedTuple):
    """One row: who wrote it, in which transaction of that one, and which one it is."""

    owner: str
    transaction: int
    number: int


@dataclass
class FakeConnection:
    """What a database knows of one connection: rows, and a stack of savepoints over them."""

    sent: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    _stack: list[tuple[str, int]] = field(default_factory=list)

    def execute(self, statement: str) -> None:
        """Do as PostgreSQL does, whose savepoints must be there to be released."""
        self.sent.append(statement)
        *command, name = statement.split()
        if command == ["SAVEPOINT"]:
            self._stack.append((name, len(self.rows)))
            return
        at = [known for known, _ in self._stack].index(name)
        if command == ["RELEASE", "SAVEPOINT"]:
            del self._stack[at:]
        else:
            assert command == ["ROLLBACK", "TO", "SAVEPOINT"]
            del self.rows[self._stack[at][1] :]
            del self._stack[at + 1 :]


@pytest.fixture
def connection() -> FakeConnection:
    return FakeConnection()


@pytest.fixture
def layers(connection: FakeConnection) -> Layers:
    return Layers(connection.execute)


@pytest.fixture
def write(connection: FakeConnection, layers: Layers) -> Callable[[str], None]:
    """Have an owner write a row."""

    def write(owner: str) -> None:
        layers.turn(owner).wrote = True
        connection.rows.append(Row(owner, 0, len(connection.rows)))

    return write


Write = Callable[[str], None]


def owners(connection: FakeConnection) -> str:
    return "".join(row.owner for row in connection.rows)


# Turns and ends


def test_a_transaction_is_one_savepoint(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """One owner's statements, however many, cost one savepoint and its release."""
    write("a")
    write("a")
    layers.commit("a")
    assert connection.sent == ["SAVEPOINT autosession_1", "RELEASE SAVEPOINT autosession_1"]


def test_a_savepoint_that_was_rolled_back_is_used_again(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """The next one to come, whoever that is, works in the savepoint that is there."""
    write("a")
    layers.rollback("a")
    write("b")
    layers.commit("b")
    assert connection.sent == [
        "SAVEPOINT autosession_1",
        "ROLLBACK TO SAVEPOINT autosession_1",
        "RELEASE SAVEPOINT autosession_1",
    ]
    assert owners(connection) == "b"


def test_a_commit_below_another_transaction_waits_for_that(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """What lies below an open transaction is released together with it."""
    write("a")
    write("b")
    layers.commit("a")
    assert not [one for one in connection.sent if one.startswith("RELEASE")]
    layers.commit("b")
    assert connection.sent[-1] == "RELEASE SAVEPOINT autosession_1"
    assert owners(connection) == "ab"


def test_ends_of_an_owner_that_has_done_nothing(connection: FakeConnection, layers: Layers) -> None:
    """Where there is nothing to end, nothing is sent."""
    for end in (layers.commit, layers.rollback):
        end("a")
    for end in (layers.release, layers.rollback_to):
        end("a", "unknown")
    assert connection.sent == []


def test_the_topmost_rolls_back_alone(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """A rollback on top leaves what lies below, and those who took turns in between."""
    write("a")
    write("b")
    write("a")
    layers.commit("a")
    write("c")
    layers.rollback("c")
    assert owners(connection) == "aba"
    layers.commit("b")
    layers.turn("d")
    assert layers.conflicts == []


def test_a_reader_ends_without_harm(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """The rollback of one that has only read takes back nothing that others have committed."""
    layers.turn("reader")
    write("b")
    layers.commit("b")
    layers.turn("reader")
    layers.rollback("reader")
    layers.turn("c")
    assert (owners(connection), layers.conflicts) == ("b", [])


# Conflicts


def test_a_rollback_takes_what_was_committed_on_top_and_tells(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """It is told as soon as somebody looks again, and once."""
    write("a")
    write("b")
    layers.commit("b")
    layers.rollback("a")
    assert (owners(connection), layers.conflicts) == ("", [])
    layers.turn("c")
    layers.turn("c")
    assert layers.conflicts == [("a", ["b"])]


def test_what_was_committed_is_told_though_its_owner_works_on(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """A commit that was taken back is told, whatever its owner's next transaction comes to."""
    write("a")
    write("b")
    layers.commit("b")
    write("b")
    layers.rollback("a")
    layers.rollback("b")
    layers.turn("c")
    assert (owners(connection), layers.conflicts) == ("", [("a", ["b"])])


def test_work_that_was_not_committed_is_told_if_its_owner_goes_on(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """One whose work was taken, and that looks again or commits, would take it to be there."""
    for go_on in (layers.turn, layers.commit):
        write("a")
        write("b")
        layers.rollback("a")
        go_on("b")
        layers.rollback("b")
    assert layers.conflicts == [("a", ["b"])] * 2


def test_work_that_its_owner_rolls_back_as_well_is_not_told(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """One whose work was taken, and that takes it back itself, misses nothing."""
    write("a")
    write("b")
    write("a")
    layers.rollback("a")
    layers.rollback("b")
    write("b")
    layers.commit("b")
    assert (owners(connection), layers.conflicts) == ("b", [])


def test_what_was_committed_in_what_was_committed_is_told_too(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """Commits are remembered over any number of levels."""
    write("a")
    write("b")
    write("c")
    layers.commit("c")
    layers.commit("b")
    write("a")
    layers.rollback("a")
    layers.turn("d")
    [(owner, others)] = layers.conflicts
    assert (owner, set(others)) == ("a", {"b", "c"})


def test_a_savepoint_that_takes_back_anothers_commit_tells(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """The same holds for the rollback of an owner's own savepoint."""
    write("a")
    layers.savepoint("a", "s")
    write("a")
    write("b")
    layers.commit("b")
    layers.rollback_to("a", "s")
    layers.commit("a")
    layers.turn("c")
    assert (owners(connection), layers.conflicts) == ("a", [("a", ["b"])])


# Savepoints of the owners' own


def test_savepoints_are_kept_and_undone(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """What is done in a savepoint stays with its release, and goes with its rollback."""
    layers.savepoint("a", "kept")
    write("a")
    layers.release("a", "kept")
    layers.savepoint("a", "gone")
    write("a")
    layers.rollback_to("a", "gone")
    assert owners(connection) == "a"
    layers.rollback("a")
    assert owners(connection) == ""


def test_savepoints_of_the_same_name(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """Of several savepoints with one name the innermost of that owner is meant."""
    layers.savepoint("a", "s")
    write("a")
    layers.savepoint("b", "s")
    write("b")
    layers.savepoint("b", "s")
    write("b")
    layers.rollback_to("b", "s")
    assert owners(connection) == "ab"
    layers.rollback_to("b", "s")
    assert owners(connection) == "a"


@pytest.mark.parametrize("wrote", [False, True], ids=["read", "wrote"])
def test_a_savepoint_of_another_owner_survives_a_rollback_below_it(
    connection: FakeConnection, layers: Layers, write: Write, wrote: bool
) -> None:
    """What is done in a savepoint later goes with it, though what lay below it has gone before."""
    layers.turn("b").wrote = wrote
    layers.savepoint("a", "outer")
    layers.savepoint("a", "inner")
    layers.rollback("b")
    write("a")
    layers.release("a", "inner")
    assert owners(connection) == "a"
    layers.rollback_to("a", "outer")
    assert owners(connection) == ""
    layers.commit("a")
    layers.turn("c")
    assert layers.conflicts == []


@pytest.mark.parametrize("again", [False, True], ids=["below", "around"])
def test_a_release_below_another_transaction_does_not_end_the_owners(
    connection: FakeConnection, layers: Layers, write: Write, again: bool
) -> None:
    """What was done in a savepoint that is released goes with a rollback of its transaction."""
    layers.savepoint("a", "s")
    write("a")
    write("b")
    if again:
        write("a")
    layers.release("a", "s")
    layers.rollback("a")
    assert owners(connection) == ""
    layers.commit("b")
    assert layers.conflicts == [("a", ["b"])]


# Statements that fail on PostgreSQL


def test_others_go_on_behind_a_failed_statement(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """Another owner's turn rolls back the one that has failed, whose commit keeps nothing."""
    write("a")
    layers.recover("b")
    write("b")
    layers.commit("b")
    assert connection.sent[1] == "ROLLBACK TO SAVEPOINT autosession_1"
    layers.commit("a")
    layers.turn("c")
    assert [row for row in connection.rows if row.owner == "a"] == []


def test_what_was_committed_in_a_failed_transaction_goes_with_it_and_is_told(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """What another owner had committed on top of the one that has failed cannot stay."""
    write("a")
    write("b")
    layers.commit("b")
    layers.recover("c")
    write("c")
    layers.commit("c")
    layers.commit("a")
    layers.turn("d")
    assert (owners(connection), layers.conflicts) == ("c", [("a", ["b"])])


def test_a_failed_owner_recovers_by_itself(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """The one whose statement has failed gets the database's own error until it rolls back."""
    write("a")
    layers.recover("a")
    assert connection.sent == ["SAVEPOINT autosession_1"]


# Marks


def test_everything_since_a_mark_goes(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """A mark can be come back to again and again, whoever did what since."""
    write("a")
    layers.commit("a")
    for _ in range(2):
        mark = layers.mark()
        write("b")
        layers.commit("b")
        inner = layers.mark()
        write("c")
        layers.back_to_mark(inner)
        assert owners(connection) == "ab"
        layers.back_to_mark(mark)
        assert owners(connection) == "a"
    layers.turn("d")
    assert layers.conflicts == []


def test_a_mark_of_a_transaction_that_was_lost(connection: FakeConnection, layers: Layers) -> None:
    """Where a transaction is over before its time, there is nothing to come back to."""
    mark = layers.mark()
    begun_again = Layers(connection.execute)
    begun_again.back_to_mark(mark)
    assert connection.sent == ["SAVEPOINT autosession_1"]


def test_a_rollback_that_goes_below_a_mark_tells(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """What was there for all tests is not to be missed in the next one without a word."""
    write("a")
    layers.mark()
    layers.rollback("a")
    layers.turn("c")
    [(owner, others)] = layers.conflicts
    assert (owner, [str(one) for one in others]) == ("a", ["the fixture around the test"])


def test_a_mark_survives_a_rollback_below_it(
    connection: FakeConnection, layers: Layers, write: Write
) -> None:
    """What comes behind such a rollback does not stay for the next test."""
    write("a")
    mark = layers.mark()
    layers.rollback("a")
    write("b")
    layers.commit("b")
    layers.back_to_mark(mark)
    assert owners(connection) == ""


# All of it


OWNERS = "abc"


@dataclass
class Transaction:
    """What one owner would have done on a connection of its own."""

    number: int = 0
    rows: list[Row] = field(default_factory=list)
    savepoints: list[tuple[str, int]] = field(default_factory=list)

    def end(self) -> None:
        self.number += 1
        self.rows.clear()
        self.savepoints.clear()


class Machine(RuleBasedStateMachine):
    """Owners that take turns on one connection, beside transactions that know nothing of others.

    What is in the database is at each step what all of these have written and not taken back,
    without what another owner's rollback has taken. Just that is a conflict: at once where it was
    committed, else as soon as its owner goes on as if it was there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.connection = FakeConnection()
        self.layers = Layers(self.connection.execute)
        self.own = {owner: Transaction() for owner in OWNERS}
        self.done: list[Row] = []
        self.marks: list[tuple[Mark, list[Row]]] = []
        self.taken: set[tuple[str, int]] = set()
        self.robbed: dict[str, str] = {}
        self.conflicts: Counter[tuple[object, object]] = Counter()
        self.numbers = 0

    def acting(self, owner: str, act: Callable[..., None], *args: object) -> None:
        """Have an owner do something, and note whose rows that takes, if not its own."""
        before = list(self.connection.rows)
        act(owner, *args)
        gone = [row for row in before if row not in self.connection.rows and row.owner != owner]
        self.taken.update((row.owner, row.transaction) for row in gone)
        self.conflicts.update((owner, other) for other in {r.owner for r in gone if r in self.done})
        self.robbed.update((row.owner, owner) for row in gone if row not in self.done)

    def goes_on(self, owner: str) -> None:
        if owner in self.robbed:
            self.conflicts[self.robbed.pop(owner), owner] += 1

    @rule(owner=st.sampled_from(OWNERS))
    def read(self, owner: str) -> None:
        self.goes_on(owner)
        self.layers.turn(owner)

    @rule(owner=st.sampled_from(OWNERS))
    def write(self, owner: str) -> None:
        self.goes_on(owner)
        self.numbers += 1
        row = Row(owner, self.own[owner].number, self.numbers)
        self.layers.turn(owner).wrote = True
        self.connection.rows.append(row)
        self.own[owner].rows.append(row)

    @rule(owner=st.sampled_from(OWNERS))
    def savepoint(self, owner: str) -> None:
        self.goes_on(owner)
        own, label = self.own[owner], f"s{len(self.own[owner].savepoints)}"
        own.savepoints.append((label, len(own.rows)))
        self.layers.savepoint(owner, label)

    @rule(owner=st.sampled_from(OWNERS), depth=st.integers(0, 2), keep=st.booleans())
    def end_savepoint(self, owner: str, depth: int, keep: bool) -> None:
        own = self.own[owner]
        if depth < len(own.savepoints):
            label, length = own.savepoints[depth]
            del own.savepoints[depth:]
            if not keep:
                del own.rows[length:]
            self.acting(owner, self.layers.release if keep else self.layers.rollback_to, label)

    @rule(owner=st.sampled_from(OWNERS))
    def commit(self, owner: str) -> None:
        self.goes_on(owner)
        self.done.extend(self.own[owner].rows)
        self.own[owner].end()
        self.acting(owner, self.layers.commit)

    @rule(owner=st.sampled_from(OWNERS))
    def rollback(self, owner: str) -> None:
        self.robbed.pop(owner, None)
        self.own[owner].end()
        self.acting(owner, self.layers.rollback)

    @precondition(lambda self: len(self.marks) < 2)
    @rule()
    def mark(self) -> None:
        for owner in OWNERS:
            self.commit(owner)
        self.marks.append((self.layers.mark(), list(self.done)))

    @precondition(lambda self: self.marks)
    @rule()
    def back_to_mark(self) -> None:
        for owner in OWNERS:
            self.rollback(owner)
        mark, self.done = self.marks.pop()
        self.layers.back_to_mark(mark)

    @invariant()
    def rows_are_those_of_independent_transactions(self) -> None:
        wanted = [*self.done, *(row for own in self.own.values() for row in own.rows)]
        assert self.without_taken(self.connection.rows) == self.without_taken(wanted)

    def without_taken(self, rows: list[Row]) -> set[Row]:
        return {row for row in rows if (row.owner, row.transaction) not in self.taken}

    def teardown(self) -> None:
        self.layers.turn("somebody who looks")
        told = [(owner, other) for owner, others in self.layers.conflicts for other in set(others)]
        assert Counter(told) == self.conflicts


Machine.TestCase.settings = settings(
    max_examples=120,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestMachine = Machine.TestCase
