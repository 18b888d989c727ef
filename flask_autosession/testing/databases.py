"""A database for each worker of pytest-xdist."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa
from flask import Flask
from sqlalchemy import URL, event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from flask_autosession.exc import IsolationError

from .binds import engines_of, is_in_memory

_LONGEST = 63
_SERVERS = {"postgresql", "mysql", "mariadb"}


class WorkerDatabases:
    """Gives each database that an application of this process uses a twin of the worker's own.

    :param suffix: What is put behind the names of the databases.
    """

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._made: dict[URL, Engine] = {}

    def redirect(self, app: Flask) -> None:
        """Have an application use the worker's own databases.

        :param app: The application, before it has connected.
        :raises IsolationError: If one of its engines makes its connections in a way of its own.
        """
        for key, engine in engines_of(app).items():
            url = engine.url
            if is_in_memory(url) or (url.database or "").endswith(self._suffix):
                continue
            options = _options(app, key)
            if "creator" in options:
                raise IsolationError(
                    f"The engine of bind {key!r} has a 'creator' in its options, so that a worker"
                    " of pytest-xdist cannot be given a database of its own.",
                    "Take it out for the tests, or run them without -n.",
                )
            engine.url = self._twin(url)
            event.listen(engine, "do_connect", _Redirect(self, url, engine.url))
            _tell(app, key, engine.url)

    def _twin(self, url: URL) -> URL:
        name = url.database or ""
        if url.get_backend_name() == "sqlite":
            path = Path(name)
            return url.set(database=str(path.with_name(f"{path.stem}{self._suffix}{path.suffix}")))
        return url.set(database=name[: _LONGEST - len(self._suffix)] + self._suffix)

    def make(self, url: URL, twin: URL) -> None:
        """Make a worker's database, unless that was done."""
        if twin in self._made:
            return
        admin = sa.create_engine(url, poolclass=sa.NullPool)
        if url.get_backend_name() in _SERVERS:
            _run(admin, f"CREATE DATABASE {_quoted(admin, twin)}")
        self._made[twin] = admin

    def drop(self) -> None:
        """Drop what was made."""
        while self._made:
            twin, admin = self._made.popitem()
            if twin.get_backend_name() == "sqlite":
                for behind in ("", "-journal", "-wal", "-shm"):
                    with suppress(FileNotFoundError):
                        Path(f"{twin.database}{behind}").unlink()
            elif twin.get_backend_name() in _SERVERS:
                force = " WITH (FORCE)" if twin.get_backend_name() == "postgresql" else ""
                _run(admin, f"DROP DATABASE IF EXISTS {_quoted(admin, twin)}{force}")


class _Redirect:
    """Changes what an engine is about to connect to."""

    def __init__(self, databases: WorkerDatabases, url: URL, twin: URL) -> None:
        self._databases = databases
        self._urls = url, twin

    def __call__(self, dialect: Any, _: Any, cargs: list[Any], cparams: dict[str, Any]) -> None:
        self._databases.make(*self._urls)
        (before, named_before), (after, named_after) = map(dialect.create_connect_args, self._urls)
        for at, (old, new) in enumerate(zip(before, after, strict=True)):
            if cargs[at] == old:
                cargs[at] = new
        changed = {k: new for k, new in named_after.items() if new != named_before.get(k)}
        cparams.update(changed)


def _quoted(engine: Engine, url: URL) -> str:
    return engine.dialect.identifier_preparer.quote_identifier(str(url.database))


def _run(engine: Engine, statement: str) -> None:
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(statement)
    except DBAPIError as error:
        raise IsolationError(
            f"{statement} failed on {engine.url.render_as_string()}: {error.orig}",
            "Each worker of pytest-xdist needs a database: give the user the right to create one,"
            " or run the tests without -n.",
        ) from error


def _options(app: Flask, key: str | None) -> dict[str, Any]:
    config = cast("dict[str, Any]", app.config)
    default: dict[str, Any] = config.get("SQLALCHEMY_ENGINE_OPTIONS") or {}
    bind = _binds(app).get(key)
    options = cast("dict[str, Any]", bind) if isinstance(bind, dict) else {}
    return {**(default if key is None else {}), **options}


def _binds(app: Flask) -> dict[str | None, Any]:
    return cast(Any, app.config).get("SQLALCHEMY_BINDS") or {}


def _tell(app: Flask, key: str | None, url: URL) -> None:
    # What a test reads from the configuration is what the application uses.
    config = cast("dict[str, Any]", app.config)
    text, binds = url.render_as_string(hide_password=False), _binds(app)
    if key not in binds:
        config["SQLALCHEMY_DATABASE_URI"] = text
    elif isinstance(binds[key], dict):
        config["SQLALCHEMY_BINDS"] = {**binds, key: {**binds[key], "url": text}}
    else:
        config["SQLALCHEMY_BINDS"] = {**binds, key: text}
