"""Dropping what is in a database, whatever refers to what."""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from .deferred import forget_deferred
from .unchecked import unchecked


class Thing(NamedTuple):
    """Something that is in a database."""

    kind: str
    schema: str | None
    name: str


# How the inspector lists them, in the order in which they can be dropped.
_KINDS = {
    "MATERIALIZED VIEW": "get_materialized_view_names",
    "VIEW": "get_view_names",
    "TABLE": "get_table_names",
    "SEQUENCE": "get_sequence_names",
    "TYPE": "get_enums",
}


# What belongs to an extension goes with it, and not by itself.
_OF_EXTENSIONS = (
    "SELECT coalesce(relname, typname)::text FROM pg_depend LEFT JOIN pg_class ON"
    " pg_class.oid = objid LEFT JOIN pg_type ON pg_type.oid = objid WHERE deptype = 'e'"
    " AND coalesce(relname, typname) IS NOT NULL"
)


def contents(connection: Connection, schema: str | None) -> set[Thing]:
    """Return what is in a schema: tables, views, sequences, enum types.

    :param connection: A connection.
    :param schema: Its name; None is the default one.
    """
    inspector: Any = sa.inspect(connection)
    if schema is not None and schema not in inspector.get_schema_names():
        return set()
    found = {
        Thing(kind, schema, one["name"] if kind == "TYPE" else one)
        for kind, method in _KINDS.items()
        for one in _listed(inspector, method, schema)
    }
    if connection.dialect.name != "postgresql":
        return found
    extensions = set(connection.exec_driver_sql(_OF_EXTENSIONS).scalars())
    return {thing for thing in found if thing.name not in extensions}


def _listed(inspector: Any, method: str, schema: str | None) -> list[Any]:
    try:
        return list(getattr(inspector, method)(schema=schema))
    except (AttributeError, NotImplementedError):  # this database has no such thing
        return []


def drop_things(engine: Engine, things: set[Thing]) -> None:
    """Drop things that are in a database.

    :param engine: An engine.
    :param things: Some of what :func:`contents` has returned.
    """
    quote = engine.dialect.identifier_preparer.quote_identifier
    forget_deferred(engine)
    with unchecked(engine) as connection:
        for thing in sorted(things, key=lambda thing: list(_KINDS).index(thing.kind)):
            name = ".".join(map(quote, filter(None, (thing.schema, thing.name))))
            # Not a type: columns of tables that stay could go with it.
            last = engine.dialect.name != "postgresql" or thing.kind == "TYPE"
            cascade = "" if last else " CASCADE"
            connection.exec_driver_sql(f"DROP {thing.kind} IF EXISTS {name}{cascade}")
