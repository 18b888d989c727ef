"""Connections on which tables can be emptied and dropped, whatever refers to them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from .held import real_connections

PATIENCE: int = 10
"""Seconds to wait for somebody else's locks; on SQLite the ``timeout`` of its driver says that."""
_MYSQL = ("foreign_key_checks", "lock_wait_timeout", "innodb_lock_wait_timeout")


@contextmanager
def unchecked(engine: Engine) -> Generator[Connection]:
    """Give a connection that checks no foreign keys and does not wait for ever; commit at the end.

    PostgreSQL goes on checking: there it takes one statement for all tables, or CASCADE.

    :param engine: The engine.
    """
    with real_connections(), engine.connect() as connection:
        around = _AROUND.get(engine.dialect.name, nullcontext)
        with around(connection), connection.begin():
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{PATIENCE}s'")
            yield connection


@contextmanager
def _sqlite(connection: Connection) -> Generator[None]:
    # Past SQLAlchemy, where a listener may send BEGIN first, in which it would do nothing.
    cursor = connection.connection.cursor()
    checked = cursor.execute("PRAGMA foreign_keys").fetchone()[0]
    cursor.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        cursor.execute(f"PRAGMA foreign_keys = {checked}")
        cursor.close()


@contextmanager
def _mysql(connection: Connection) -> Generator[None]:
    before = connection.exec_driver_sql("SELECT " + ", ".join(f"@@{name}" for name in _MYSQL)).one()
    _set(connection, 0, PATIENCE, PATIENCE)
    try:
        yield
    finally:
        _set(connection, *before)


def _set(connection: Connection, *values: int) -> None:
    pairs = zip(_MYSQL, values, strict=True)
    connection.exec_driver_sql("SET " + ", ".join(f"{name} = {value}" for name, value in pairs))
    connection.rollback()


_AROUND: dict[str, Callable[[Connection], AbstractContextManager[None]]] = {
    "sqlite": _sqlite,
    "mysql": _mysql,
    "mariadb": _mysql,
}


def existing(connection: Connection, metadata: sa.MetaData) -> list[sa.Table]:
    """Return those tables of an application that are there.

    :param connection: A connection.
    :param metadata: The tables that the application knows.
    """
    inspector, tables = sa.inspect(connection), list(metadata.tables.values())
    schemas = {table.schema for table in tables}
    there = {schema: set(inspector.get_table_names(schema)) for schema in schemas}
    return [table for table in tables if table.name in there[table.schema]]


def counted(engine: Engine, metadata: sa.MetaData) -> dict[str, int]:
    """Return how many rows the tables of an application have, as far as they have any.

    :param engine: An engine.
    :param metadata: The tables that the application knows.
    """
    with unchecked(engine) as connection:  # somebody may have locked a table as a whole
        counts = {
            table.fullname: connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
            for table in existing(connection, metadata)
        }
    return {name: count for name, count in counts.items() if count}
