"""Real transactions on SQLite.

The driver begins a transaction before INSERT, UPDATE and DELETE only, so that a savepoint that
comes first stands alone, and what is released in it stays when the rest is rolled back. Here BEGIN
is sent when it is needed, and the driver's own settings are left as they are: it begins nothing
while a transaction is open.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import ref

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from .drivers import info_of
from .exc import SharedConnectionError

_TURN = "flask_autosession.turn"


def attach(engine: Engine, mode: str) -> Callable[[Connection, Any], None] | None:
    """Give an SQLite engine real transactions.

    :param engine: The engine; its options and the listeners it has stay as they are.
    :param mode: ``on_write`` sends BEGIN IMMEDIATE before the first statement that writes or sets
        a savepoint; ``deferred`` and ``immediate`` send that BEGIN with every transaction; ``off``
        does nothing.
    :return: What is to be called before a statement that writes, if anything.
    """
    if mode == "off":
        return None
    writers = _Writers(engine)
    if mode == "on_write":
        dialect: Any = engine.dialect
        dialect.do_savepoint = partial(writers.savepoint, dialect.do_savepoint)
        return writers.begin
    begin = partial(writers.begin, cursor=None, command=f"BEGIN {mode.upper()}")
    event.listen(engine, "begin", begin)
    return None


@dataclass
class _Turn:
    """Who may end the transaction that is open on a driver's connection."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    writer: ref[Any] | None = None

    def belongs_to(self, proxy: Any) -> bool:
        writer = None if self.writer is None else self.writer()
        return writer is None or writer is proxy


class _Writers:
    """Who began the transaction that is open on each of an engine's driver connections.

    In memory, all contexts share one driver connection: COMMIT or ROLLBACK from one that only read
    would end the transaction of the one that writes. No event can hold them back, so the two
    methods of this engine's own dialect object ask who began.
    """

    def __init__(self, engine: Engine) -> None:
        dialect: Any = engine.dialect
        dialect.do_commit = self._guard(dialect.do_commit)
        dialect.do_rollback = self._guard(dialect.do_rollback)

    def savepoint(self, original: Callable[..., None], connection: Connection, name: str) -> None:
        """Begin before a savepoint is set."""
        self.begin(connection, None)
        original(connection, name)

    def begin(self, connection: Connection, cursor: Any, command: str = "BEGIN IMMEDIATE") -> None:
        """Begin, unless this connection has; raise if another one has on the same driver's.

        :param cursor: The one that a statement is about to be executed by, if there is one: what
            fails here fails as that statement.
        :raises SharedConnectionError: If so.
        """
        proxy = connection.connection
        driver: Any = proxy.dbapi_connection
        turn = _turn(proxy)
        with turn.lock:
            if not driver.in_transaction:
                if cursor is None:
                    connection.exec_driver_sql(command)
                else:
                    cursor.execute(command)
            elif not turn.belongs_to(proxy):
                raise SharedConnectionError
            turn.writer = ref(proxy)

    def _guard(self, end: Callable[[Any], None]) -> Callable[[Any], None]:
        def guarded(proxy: Any) -> None:
            turn = _turn(proxy)
            with turn.lock:
                if turn.belongs_to(proxy):
                    turn.writer = None
                    end(proxy)

        return guarded


def _turn(proxy: Any) -> _Turn:
    info = info_of(proxy)
    turn: _Turn | None = info.get(_TURN)
    return info.setdefault(_TURN, _Turn()) if turn is None else turn
