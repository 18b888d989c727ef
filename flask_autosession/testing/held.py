"""The one connection to a database that everything in a test goes through."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import Pool

from flask_autosession.drivers import is_aborted
from flask_autosession.exc import IsolationError

from .layers import Layers

real: ContextVar[bool] = ContextVar("flask_autosession_real", default=False)
"""Whether engines hand out connections of their own after all."""
_inside: ContextVar[int] = ContextVar("flask_autosession_isolated", default=0)


def enter_thread(step: int) -> None:
    """Note that what runs in this context from now on belongs to the test, or not any more."""
    _inside.set(_inside.get() + step)


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
    """

    def __init__(self, engine: Engine, pool: Pool) -> None:
        self.engine: Engine = engine
        self.shares: dict[Any, None] = {}
        """What was handed out and not given back, in order."""
        self.lost: list[str] = []
        """Why its transaction has ended before the test."""
        self.speaker: Connection | None = None
        """The connection whose own savepoint is being dealt with, and which sees it fail."""
        self._connection: Connection = Connection(engine, pool.connect())
        self._home = os.getpid(), threading.get_ident()
        self.layers: Layers = Layers(self.execute)
        self._begin()

    def _begin(self) -> None:
        self._connection.begin()
        begin = {"sqlite": "BEGIN", "mysql": "START TRANSACTION", "mariadb": "START TRANSACTION"}
        # Where the driver can tell, it tells at once when this transaction is over.
        if self.engine.dialect.name in begin and not self.in_transaction():
            self.execute(begin[self.engine.dialect.name])

    @property
    def driver(self) -> Any:
        """The driver's own connection."""
        return self._connection.connection.dbapi_connection

    def execute(self, statement: str) -> None:
        """Run a statement, past the engine's listeners unless one connection has asked for it."""
        if self.speaker is not None:
            self.speaker.exec_driver_sql(statement)
            return
        cursor = self.driver.cursor()
        try:
            cursor.execute(statement)
        finally:
            cursor.close()

    def in_transaction(self) -> bool:
        """Whether the driver says that the transaction goes on; True where it cannot tell."""
        driver = self.driver
        if hasattr(driver, "in_transaction"):  # sqlite3
            return bool(driver.in_transaction)
        if hasattr(driver, "server_status"):  # PyMySQL: SERVER_STATUS_IN_TRANS
            return bool(driver.server_status & 1)
        info = getattr(driver, "info", None)  # psycopg: PQTRANS_IDLE
        return getattr(info, "transaction_status", None) != 0

    def in_error(self) -> bool:
        """Whether the database refuses everything but a rollback."""
        return is_aborted(self._connection)

    def check(self) -> None:
        """Refuse threads and processes that the test does not wait for.

        What a test waits for, ``async`` views for example, runs in a copy of its context.

        :raises IsolationError: If this is one of those.
        """
        process, thread = self._home
        if process != os.getpid() or (thread != threading.get_ident() and not _inside.get()):
            raise IsolationError(
                "Another thread or process used the database, but in this test all connections"
                " are one, which only the test itself may use.",
                'Mark the test @pytest.mark.autosession("truncate"), or write isolate(app,'
                ' strategy="truncate"): its connections are real ones.',
            )

    def check_lost(self, what: str) -> None:
        """Note and tell that the transaction is over before its time, and begin it again.

        :param what: What was done last.
        :raises IsolationError: If it is over.
        """
        if not self.in_transaction():
            self.lost.append(what)
            self.layers = Layers(self.execute)
            self._connection.rollback()
            self._begin()
            raise IsolationError(*lost(what))

    def problems(self) -> list[str]:
        """Return what one connection could not do as several would have, and forget it."""
        found = [
            f"The rollback of {owner} took back what {other} had committed in the"
            " meantime: in this test all connections are one, and cannot undo but what came last."
            " Where both matter, use the strategy 'truncate'."
            for owner, others in self.layers.conflicts
            for other in dict.fromkeys(others)
        ]
        self.layers.conflicts.clear()
        return found

    def end(self) -> None:
        """Roll everything back, and give the connection back to its pool."""
        try:
            self._connection.rollback()
        finally:
            self._connection.close()


def lost(what: str) -> tuple[str, str]:
    """Return what to say when a test's transaction was ended inside of it."""
    return (
        (
            f"{what} has committed or rolled back the transaction that the test runs in. What was"
            " done before it may be in the database for good."
        ),
        (
            'Mark the test @pytest.mark.autosession("recreate"), or write isolate(app,'
            ' strategy="recreate"), and empty the database once.'
        ),
    )
