"""The one connection to a database that everything in a test goes through."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import Pool

from flask_autosession.callsite import caller
from flask_autosession.exc import IsolationError

from .deferred import forget_deferred
from .layers import Layers
from .status import ABORTED, IDLE, status_of

real: ContextVar[bool] = ContextVar("flask_autosession_real", default=False)
"""Whether engines hand out connections of their own after all."""
_UNSEEN = "Something that SQLAlchemy does not see"
_inside: ContextVar[int] = ContextVar("flask_autosession_isolated", default=0)


def enter_thread(step: int) -> None:
    """Note that what runs in this context from now on belongs to the test, or not any more."""
    _inside.set(_inside.get() + step)


class Home:
    """The process and the thread of a test; no other ones may use its connection."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._thread = threading.get_ident()
        self.refused: list[str] = []
        """Where others have tried."""

    def is_here(self) -> bool:
        """Whether this is the test itself, or something that it waits for.

        What it waits for, ``async`` views for example, runs in a copy of its context.
        """
        same = threading.get_ident() == self._thread or _inside.get() > 0
        return same and os.getpid() == self._process

    def check(self) -> None:
        """Refuse others.

        :raises IsolationError: If this is one of them.
        """
        if not self.is_here():
            self.refused.append(caller())
            raise IsolationError(refused(caller()))


def refused(where: str) -> str:
    """Return what to say about another thread or process."""
    return (
        f"Another thread or process used the database at {where}, but in this test all connections"
        " are one, which only the test itself may use. Mark the test"
        ' @pytest.mark.autosession("truncate"), or write isolate(app, strategy="truncate"): its'
        " connections are real ones."
    )


@contextmanager
def real_connections() -> Generator[None]:
    """Have engines hand out connections of their own in this block, for what a test stands on."""
    token = real.set(True)
    try:
        yield
    finally:
        real.reset(token)


class Held:
    """A connection in a transaction, from a test's first use of a database to the test's end.

    :param engine: The engine that the connection is taken from.
    :param pool: That engine's own pool.
    :param home: The test.
    """

    def __init__(self, engine: Engine, pool: Pool, home: Home) -> None:
        self.engine: Engine = engine
        self.shares: dict[Any, None] = {}
        """What was handed out and not given back, in order."""
        self.lost: list[str] = []
        """Why its transaction has ended before the test."""
        self.speaker: Connection | None = None
        """The connection whose own savepoint is being dealt with, and which sees it fail."""
        self.ended: bool = False
        """Whether the connection was given back."""
        self.written: int = 0
        """How many statements have written."""
        self.changed: bool = False
        """Whether tables were made or changed in the transaction."""
        self._spoilt = False
        self._connection: Connection = Connection(engine, pool.connect())
        self.home: Home = home
        self._begun = False
        self.layers: Layers = Layers(self.execute)
        self._begin()

    def _begin(self) -> None:
        self._begun = False
        self._connection.begin()
        self.driver: Any = self._connection.connection.dbapi_connection
        """The driver's own connection."""
        self._status = status_of(self.driver)
        if self.engine.dialect.name == "sqlite" and self._status() == IDLE:
            self.execute("BEGIN")  # which its driver does not send before a savepoint

    def execute(self, statement: str) -> None:
        """Run a statement, past the engine's listeners unless one connection has asked for it."""
        aborted = self._status() == ABORTED
        try:
            self._send(statement)
        except Exception as error:
            if not aborted and _is_unknown_savepoint(error):
                # With the savepoint, the transaction is gone that it was in.
                self._tell_lost(_UNSEEN, error)
            raise
        if not self._begun:
            self._begun = self._status() != IDLE

    def _send(self, statement: str) -> None:
        if self.speaker is not None:
            self.speaker.exec_driver_sql(statement)
            return
        cursor = self.driver.cursor()
        try:
            cursor.execute(statement)
        finally:
            cursor.close()

    def in_error(self) -> bool:
        """Whether the database refuses everything but a rollback."""
        return self._status() == ABORTED

    def check_lost(self, statement: str | None = None) -> bool:
        """Note and tell that the transaction is over before its time, and begin it again.

        :param statement: What was sent last, if that may be why.
        :return: What :meth:`in_error` says; the driver is asked once for both.
        :raises IsolationError: If it is over.
        """
        status = self._status()
        if status == IDLE and self._begun:
            self._tell_lost(_UNSEEN if statement is None else named(statement))
        return status == ABORTED

    def _tell_lost(self, what: str, error: Exception | None = None) -> None:
        self.lost.append(what)
        self._spoilt = True
        self._begun = False
        self.layers = Layers(self.execute)
        with suppress(Exception):  # the connection itself may be lost
            self._connection.rollback()
            self._begin()
        raise IsolationError(*lost(what)) from error

    def tell(self, problems: list[str]) -> None:
        """Add what one connection could not do as several would have, and forget it."""
        for owner, others in self.layers.conflicts:
            problems.extend(
                f"The rollback of {owner} took back what {other} had done in the meantime: in this"
                " test all connections are one, and cannot undo but what came last. Where both"
                " matter, use the strategy 'truncate'."
                for other in dict.fromkeys(others)
            )
        if self._begun and not self.lost and self._status() == IDLE:
            self.lost = [_UNSEEN]
            self._spoilt = True
        if self.lost:
            problems.extend(" ".join(lost(what)) for what in self.lost)
        self.layers.conflicts, self.lost = [], []

    def end(self) -> None:
        """Roll everything back, and give the connection back to its pool."""
        self.ended, self._begun = True, False
        # The old ones would keep this alive until the garbage collector comes, test after test.
        self.layers = Layers(_refuse_late)
        if self.changed:
            forget_deferred(self.engine)
        if self._spoilt and self.engine.dialect.name != "sqlite":
            self._connection.invalidate()  # nobody knows what else was done to it
        self._connection.close()


def _refuse_late(_: str) -> None:
    raise IsolationError(
        "A connection was used after the test that had taken it.", "Take a new one in each test."
    )


def _is_unknown_savepoint(error: Any) -> bool:
    error = getattr(error, "orig", None) or error
    sqlstate = getattr(error, "sqlstate", None)  # PostgreSQL; MariaDB and MySQL have a number
    return sqlstate == "3B001" or error.args[:1] == (1305,) or "no such savepoint" in str(error)


def named(statement: str) -> str:
    """Return what to call a statement in a message."""
    return repr(" ".join(statement.split())[:40])


def lost(what: str) -> tuple[str, str]:
    """Return what to say when a test's transaction was ended inside of it."""
    happened = (
        f"{what} has committed or rolled back the transaction that the test runs in. What was done"
        " before it may be in the database for good."
    )
    advice = "Use the strategy 'truncate', or 'recreate' where tables change."
    return happened, f"Empty the database once. {advice}"
