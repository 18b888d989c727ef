"""Emptying all tables, whatever foreign keys they have, and setting their counters back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SAWarning

Rows = dict[sa.Table, list[dict[str, Any]]]
PATIENCE: int = 10
"""How many seconds to wait for somebody else's locks."""


def existing(connection: Connection, metadata: sa.MetaData) -> list[sa.Table]:
    """Return those tables that are there, each behind those it refers to where that is possible.

    :param connection: A connection.
    :param metadata: The tables that an application knows.
    """
    inspector = sa.inspect(connection)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAWarning)  # of circles, which do not matter here
        tables = metadata.sorted_tables
    there = {
        schema: set(inspector.get_table_names(schema)) for schema in {t.schema for t in tables}
    }
    return [table for table in tables if table.name in there[table.schema]]


def save(engine: Engine, metadata: sa.MetaData) -> Rows:
    """Return all rows of all tables, for :func:`empty` to put them back."""
    with engine.connect() as connection:
        rows = {
            table: [dict(row) for row in connection.execute(table.select()).mappings()]
            for table in existing(connection, metadata)
        }
    return {table: some for table, some in rows.items() if some}


def empty(engine: Engine, metadata: sa.MetaData, saved: Rows) -> None:
    """Empty all tables, set their counters back, and put the rows back that were saved.

    :param engine: An engine.
    :param metadata: The tables that an application knows.
    :param saved: What :func:`save` has returned.
    """
    with engine.connect() as connection:
        tables = existing(connection, metadata)
        connection.rollback()
        around, delete = _WAYS.get(engine.dialect.name, (_unchecked_nothing, _delete))
        with around(connection), connection.begin():
            if tables:
                delete(connection, tables)
            for table in tables:
                if table in saved:
                    connection.execute(table.insert(), saved[table])


def _names(connection: Connection, tables: Iterable[sa.Table]) -> list[str]:
    return [connection.dialect.identifier_preparer.format_table(table) for table in tables]


def _delete(connection: Connection, tables: list[sa.Table]) -> None:
    for name in reversed(_names(connection, tables)):
        connection.exec_driver_sql(f"DELETE FROM {name}")


@contextmanager
def _unchecked_nothing(connection: Connection) -> Generator[None]:
    yield


# SQLite


@contextmanager
def _sqlite_unchecked(connection: Connection) -> Generator[None]:
    checked = connection.exec_driver_sql("PRAGMA foreign_keys").scalar()
    connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
    connection.rollback()
    try:
        yield
    finally:
        connection.exec_driver_sql(f"PRAGMA foreign_keys = {checked}")
        connection.rollback()


def _sqlite(connection: Connection, tables: list[sa.Table]) -> None:
    _delete(connection, tables)
    if sa.inspect(connection).has_table("sqlite_sequence"):
        connection.exec_driver_sql("DELETE FROM sqlite_sequence")


# PostgreSQL


def _postgresql(connection: Connection, tables: list[sa.Table]) -> None:
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{PATIENCE}s'")
    names = ", ".join(_names(connection, tables))
    connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY")
    for table in tables:
        for column in table.columns:
            if isinstance(column.default, sa.Sequence):  # which no column owns
                name = connection.dialect.identifier_preparer.format_sequence(column.default)
                connection.exec_driver_sql(f"ALTER SEQUENCE {name} RESTART")


# MariaDB and MySQL


@contextmanager
def _mysql_unchecked(connection: Connection) -> Generator[None]:
    names = ("foreign_key_checks", "lock_wait_timeout", "innodb_lock_wait_timeout")
    values = (0, PATIENCE, PATIENCE)
    pairs = ", ".join(f"{name} = {value}" for name, value in zip(names, values, strict=True))
    connection.exec_driver_sql(f"SET {pairs}")
    connection.rollback()
    try:
        yield
    finally:
        connection.exec_driver_sql("SET " + ", ".join(f"{name} = DEFAULT" for name in names))
        connection.rollback()


def _mysql(connection: Connection, tables: list[sa.Table]) -> None:
    # TRUNCATE is the one way to set a counter back, but takes long: where there is none, DELETE.
    counted = connection.exec_driver_sql(
        "SELECT table_name FROM information_schema.tables"
        " WHERE table_schema = DATABASE() AND auto_increment > 1"
    )
    advanced = set(counted.scalars())
    for table, name in zip(tables, _names(connection, tables), strict=True):
        how = "TRUNCATE" if table.name in advanced and table.schema is None else "DELETE FROM"
        connection.exec_driver_sql(f"{how} {name}")


_Way = tuple[Callable[[Connection], Any], Callable[[Connection, list[sa.Table]], None]]
_WAYS: dict[str, _Way] = {
    "sqlite": (_sqlite_unchecked, _sqlite),
    "postgresql": (_unchecked_nothing, _postgresql),
    "mysql": (_mysql_unchecked, _mysql),
    "mariadb": (_mysql_unchecked, _mysql),
}
