"""What is known about one unit of work, and what follows from it. No database is touched here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import ref

from sqlalchemy.engine import Connection
from sqlalchemy.orm import SessionTransaction

from .body import Progress
from .phases import DECIDED, Phase, State

Callback = Callable[[], Any]


@dataclass
class Failure:
    """What doomed a unit: the error (None for ``auto.doom()``), its place, and how deep it sits."""

    error: BaseException | None
    where: str
    level: int = 0
    """How many savepoints were open: 0 harms the whole unit, 1 the outermost savepoint."""
    undone: bool = False
    """Whether the database has rolled back already."""
    silent: bool = False
    """Whether a savepoint was rolled back over it while no exception said so."""

    def __str__(self) -> str:
        # Only the class of the error: the text of a database error quotes the row's values.
        what = "auto.doom() was called" if self.error is None else type(self.error).__name__
        return f"{what} at {self.where}"


@dataclass
class _Savepoint:
    depth: int
    callbacks: int
    in_flight: BaseException | None


class Unit:
    """One unit of work, from the first touch of the session to its commit or rollback."""

    def __init__(self) -> None:
        self.outcome: State | None = None
        self.failure: Failure | None = None
        self.wrote: bool = False
        """Whether a statement wrote, as far as can be seen. It only decides about warnings."""
        self.flushing: bool = False
        self.bypassed: bool = False
        """Whether a statement wrote that no flush has sent, past the objects in the session."""
        self.flushed: dict[int, object] = {}
        """The objects that were flushed, by their id, in a shell, which tells how many."""
        self.connections: dict[Connection, Any] = {}
        """The connections it works on, each with what the pool has handed out for it."""
        self.telling: list[tuple[Connection, Any]] = []
        """Those whose drivers tell of aborted transactions, each with what tells it."""
        self.inserted: list[ref[Any]] = []
        self.deleted: bool = False
        """The objects that have got a row, weakly, as in the session; whether any have lost it."""
        self.on_commit: list[Callback] = []
        self.on_rollback: list[Callback] = []
        # Looked up when a transaction ends, that of each flush too: not by going through them all.
        self._savepoints: dict[SessionTransaction, _Savepoint] = {}

    @property
    def state(self) -> State:
        """Where the unit stands in its life."""
        if self.outcome is not None:
            return self.outcome
        if self.failure is not None:
            return State.DOOMED
        return State.ACTIVE if self.used else State.IDLE

    @property
    def used(self) -> bool:
        """Whether its end matters to anybody."""
        return bool(self.connections or self.on_commit or self.on_rollback or self.failure)

    @property
    def level(self) -> int:
        """How many savepoints are open."""
        return len(self._savepoints)

    def failed(self, error: BaseException, where: Callable[[], str], *, level: int) -> None:
        """Note that something failed; the first failure is the one told.

        :param error: What was raised.
        :param where: Returns the place; not asked if something has failed before.
        :param level: How many savepoints are around what it harms.
        """
        if self.failure is None:
            self.failure = Failure(error, where(), level)
        else:
            self.failure.level = min(self.failure.level, level)
            self.failure.undone = self.failure.undone and level > 0

    def savepoint_set(self, transaction: SessionTransaction) -> None:
        """Note that a savepoint was set; what is registered from now on belongs to it."""
        self._savepoints[transaction] = _Savepoint(
            len(self._savepoints), len(self.on_commit), sys.exception()
        )

    def savepoint_released(self, transaction: SessionTransaction | None) -> None:
        """Note that a savepoint was released; a failure in it now sits in what is around it."""
        savepoint = None if transaction is None else self._savepoints.get(transaction)
        if savepoint is not None:
            self._forget(savepoint)
            if self.failure is not None:
                self.failure.level = min(self.failure.level, savepoint.depth)

    def savepoint_rolled_back(self, transaction: SessionTransaction) -> Failure | None:
        """Note that a savepoint was rolled back, and with it what was registered or failed in it.

        ``on_rollback`` functions stay: they belong to the unit, and tell of its end.

        :return: The failure that was undone, if there was one.
        """
        savepoint = self._savepoints.get(transaction)
        if savepoint is None:
            return None
        del self.on_commit[savepoint.callbacks :]
        self._forget(savepoint)
        failure = self.failure
        if failure is None or failure.level <= savepoint.depth:
            return None
        self.failure = None
        failure.silent = sys.exception() is savepoint.in_flight
        return failure

    def undone(self) -> None:
        """Note that the whole transaction was rolled back while the unit goes on, doomed."""
        assert self.failure is not None
        self.failure.level = 0
        self.failure.undone = True
        self._savepoints.clear()
        self.connections.clear()
        self.telling.clear()

    def _forget(self, savepoint: _Savepoint) -> None:
        # The savepoints inside of it have come later, and are over as well.
        while len(self._savepoints) > savepoint.depth:
            self._savepoints.popitem()


def app_context() -> str:
    """Return what a bare app context is called in the log."""
    return "app context"


class Frame:
    """One request, callback or bare context; a request may stand inside another frame's context.

    :param name: Returns what it is called in the log.
    :param phase: What goes on in it.
    :param request: The request, or the command, that it stands for.
    :param outer: What it stands inside of.
    """

    # Every request makes one of these, and most of them change nothing of this.
    drops: tuple[str, ...] = ()
    """What was thrown away in this frame, told in a warning if the response says success."""
    doom: Failure | None = None
    status: int | None = None
    running: bool = False
    """Whether Flask is dispatching the request right now."""
    receiving: bool = False
    """Whether a signal's receivers run, whose own units are not signalled."""
    refused: BaseException | None = None
    """What the database, or a listener, has refused to flush or commit at the end."""
    errored: bool = False
    """Whether an exception has been passed on to the error handlers."""
    shared: bool = False
    """Whether the app context was there before the request."""
    body: Progress | None = None
    """How far the response's body has come, if that is made behind the response."""
    behind: Phase = DECIDED
    """What goes on while it is made."""

    def __init__(
        self,
        name: Callable[[], str],
        phase: Phase,
        request: object = None,
        outer: Frame | None = None,
    ) -> None:
        self.name = name
        self.phase = phase
        self.request = request
        self.outer = outer

    def __str__(self) -> str:
        return self.name() if self.status is None else f"{self.name()} {self.status}"


def decide(*, success: bool, failure: Failure | None) -> tuple[bool, str]:
    """Decide whether a unit of work is committed.

    The idea of deciding by the response's status in one small function is that of
    pyramid_tm's commit veto.

    :param success: What the response says: its status, or the rule of ``commit_when``.
    :param failure: What doomed the unit, if anything.
    :return: Whether to commit, and the reason in words.
    """
    if failure is not None:
        return False, f"doomed: {failure}"
    if not success:
        return False, "the response says failure"
    return True, "the response says success"
