"""Real transactions on SQLite.

The driver begins a transaction before INSERT, UPDATE and DELETE only, so that a savepoint that
comes first stands alone, and what is released in it stays when the rest is rolled back. Here BEGIN
is sent when it is needed, and the driver's own settings are left as they are: it begins nothing
while a transaction is open.
"""

from __future__ import annotations

from typing import Any
from weakref import ref

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import PoolProxiedConnection

from .exc import SharedConnectionError
from .statements import is_write

_OWNER = "flask_autosession.writer"


def attach(engine: Engine, mode: str) -> None:
    """Give an SQLite engine real transactions.

    :param engine: The engine; its options and the listeners it has stay as they are.
    :param mode: ``on_write`` sends BEGIN IMMEDIATE before the first statement that writes or sets
        a savepoint; ``deferred`` and ``immediate`` send that BEGIN with every transaction; ``off``
        does nothing.
    """
    if mode == "off":
        return
    _keep_owners_apart(engine)
    if mode == "on_write":
        event.listen(engine, "before_cursor_execute", _before_write)
        event.listen(engine, "savepoint", _before_savepoint)
    else:
        command = f"BEGIN {mode.upper()}"

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            _begin(connection, command)


def _before_write(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
    if is_write(statement):
        _begin(connection, "BEGIN IMMEDIATE")


def _before_savepoint(connection: Connection, name: str | None) -> None:
    _begin(connection, "BEGIN IMMEDIATE")


def _begin(connection: Connection, command: str) -> None:
    fairy = connection.connection
    if fairy.dbapi_connection.in_transaction:  # type: ignore[union-attr]
        owner = _owner(fairy)
        if owner is not None and owner is not fairy:
            raise SharedConnectionError
    else:
        connection.exec_driver_sql(command)
    fairy.info[_OWNER] = ref(fairy)


def _owner(fairy: PoolProxiedConnection) -> Any:
    reference = fairy.info.get(_OWNER)
    return reference() if reference is not None else None


def _keep_owners_apart(engine: Engine) -> None:
    # In memory, all contexts share one connection: COMMIT or ROLLBACK from one that only read
    # would end the transaction of the one that writes. No event can hold them back, so the two
    # methods of this engine's own dialect object ask who began.
    dialect = engine.dialect

    def ask(end: Any) -> Any:
        def guarded(connection: Any) -> None:
            info = getattr(connection, "info", None)
            if info is not None and _OWNER in info:
                owner = _owner(connection)
                if owner is not None and owner is not connection:
                    return
                del info[_OWNER]
            end(connection)

        return guarded

    dialect.do_commit = ask(dialect.do_commit)  # type: ignore[method-assign]
    dialect.do_rollback = ask(dialect.do_rollback)  # type: ignore[method-assign]
