"""What statements on a shared connection mean for its savepoints, and which are refused."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import ref

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from flask_autosession.exc import IsolationError
from flask_autosession.statements import is_write

from .deferred import forget_deferred
from .held import named
from .sharing import Share

_SKIPPED = r"(?:\s|--[^\n]*(?:\n|$)|/\*[^!].*?\*/)*"
_BEGINS = re.compile(_SKIPPED + r"(?:BEGIN|START\s+TRANSACTION)\b", re.IGNORECASE | re.DOTALL)
_ENDS = re.compile(
    _SKIPPED + r"(?:COMMIT|END|ABORT|ROLLBACK(?!(?:\s+(?:WORK|TRANSACTION))?\s+TO\b))\b",
    re.IGNORECASE | re.DOTALL,
)
# What MariaDB and MySQL commit before they do it.
_COMMITS = re.compile(
    _SKIPPED
    + r"(?:ALTER|CREATE(?!\s+(?:OR\s+REPLACE\s+)?TEMPORARY\b)|DROP(?!\s+TEMPORARY\b)"
    + r"|ANALYZE(?!\s+(?:SELECT|FORMAT|UPDATE|DELETE|INSERT)\b)|CACHE|CHECK|FLUSH|GRANT|INSTALL"
    + r"|LOAD\s+INDEX|LOCK|OPTIMIZE|RENAME|REPAIR|RESET|REVOKE|SET\s+PASSWORD|TRUNCATE|UNINSTALL"
    + r"|UNLOCK)\b",
    re.IGNORECASE | re.DOTALL,
)
_CHANGES = re.compile(_SKIPPED + r"(?:ALTER|CREATE|DROP)\b", re.IGNORECASE | re.DOTALL)


class _Kind(NamedTuple):
    """What the text of a statement says of it."""

    begins: bool
    ends: bool
    commits: bool
    changes: bool
    writes: bool


@functools.lru_cache(maxsize=500)
def _kind(statement: str) -> _Kind:
    # Tests send the same statements again and again; an engine remembers as many of them.
    return _Kind(
        begins=_BEGINS.match(statement) is not None,
        ends=_ENDS.match(statement) is not None,
        commits=_COMMITS.match(statement) is not None,
        changes=_CHANGES.match(statement) is not None,
        writes=is_write(statement),
    )


def watch(engine: Engine) -> None:
    """Follow what is done on an engine's connections; connections that are not shared go free.

    :param engine: An engine that is not watched yet.
    """
    event.listen(engine, "before_cursor_execute", _before, retval=True)
    event.listen(engine, "after_cursor_execute", _after)
    dialect: Any = engine.dialect
    for name in ("do_savepoint", "do_release_savepoint", "do_rollback_to_savepoint"):
        setattr(dialect, name, functools.partial(_savepoint, name, getattr(dialect, name)))
    dialect.do_begin_twophase = functools.partial(_begin_twophase, dialect.do_begin_twophase)
    level = dialect.set_isolation_level
    dialect.set_isolation_level = functools.partial(_set_isolation_level, ref(engine), level)


def _before(
    connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any
) -> tuple[str, Any]:
    share = connection.connection
    if isinstance(share, Share) and share.held.speaker is None:
        kind = _kind(statement)
        if kind.begins:
            # It has begun already. (SQLAlchemy's recipe for SQLite sends BEGIN itself.)
            return "SELECT 1", ()
        if kind.ends or kind.commits:
            _refuse(connection, statement, kind)
        if kind.writes:
            share.held.written += 1
        else:
            share.reads()
    return statement, parameters


def _refuse(connection: Connection, statement: str, kind: _Kind) -> None:
    if kind.ends:
        raise IsolationError(
            f"{named(statement)} was sent as a statement, and would end the transaction that the"
            " test runs in.",
            "Call commit() or rollback() of the session or the connection instead.",
        )
    if connection.dialect.name in {"mysql", "mariadb"}:
        raise IsolationError(
            f"{named(statement)} commits implicitly on MariaDB and MySQL, and would end the"
            " transaction that the test runs in.",
            "Use the strategy 'recreate': @pytest.mark.autosession(\"recreate\"), or isolate(app,"
            ' strategy="recreate"). If a fixture does it, by create_all() or drop_all(), take that'
            " out: the tables are made for the tests.",
        )


def _after(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
    share, changes = connection.connection, _kind(statement).changes
    if isinstance(share, Share):
        share.held.changed = share.held.changed or changes
        share.held.check_lost(statement)
    elif changes:
        forget_deferred(connection.engine)


def _savepoint(
    name: str, original: Callable[[Connection, str], None], connection: Connection, label: str
) -> None:
    share = connection.connection
    if not isinstance(share, Share):
        original(connection, label)
        return
    held = share.held
    held.home.check()
    act = {
        "do_savepoint": held.layers.savepoint,
        "do_release_savepoint": held.layers.release,
        "do_rollback_to_savepoint": held.layers.rollback_to,
    }[name]
    if name == "do_savepoint":
        share.turn()
    held.speaker = connection
    try:
        act(share, label)
    finally:
        held.speaker = None


def _begin_twophase(original: Callable[..., None], connection: Connection, xid: Any) -> None:
    if isinstance(connection.connection, Share):
        raise IsolationError(
            "A two-phase transaction cannot be begun inside of the transaction that the test runs"
            " in.",
            "Use the strategy 'truncate'.",
        )
    original(connection, xid)


def _set_isolation_level(
    watched: ref[Engine], original: Callable[[Any, str], None], driver: Any, level: str
) -> None:
    engine: Any = watched()  # weakly: its dialect has this function
    held = getattr(engine.pool, "held", None)
    own = str(engine.get_execution_options().get("isolation_level")).upper().replace("_", " ")
    if held is None or held.ended or held.driver is not driver:
        original(driver, level)
    elif own != level:  # which it has got already
        raise IsolationError(
            f"The isolation level cannot become {level} inside of the transaction that the test"
            " runs in.",
            'Mark the test @pytest.mark.autosession("truncate"), or write isolate(app,'
            ' strategy="truncate").',
        )
