"""Deferred constraints: checked by COMMIT, but not where a savepoint takes its place."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from .binds import database_key

_DEFERRABLE = {
    "postgresql": (
        "SELECT nspname, conname, condeferred FROM pg_constraint"
        " JOIN pg_namespace ON pg_namespace.oid = connamespace WHERE condeferrable"
    ),
    "sqlite": "SELECT name FROM sqlite_master WHERE sql LIKE '%DEFERRABLE%'",
}
_known: dict[object, list[tuple[Any, ...]]] = {}


def forget_deferred(engine: Engine) -> None:
    """Look again which constraints a database has, because its tables have changed."""
    _known.pop(database_key(engine), None)


@event.listens_for(sa.Table, "after_create")
@event.listens_for(sa.Table, "after_drop")
def _changed(_: sa.Table, connection: Connection, **__: object) -> None:
    forget_deferred(connection.engine)


def check_deferred(engine: Engine, driver: Any, *, changed: bool) -> None:
    """Check the constraints that COMMIT would check, and defer again those that are.

    :param engine: An engine that uses the database.
    :param driver: The driver's connection to it.
    :param changed: Whether tables were changed in a transaction that is not over.
    :raises Exception: The driver's error, if one is violated.
    """
    dialect: Any = engine.dialect
    if dialect.name not in _DEFERRABLE:
        return
    key = database_key(engine)
    if changed:
        _known.pop(key, None)
    elif _known.get(key) == []:
        return
    cursor = driver.cursor()
    try:
        if key not in _known:
            cursor.execute(_DEFERRABLE[dialect.name])
            _known[key] = cursor.fetchall()
        if _known[key]:
            _CHECKS[dialect.name](dialect, cursor, _known[key])
    finally:
        cursor.close()


def _postgresql(dialect: Any, cursor: Any, constraints: list[tuple[Any, ...]]) -> None:
    cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    quote = dialect.identifier_preparer.quote_identifier
    again = [f"{quote(schema)}.{quote(name)}" for schema, name, deferred in constraints if deferred]
    if again:
        cursor.execute(f"SET CONSTRAINTS {', '.join(again)} DEFERRED")


def _sqlite(dialect: Any, cursor: Any, _: list[tuple[Any, ...]]) -> None:
    if not cursor.execute("PRAGMA foreign_keys").fetchone()[0]:
        return
    if cursor.execute("PRAGMA foreign_key_check").fetchone() is not None:
        raise dialect.loaded_dbapi.IntegrityError("FOREIGN KEY constraint failed")


_CHECKS = {"postgresql": _postgresql, "sqlite": _sqlite}
