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

from .exc import SharedConnectionError
from .statements import is_write

_TURN = "flask_autosession.turn"


def attach(engine: Engine, mode: str) -> None:
    """Give an SQLite engine real transactions.

    :param engine: The engine; its options and the listeners it has stay as they are.
    :param mode: ``on_write`` sends BEGIN IMMEDIATE before the first statement that writes or sets
        a savepoint; ``deferred`` and ``immediate`` send that BEGIN with every transaction; ``off``
        does nothing.
    """
    if mode == "off":
        return
    writers = _Writers(engine)
    if mode == "on_write":
        event.listen(engine, "before_cursor_execute", writers.before_statement)
        event.listen(engine, "savepoint", writers.before_savepoint)
    else:
        event.listen(engine, "begin", partial(writers.begin, command=f"BEGIN {mode.upper()}"))


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

    def before_statement(self, connection: Connection, _: Any, statement: str, *__: Any) -> None:
        if is_write(statement):
            self.begin(connection)

    def before_savepoint(self, connection: Connection, _: str) -> None:
        self.begin(connection)

    def begin(self, connection: Connection, command: str = "BEGIN IMMEDIATE") -> None:
        """Begin, unless this connection has; raise if another one has on the same driver's.

        :raises SharedConnectionError: If so.
        """
        proxy = connection.connection
        driver: Any = proxy.dbapi_connection
        turn = _turn(proxy)
        with turn.lock:
            if not driver.in_transaction:
                connection.exec_driver_sql(command)
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
    try:
        turn: _Turn = proxy.info.setdefault(_TURN, _Turn())
    except NotImplementedError:  # while the engine makes its very first connection
        return _Turn()
    return turn
