"""The tables of an application: made once for each database, and again where a test needs it."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from flask import Flask
from sqlalchemy.engine import Engine

from flask_autosession.exc import IsolationError

from .binds import database_key, engines_of
from .held import real_connections

SOURCES: tuple[str, ...] = ("create_all", "migrate", "none")
"""Where tables come from: ``db.create_all()``, Flask-Migrate, or something else."""
_VERSION = "alembic_version"


@dataclass
class Known:
    """What is known of one database.

    :param engine: An engine that uses it, kept so that the tables can be dropped.
    """

    engine: Engine
    before: set[str]
    """The tables that were there when it was first looked at."""
    filled: str | None
    """One of them that had rows."""
    tables: set[str] = field(default_factory=set[str])
    """The tables that have been made for an app, by their keys."""
    migrated: bool = False


_known: dict[object, Known] = {}


def look(engine: Engine) -> Known:
    """Look at a database before any test has changed it, once.

    :param engine: An engine that uses it.
    """
    key = database_key(engine)
    if key not in _known:
        with real_connections(), engine.connect() as connection:
            names = set(sa.inspect(connection).get_table_names())
            filled = (
                name
                for name in sorted(names - {_VERSION})
                if connection.execute(sa.select(sa.literal(1)).select_from(sa.table(name)).limit(1))
                .scalars()
                .first()
            )
            _known[key] = Known(engine, names, next(filled, None))
    return _known[key]


def ensure(app: Flask, source: str) -> None:
    """Make the tables of an app that are not made yet, on every bind.

    :param app: The application.
    :param source: One of :data:`SOURCES`.
    """
    engines, db = engines_of(app), app.extensions["sqlalchemy"]
    known = {key: look(engine) for key, engine in engines.items()}
    with real_connections():
        if source == "migrate" and not all(one.migrated for one in known.values()):
            _upgrade(app)
            for one in known.values():
                one.migrated = True
        for key, metadata in db.metadatas.items() if source == "create_all" else ():
            if key in known and not metadata.tables.keys() <= known[key].tables:
                metadata.create_all(engines[key])
                known[key].tables.update(metadata.tables)


def _upgrade(app: Flask) -> None:
    if "migrate" not in app.extensions:
        raise IsolationError(
            f"The application {app.name!r} has no Flask-Migrate to make its tables with.",
            'Call Migrate(app, db), or take the tables from "create_all".',
        )
    flask_migrate = importlib.import_module("flask_migrate")  # not everybody has it
    with _logging_kept(), app.app_context():
        flask_migrate.upgrade()


@contextmanager
def _logging_kept() -> Generator[None]:
    # Alembic's env.py configures logging, which disables every logger there is.
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    loggers = [one for one in root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    disabled = {one: one.disabled for one in loggers}
    try:
        yield
    finally:
        root.handlers[:], root.level = handlers, level
        for one, was in disabled.items():
            one.disabled = was


def refuse_filled(engine: Engine, strategy: str) -> None:
    """Refuse to empty a database whose rows no test has written.

    :param engine: An engine that uses it.
    :param strategy: What would empty it.
    :raises IsolationError: If there are such rows.
    """
    known = look(engine)
    if known.filled is not None:
        raise IsolationError(
            f"The strategy {strategy!r} would empty the table {known.filled!r} on"
            f" {engine.url.render_as_string()}, which had rows before the first test.",
            "Give the tests a database of their own.",
        )


def tables_of(engine: Engine) -> set[str]:
    """Return the names of the tables that are there right now."""
    return set(sa.inspect(engine).get_table_names())


def rebuild(app: Flask, source: str) -> None:
    """Drop all tables that tests have made or changed, and make those of the app again.

    :param app: The application.
    :param source: One of :data:`SOURCES`.
    """
    db = app.extensions["sqlalchemy"]
    for key, engine in engines_of(app).items():
        _drop(engine, db.metadatas.get(key, sa.MetaData()), look(engine))
    ensure(app, source)


def _drop(engine: Engine, metadata: sa.MetaData, known: Known) -> None:
    metadata.drop_all(engine)
    left = sa.MetaData()
    left.reflect(engine, only=sorted(tables_of(engine) - known.before))
    left.drop_all(engine)
    inspector: Any = sa.inspect(engine)
    if engine.dialect.name == "postgresql" and not known.before:
        with engine.begin() as connection:
            for enum in inspector.get_enums():
                name = engine.dialect.identifier_preparer.quote(enum["name"])
                connection.exec_driver_sql(f"DROP TYPE {name}")
    known.tables.clear()
    known.migrated = False


def forget(*, drop: bool) -> None:
    """Forget all databases, at the end of a session of tests.

    :param drop: Whether to drop the tables that were made.
    """
    while _known:
        _, known = _known.popitem()
        if drop and (known.tables or known.migrated):
            _drop(known.engine, sa.MetaData(), known)
        known.engine.dispose()
