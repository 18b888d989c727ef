"""A database for each worker of pytest-xdist."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa
from flask import Flask
from sqlalchemy import URL, event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from flask_autosession.exc import IsolationError

from .binds import engines_of, is_in_memory, place
from .unchecked import PATIENCE

_LONGEST = 63
_KNOWN = frozenset({"sqlite", "postgresql", "mysql", "mariadb"})


class WorkerDatabases:
    """Gives each database that an application of this process uses a twin of the worker's own.

    :param suffix: What is put behind the names of the databases.
    """

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._made: dict[object, tuple[Engine, URL]] = {}
        self._originals: dict[URL, URL] = {}
        self._lock = threading.Lock()

    def redirect(self, app: Flask) -> None:
        """Have an application use the worker's own databases.

        :param app: The application, before it has connected.
        """
        for key, engine in engines_of(app).items():
            url = engine.url
            if is_in_memory(url):
                continue
            if url.get_backend_name() not in _KNOWN:
                raise IsolationError(
                    f"A worker of pytest-xdist cannot be given a {url.get_backend_name()} database"
                    " of its own.",
                    "Run the tests without -n.",
                )
            original = self._originals.get(url, url)  # taken from another app's configuration
            engine.url = self._twin(original)
            self._originals[engine.url] = original
            self.make(original, engine.url)
            redirect = _Redirect(key, original, engine.url)
            event.listen(engine, "do_connect", redirect.do_connect)
            event.listen(engine, "connect", redirect.connect, insert=True)
            _tell(app, key, engine.url)

    def _twin(self, url: URL) -> URL:
        name = url.database or ""
        if url.get_backend_name() == "sqlite":
            path = Path(name)
            return url.set(database=str(path.with_name(f"{path.stem}{self._suffix}{path.suffix}")))
        room = _LONGEST - len(self._suffix)
        if len(name.encode()) > room:  # names that begin alike must not become the same
            short = name.encode()[:20].decode(errors="ignore")
            name = f"{short}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        return url.set(database=name + self._suffix)

    def make(self, url: URL, twin: URL) -> None:
        """Make a worker's database, unless that was done."""
        key = place(twin)
        with self._lock:
            if key not in self._made:
                admin = sa.create_engine(_admin(url), poolclass=sa.NullPool)
                if url.get_backend_name() != "sqlite" and not _exists(admin, twin):
                    _run(admin, f"CREATE DATABASE {_quoted(admin, twin)}")
                self._made[key] = admin, twin

    def drop(self) -> None:
        """Drop what was made.

        :raises IsolationError: If that failed; the others are dropped all the same.
        """
        failed: list[str] = []
        while self._made:
            _, (admin, twin) = self._made.popitem()
            try:
                _drop(admin, twin)
            except IsolationError as error:
                failed.append(str(error))
        if failed:
            raise IsolationError(*failed)


def _drop(admin: Engine, twin: URL) -> None:
    kind = twin.get_backend_name()
    if kind == "sqlite":
        for behind in ("", "-journal", "-wal", "-shm"):
            Path(f"{twin.database}{behind}".removeprefix("file:")).unlink(missing_ok=True)
    elif kind == "postgresql":
        _run(admin, f"DROP DATABASE IF EXISTS {_quoted(admin, twin)} WITH (FORCE)")
    else:
        _run(admin, f"DROP DATABASE IF EXISTS {_quoted(admin, twin)}")


class _Redirect:
    """Changes what an engine is about to connect to."""

    def __init__(self, key: str | None, url: URL, twin: URL) -> None:
        self._key = key
        self._urls = url, twin
        self._asked = False

    def do_connect(self, dialect: Any, _: Any, cargs: list[Any], cparams: dict[str, Any]) -> None:
        (before, named_before), (after, named_after) = map(dialect.create_connect_args, self._urls)
        for at, (old, new) in enumerate(zip(before, after, strict=True)):
            if cargs[at] == old:
                cargs[at] = new
        changed = {k: new for k, new in named_after.items() if new != named_before.get(k)}
        cparams.update(changed)
        self._asked = bool(changed) or before != after

    def connect(self, driver: Any, _: Any) -> None:
        if not self._asked:
            raise IsolationError(
                f"The engine of bind {self._key!r} does not take its database from the path of its"
                " URL, so that a worker of pytest-xdist cannot be given one of its own.",
                "Name it there, without a 'creator', or run the tests without -n.",
            )


def _admin(url: URL) -> URL:
    """Return a URL of the same server whose database is there, if its own is not."""
    if url.get_backend_name() in {"mysql", "mariadb"}:
        return url.set(database="")
    if url.get_backend_name() == "postgresql":
        try:
            with sa.create_engine(url, poolclass=sa.NullPool).connect():
                return url
        except DBAPIError:
            return url.set(database="postgres")
    return url


def _exists(admin: Engine, twin: URL) -> bool:
    # A fixture may have made it, whose name it has from the configuration.
    try:
        with admin.connect() as connection:
            if twin.get_backend_name() == "postgresql":
                listed = connection.exec_driver_sql("SELECT datname FROM pg_database").scalars()
                return twin.database in set(listed)
            return twin.database in sa.inspect(connection).get_schema_names()
    except DBAPIError:
        return False  # making it fails next, and says why


def _quoted(engine: Engine, url: URL) -> str:
    return engine.dialect.identifier_preparer.quote_identifier(str(url.database))


def _run(engine: Engine, statement: str) -> None:
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if engine.dialect.name in {"mysql", "mariadb"}:
                connection.exec_driver_sql(f"SET lock_wait_timeout = {PATIENCE}")
            connection.exec_driver_sql(statement)
    except DBAPIError as error:
        raise IsolationError(
            f"{statement} failed on {engine.url.render_as_string()}: {error.orig}",
            "Each worker of pytest-xdist needs a database: give the user the right to create one,"
            " or run the tests without -n.",
        ) from error


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
