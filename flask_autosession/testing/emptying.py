"""Undoing what was committed: tables are emptied, or dropped and made again."""

from __future__ import annotations

from functools import partial

import sqlalchemy as sa
from flask import Flask
from sqlalchemy.engine import Connection, Engine

from .binds import engines_of
from .dropping import Thing, drop_things
from .schema import ensure, known_of, metadata_of
from .unchecked import existing, unchecked
from .undoing import told, undone_on_each

_VERSION = Thing("TABLE", None, "alembic_version")


def empty_all(app: Flask) -> list[str]:
    """Empty all tables of an app and set their counters back.

    :param app: The application.
    :return: What could not be undone.
    """

    def undo(key: str | None, engine: Engine) -> None:
        empty(engine, metadata_of(app, key))

    return undone_on_each(engines_of(app), undo)


def rebuild(app: Flask, source: str) -> list[str]:
    """Drop the tables of an app, and what tests have made beside them, and make them again.

    :param app: The application.
    :param source: Where they come from.
    :return: What could not be undone.
    """
    problems = undone_on_each(engines_of(app), partial(_drop, app, source))
    with told(problems, f"The tables of {app.name!r} could not be made again"):
        ensure(app, source)
    return problems


def _drop(app: Flask, source: str, key: str | None, engine: Engine) -> None:
    known, metadata = known_of(app, key), metadata_of(app, key)
    own = {Thing("TABLE", table.schema, table.name) for table in metadata.tables.values()}
    if source == "migrate":
        own.add(_VERSION)
        if _VERSION in known.before[None]:  # migrated before: they made its types as well
            own |= {thing for thing in known.before[None] if thing.kind == "TYPE"}
    known.tables.clear()  # also if it fails: MariaDB has dropped some of them then
    drop_things(engine, known.made() | own)
    known.rows.clear()
    known.migrated = False


def empty(engine: Engine, metadata: sa.MetaData) -> None:
    """Empty all tables and set their counters back.

    :param engine: An engine.
    :param metadata: The tables that the application knows.
    """
    with unchecked(engine) as connection:
        tables = existing(connection, metadata)
        if tables:
            _EMPTY.get(engine.dialect.name, _delete)(connection, tables)
        prepare = engine.dialect.identifier_preparer
        columns = [column for table in tables for column in table.columns]
        for column in columns if engine.dialect.supports_sequences else ():
            if isinstance(column.default, sa.Sequence):  # which its table does not own
                name = prepare.format_sequence(column.default)
                connection.exec_driver_sql(f"ALTER SEQUENCE {name} RESTART")


def _names(connection: Connection, tables: list[sa.Table]) -> list[str]:
    return [connection.dialect.identifier_preparer.format_table(table) for table in tables]


def _delete(connection: Connection, tables: list[sa.Table]) -> None:
    for name in _names(connection, tables):
        connection.exec_driver_sql(f"DELETE FROM {name}")


def _sqlite(connection: Connection, tables: list[sa.Table]) -> None:
    _delete(connection, tables)
    if sa.inspect(connection).has_table("sqlite_sequence"):
        names = [table.name for table in tables]
        counters = sa.table("sqlite_sequence", sa.column("name"))
        connection.execute(counters.delete().where(counters.c.name.in_(names)))


def _postgresql(connection: Connection, tables: list[sa.Table]) -> None:
    names = ", ".join(_names(connection, tables))
    connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY")


def _mysql(connection: Connection, tables: list[sa.Table]) -> None:
    # TRUNCATE is the one way to set a counter back, but takes long: where there is none, DELETE.
    counted = connection.exec_driver_sql(
        "SELECT table_name FROM information_schema.tables"
        " WHERE table_schema = DATABASE() AND auto_increment > 1"
    )
    advanced = set(counted.scalars())
    for table, name in zip(tables, _names(connection, tables), strict=True):
        how = "TRUNCATE" if table.name in advanced or table.schema is not None else "DELETE FROM"
        connection.exec_driver_sql(f"{how} {name}")


_EMPTY = {"sqlite": _sqlite, "postgresql": _postgresql, "mysql": _mysql, "mariadb": _mysql}
