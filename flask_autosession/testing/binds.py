"""The engines of an application, and which of them use the same database."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from flask import Flask
from sqlalchemy import URL
from sqlalchemy.engine import Engine

from flask_autosession.exc import IsolationError

# What the query may say of where the database is; `options` of PostgreSQL, where its tables are.
_PLACES = ("host", "port", "service", "unix_socket", "read_default_file", "dbname", "options")
_keys: WeakKeyDictionary[Engine, tuple[URL, object]] = WeakKeyDictionary()
_engines: WeakKeyDictionary[Flask, dict[str | None, Engine]] = WeakKeyDictionary()


def engines_of(app: Flask) -> dict[str | None, Engine]:
    """Return the engines of an application by bind key, the very dictionary of its db."""
    engines = _engines.get(app)
    if engines is None:
        with app.app_context():
            engines = _engines[app] = app.extensions["sqlalchemy"].engines
    for key, engine in engines.items():
        if engine is not engine.engine:
            raise IsolationError(
                f"db.engines[{key!r}] of {app.name!r} holds a Connection.",
                "Remove the fixture that puts it there: what it was for is done now.",
            )
    return engines


def is_in_memory(url: URL) -> bool:
    """Whether a URL stands for an SQLite database that only its engine's own connection sees."""
    name = url.database or ":memory:"
    private = name in (":memory:", "file::memory:") or url.query.get("mode") == "memory"
    return url.get_backend_name() == "sqlite" and private


def place(url: URL) -> tuple[object, ...]:
    """Return what URLs of the same database have in common, whoever connects, and how."""
    kind, query = url.get_backend_name(), url.query
    host = "127.0.0.1" if url.host in (None, "", "localhost", "::1") else url.host
    port = url.port or {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}.get(kind)
    return kind, host, port, url.database, *(query.get(name) for name in _PLACES)


def database_key(engine: Engine) -> object:
    """Return what engines that use the same database have in common.

    :param engine: An engine.
    :return: Its database's place; the engine itself for a database in memory.
    """
    url, known = engine.url, _keys.get(engine)
    if known is None or known[0] is not url:
        known = _keys[engine] = url, None if is_in_memory(url) else place(url)
    return known[1] or engine
