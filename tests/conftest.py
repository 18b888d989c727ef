"""Databases for the tests, and the detector of whatever a test leaves behind."""

from __future__ import annotations

import os
import uuid
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import sqlalchemy.orm.session
from flask import has_app_context
from sqlalchemy.exc import OperationalError

from flask_autosession.session import UnitSession

from .world import Database, World

POSTGRESQL = os.environ.get(
    "AUTOSESSION_TEST_POSTGRESQL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
)
# Without TLS, whose certificates PyMySQL loads anew for each connection: 50 ms of CPU.
MARIADB = os.environ.get(
    "AUTOSESSION_TEST_MARIADB", "mysql+pymysql://root@127.0.0.1:3306/?ssl_disabled=true"
)
START = {
    "postgresql": "start it with 'pg_ctlcluster 15 main start', or name one in"
    " AUTOSESSION_TEST_POSTGRESQL",
    "mariadb": "start it with 'service mariadb start', or name one in AUTOSESSION_TEST_MARIADB",
}


class _Server:
    """A database on a server, made for one session of tests and dropped at its end."""

    def __init__(self, kind: str, admin_uri: str) -> None:
        self.name = f"autosession_test_{os.getpid()}_{uuid.uuid4().hex[:8]}"
        url = sa.make_url(admin_uri)
        self._admin = sa.create_engine(
            url, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool
        )
        try:
            self._run(f"CREATE DATABASE {self.name}")
        except OperationalError as error:
            missing = f"{kind} does not answer at {url}: {START[kind]} ({error.orig})"
            if os.environ.get("AUTOSESSION_REQUIRE_SERVICES") == "1":
                pytest.fail(missing)
            pytest.skip(missing)
        self.uri = url.set(database=self.name).render_as_string(hide_password=False)
        self._force = " WITH (FORCE)" if kind == "postgresql" else ""

    def _run(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.exec_driver_sql(statement)

    def drop(self) -> None:
        self._run(f"DROP DATABASE {self.name}{self._force}")


SERVICES = {"sqlite", "postgresql", "mariadb", "redis", "rabbitmq"}
MANY = 4


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take turns with the services, to stay within minutes.

    A test with many variants runs each of them on one service, so that all of them together run on
    all. Where AUTOSESSION_TEST_TURN is a number, every test does, on another one with each number;
    so do those that run a pytest of their own, whose turns `lowest` and `newest` complete.
    """
    turn = os.environ.get("AUTOSESSION_TEST_TURN")
    tests: dict[str, dict[str, list[pytest.Item]]] = {}
    for item in items:
        name, _, given = item.nodeid.partition("[")
        variant = "-".join(part for part in given.rstrip("]").split("-") if part not in SERVICES)
        tests.setdefault(name, {}).setdefault(variant, []).append(item)
    chosen: set[str] = set()
    for name, variants in tests.items():
        start = zlib.crc32(name.encode()) + int(turn or 0)
        for number, group in enumerate(variants.values(), start):
            costly = "/test_plugin" in name
            everything = turn is None and len(variants) < MANY and not costly
            kept = group if everything else [group[number % len(group)]]
            chosen.update(item.nodeid for item in kept)
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in chosen])
    items[:] = [item for item in items if item.nodeid in chosen]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Database]:
    yield from _served("postgresql", POSTGRESQL)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Database]:
    yield from _served("mariadb", MARIADB)


@pytest.fixture(scope="session")
def postgresql_lab() -> Iterator[Database]:
    """A database without tables, whose connections may be cut: others are in nobody's way."""
    yield from _served("postgresql", POSTGRESQL, tables=False)


@pytest.fixture(scope="session")
def mariadb_lab() -> Iterator[Database]:
    """A database without tables, which may be dropped and made again."""
    yield from _served("mariadb", MARIADB, tables=False)


def _served(kind: str, admin_uri: str, *, tables: bool = True) -> Iterator[Database]:
    server = _Server(kind, admin_uri)
    database = Database(kind, server.uri)
    if tables:
        database.create()
    yield database
    database.engine.dispose()
    server.drop()


@pytest.fixture(scope="session")
def postgresql_uri(postgresql: Database) -> str:
    return postgresql.uri


@pytest.fixture(scope="session")
def mariadb_uri(mariadb: Database) -> str:
    return mariadb.uri


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """One database of each supported kind, with the tables of the tests, empty."""
    if request.param == "sqlite":
        database = Database("sqlite", f"sqlite:///{tmp_path / 'test.db'}")
        database.create()
        yield database
    else:
        database = request.getfixturevalue(request.param)
        yield database
        database.empty()


@pytest.fixture
def world(database: Database) -> Iterator[World]:
    """An application with an AutoSession, made anew for each test."""
    world = World(database)
    yield world
    world.close()


def live_sessions() -> list[UnitSession]:
    """Return the sessions that belong to a scope and still hold a transaction."""
    return [
        session
        for session in sqlalchemy.orm.session._sessions.values()
        if isinstance(session, UnitSession) and session.scope and session.in_transaction()
    ]


# What the drivers have opened, to be closed when a test is over: left to the garbage collector, a
# connection of a test that did not dispose of its engine would be warned of in some later test.
_opened: list[Any] = []


@sa.event.listens_for(sa.pool.Pool, "connect")
def _connected(connection: Any, _: object) -> None:
    _opened.append(connection)


@pytest.fixture(autouse=True)
def leaks() -> Iterator[None]:
    """Fail a test that leaves a context pushed or a session in a transaction."""
    yield
    try:
        assert not has_app_context(), "the test left an app context pushed"
        assert not live_sessions(), "the test left a session in a transaction"
    finally:
        while _opened:
            with suppress(Exception):  # closed already, or in another thread
                _opened.pop().close()
