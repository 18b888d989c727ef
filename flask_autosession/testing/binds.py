"""The engines of an application, and which of them use the same database."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from flask import Flask
from sqlalchemy import URL
from sqlalchemy.engine import Engine

_engines: WeakKeyDictionary[Flask, dict[str | None, Engine]] = WeakKeyDictionary()


def engines_of(app: Flask) -> dict[str | None, Engine]:
    """Return the engines of an application by bind key, the very dictionary of its db."""
    if app not in _engines:
        with app.app_context():
            _engines[app] = app.extensions["sqlalchemy"].engines
    return _engines[app]


def is_in_memory(url: URL) -> bool:
    """Whether a URL stands for an SQLite database that only its engine's own connection sees."""
    name = url.database or ":memory:"
    private = name in (":memory:", "file::memory:") or url.query.get("mode") == "memory"
    return url.get_backend_name() == "sqlite" and private


def database_key(engine: Engine) -> object:
    """Return what engines that use the same database have in common.

    :param engine: An engine.
    :return: Its URL; the engine itself for a database in memory.
    """
    return engine if is_in_memory(engine.url) else engine.url.render_as_string(hide_password=False)
