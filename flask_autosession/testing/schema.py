"""The tables of an application: made once for each database, and again where a test needs it."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field

import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from flask_autosession.exc import IsolationError

from .binds import database_key, engines_of, is_in_memory
from .deferred import forget_deferred
from .dropping import Thing, contents, drop_things
from .held import real_connections
from .unchecked import counted, unchecked

logger: logging.Logger = logging.getLogger("flask_autosession")

SOURCES: tuple[str, ...] = ("create_all", "migrate", "none")
"""Where tables come from: ``db.create_all()``, Flask-Migrate, or something else."""


@dataclass
class Known:
    """What is known of one database.

    :param engine: An engine that uses it, kept so that its tables can be dropped.
    """

    engine: Engine
    before: dict[str | None, set[Thing]] = field(default_factory=dict[str | None, set[Thing]])
    """What was in each of its schemas when that was first looked at."""
    tables: set[str] = field(default_factory=set[str])
    """The tables that have been made for an app, by their keys."""
    migrated: bool = False
    touched: bool = False
    """Whether tables were made here at all."""
    rows: dict[str, int] = field(default_factory=dict[str, int])
    """How many rows tables had as soon as they were made: migrations write some."""

    def look(self, connection: Connection, schemas: Iterable[str | None]) -> None:
        """Remember what is in some schemas, unless that was done."""
        for schema in set(schemas) - self.before.keys():
            self.before[schema] = contents(connection, schema)

    def keep_rows(self, before: dict[str, int], metadata: sa.MetaData) -> None:
        """Remember the rows that came with the tables."""
        now = counted(self.engine, metadata)
        self.rows.update({name: count for name, count in now.items() if name not in before})

    def made(self) -> set[Thing]:
        """Return what is there now and was not before."""
        with real_connections(), self.engine.connect() as connection:
            now = {schema: contents(connection, schema) for schema in self.before}
        return {thing for schema in now for thing in now[schema] - self.before[schema]}


_known: dict[object, Known] = {}
_process = os.getpid()


def _schemas(metadata: sa.MetaData) -> set[str | None]:
    return {None, *(table.schema for table in metadata.tables.values())}


def look(connection: Connection, metadata: sa.MetaData) -> Known:
    """Look at a database before any test has changed it, once.

    :param connection: A connection to it.
    :param metadata: The tables that an application knows there.
    """
    engine = connection.engine
    known = _known.setdefault(database_key(engine), Known(engine))
    if not known.before and is_in_memory(engine.url):
        event.listen(engine, "engine_disposed", forget_engine)
    known.look(connection, _schemas(metadata))
    return known


def _dropped(table: sa.Table, connection: Connection, **_: object) -> None:
    known = _known.get(database_key(connection.engine))
    if known is not None:
        known.tables.discard(table.key)
        known.migrated = False


# Whoever drops a table, it has to be made again for the next test.
event.listen(sa.Table, "after_drop", _dropped)


def known_of(app: Flask, key: str | None) -> Known:
    """Return what is known of the database of one of an application's binds."""
    engine, metadata = engines_of(app)[key], metadata_of(app, key)
    known = _known.get(database_key(engine))
    if known is None or not _schemas(metadata) <= known.before.keys():
        with real_connections(), engine.connect() as connection:
            known = look(connection, metadata)
    return known


def metadata_of(app: Flask, key: str | None) -> sa.MetaData:
    """Return the tables that an application has on one of its binds."""
    metadata: sa.MetaData = app.extensions["sqlalchemy"].metadatas.get(key) or sa.MetaData()
    return metadata


def nowhere(_: Engine, __: sa.MetaData) -> bool:
    """Make no tables, because there is no transaction that they could go with."""
    return False


def ensure(app: Flask, source: str, make: Callable[[Engine, sa.MetaData], bool] = nowhere) -> None:
    """Make the tables of an app that are not made yet, on every bind.

    :param app: The application.
    :param source: One of :data:`SOURCES`.
    :param make: Makes them in a transaction that is going on, with which they go again, and says
        whether there is one.
    """
    if source == "create_all" and _is_made(app):
        return
    known = {key: known_of(app, key) for key in engines_of(app)}
    if source == "migrate":
        _migrate(app, known)
    elif source == "create_all":
        _create(app, known, make)


def _is_made(app: Flask) -> bool:
    # Asked in each test. Where a table was made, its schema has been looked at before.
    for key, engine in engines_of(app).items():
        known = _known.get(database_key(engine))
        if known is None or not metadata_of(app, key).tables.keys() <= known.tables:
            return False
    return True


def _create(
    app: Flask, known: dict[str | None, Known], make: Callable[[Engine, sa.MetaData], bool]
) -> None:
    for key, one in known.items():
        engine, metadata = engines_of(app)[key], metadata_of(app, key)
        if not metadata.tables.keys() <= one.tables and not make(engine, metadata):
            before = counted(one.engine, metadata)
            with unchecked(engine) as connection:  # does not wait for locks for ever
                metadata.create_all(connection)
            one.tables.update(metadata.tables)
            one.touched = True
            one.keep_rows(before, metadata)


def _migrate(app: Flask, known: dict[str | None, Known]) -> None:
    if all(one.migrated for one in known.values()):
        return
    if "migrate" not in app.extensions:
        raise IsolationError(
            f"The application {app.name!r} has no Flask-Migrate to make its tables with.",
            "Call Migrate(app, db), or take the tables from 'create_all'.",
        )
    before = {key: counted(one.engine, metadata_of(app, key)) for key, one in known.items()}
    _upgrade(app)
    for key, one in known.items():
        one.migrated = one.touched = True
        one.keep_rows(before[key], metadata_of(app, key))


def _upgrade(app: Flask) -> None:
    flask_migrate = importlib.import_module("flask_migrate")  # not everybody has it
    try:
        with _logging_kept(), real_connections(), app.app_context():
            flask_migrate.upgrade()
            for engine in engines_of(app).values():
                forget_deferred(engine)
    except SystemExit as error:  # which is how it ends where it has logged an error
        raise IsolationError(
            f"The migrations of {app.name!r} failed: {error.__context__}.",
            "Try 'flask db upgrade' on an empty database.",
        ) from error.__context__


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
        root.handlers[:] = handlers
        root.setLevel(level)  # which makes loggers forget what they believe to be silenced
        for one, was in disabled.items():
            one.disabled = was


def forget_engine(engine: Engine) -> None:
    """Forget a database in memory, which goes with its engine's connection."""
    _known.pop(engine, None)
    forget_deferred(engine)


@atexit.register
def forget(*, drop: bool = True) -> None:
    """Forget all databases, at the end of a session of tests or of the process.

    :param drop: Whether to drop what was made in them.
    """
    if os.getpid() != _process:
        return  # a fork of the tests: what is there is theirs
    while _known:
        _, known = _known.popitem()
        try:
            if drop and known.touched:
                drop_things(known.engine, known.made())
        except Exception as error:
            url = known.engine.url.render_as_string()
            logger.error("The tables of the tests could not be dropped on %s: %s", url, error)
        finally:
            known.engine.dispose()
