"""What statements on a shared connection mean for its savepoints, and which are refused."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from flask_autosession.exc import IsolationError
from flask_autosession.statements import is_write

from .sharing import Share

# The first word of a statement, and the one behind it.
_WORDS = re.compile(
    r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*(\w+)(?:\s+(?:WORK|TRANSACTION)\b)?\s*(\w*)", re.DOTALL
)
_BEGINNING = frozenset({"BEGIN", "START"})
_ENDING = frozenset({"COMMIT", "ROLLBACK", "END", "ABORT"})
# What MariaDB and MySQL commit before they do it.
_COMMITTING = frozenset(
    {
        *("ALTER", "ANALYZE", "CREATE", "DROP", "FLUSH", "GRANT"),
        *("LOCK", "OPTIMIZE", "RENAME", "REPAIR", "REVOKE", "TRUNCATE"),
    }
)
_watched: WeakSet[Engine] = WeakSet()


def watch(engine: Engine) -> None:
    """Follow what is done on an engine's connections, once and for all.

    Connections that are not shared are left alone.

    :param engine: The engine.
    """
    if engine in _watched:
        return
    _watched.add(engine)
    event.listen(engine, "before_cursor_execute", _before, retval=True)
    event.listen(engine, "after_cursor_execute", _after)
    dialect: Any = engine.dialect
    for name in ("do_savepoint", "do_release_savepoint", "do_rollback_to_savepoint"):
        setattr(dialect, name, functools.partial(_savepoint, name, getattr(dialect, name)))
    level = dialect.set_isolation_level
    dialect.set_isolation_level = functools.partial(_set_isolation_level, engine, level)


def _before(
    connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any
) -> tuple[str, Any]:
    share = connection.connection
    if isinstance(share, Share) and share.held.speaker is None:
        match = _WORDS.match(statement)
        first, second = (match[1].upper(), match[2].upper()) if match else ("", "")
        if first in _BEGINNING:
            # It has begun already. (SQLAlchemy's recipe for SQLite sends BEGIN itself.)
            return "SELECT 1", ()
        if first in _ENDING and second != "TO":
            raise IsolationError(
                f"{first} was sent as a statement, and would end the transaction that the test"
                " runs in.",
                "Call commit() or rollback() of the session or the connection instead.",
            )
        mysql = connection.dialect.name in {"mysql", "mariadb"}
        if mysql and first in _COMMITTING and second != "TEMPORARY":
            raise IsolationError(
                f"{first} commits implicitly on MariaDB and MySQL, and would end the transaction"
                " that the test runs in.",
                'Mark the test @pytest.mark.autosession("recreate"), or write isolate(app,'
                ' strategy="recreate").',
            )
        if not is_write(statement):
            share.reads()
    return statement, parameters


def _after(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
    share = connection.connection
    if isinstance(share, Share):
        share.held.check_lost(f"{statement.split(None, 1)[0]!r}")


def _savepoint(
    name: str, original: Callable[[Connection, str], None], connection: Connection, label: str
) -> None:
    share = connection.connection
    if not isinstance(share, Share):
        original(connection, label)
        return
    held = share.held
    held.check()
    act = {
        "do_savepoint": held.layers.savepoint,
        "do_release_savepoint": held.layers.release,
        "do_rollback_to_savepoint": held.layers.rollback_to,
    }[name]
    if name == "do_savepoint":
        held.layers.turn(share)
    held.speaker = connection
    try:
        act(share, label)
    finally:
        held.speaker = None


def _set_isolation_level(
    engine: Engine, original: Callable[[Any, str], None], driver: Any, level: str
) -> None:
    held = getattr(engine.pool, "held", None)
    if held is not None and held.driver is driver:
        raise IsolationError(
            f"The isolation level cannot become {level} inside of the transaction that the test"
            " runs in.",
            'Mark the test @pytest.mark.autosession("truncate"), or write isolate(app,'
            ' strategy="truncate").',
        )
    original(driver, level)
