"""The pytest plugin: every test of every application is isolated, from its first fixture on.

What fixtures of a wider scope do, before the first fixture of a test is set up, is not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast
from weakref import WeakSet

import pytest
from flask import Flask, current_app, has_app_context
from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.orm import scoped_session

from flask_autosession.exc import IsolationError
from flask_autosession.extension import AutoSession, initialised

from . import schema
from .binds import engines_of
from .databases import WorkerDatabases
from .isolation import STRATEGIES, Isolation, keep_contexts
from .units import EndedUnit, capture_on_commit_callbacks, record_units

Captured = AbstractContextManager[list[Callable[[], Any]]]
NAME: str = "flask_autosession.isolation"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "autosession_strategy",
        f"How the database is put back after each test: {', '.join(STRATEGIES)}.",
        default="rollback",
    )
    parser.addini(
        "autosession_schema",
        f"Where the tables come from: {', '.join(schema.SOURCES)}.",
        default="create_all",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    # Before the first conftest.py, which may make an application when it is imported.
    early_config.pluginmanager.register(Isolations(early_config), NAME)


class Isolations:
    """Isolates the applications of one run of pytest.

    :param config: The run's configuration.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._apps: WeakSet[Flask] = WeakSet()
        self._item: pytest.Item | None = None
        self._begun: list[Isolation] = []
        self._own: list[Flask] = []
        worker = os.environ.get("PYTEST_XDIST_WORKER")
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID", "")[:8]
        self._databases = None if worker is None else WorkerDatabases(f"_{worker}_{run}")
        self._failed: WeakSet[pytest.Item] = WeakSet()
        initialised.append(self._initialised)

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line(
            "markers",
            "autosession(strategy): how the database is put back after this test:"
            f" {', '.join(STRATEGIES)}.",
        )
        _check(config.getini("autosession_strategy"), "autosession_strategy", STRATEGIES)
        _check(config.getini("autosession_schema"), "autosession_schema", schema.SOURCES)

    def pytest_unconfigure(self) -> None:
        initialised.remove(self._initialised)
        schema.forget(drop=self._databases is None)
        if self._databases is not None:
            self._databases.drop()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            self._strategy_of(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        if fixturedef.scope == "function":
            self._begin(request.node)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        self._begin(item)
        return (yield)

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        if call.excinfo is not None:
            self._failed.add(item)

    def _initialised(self, app: Flask) -> None:
        if self._databases is not None:
            self._databases.redirect(app)
        for engine in engines_of(app).values():
            event.listen(engine, "engine_connect", _look, once=True)
        keep_contexts(app)
        self._apps.add(app)
        if self._item is not None:
            self._own.append(app)
            self._isolate(app)

    def _strategy_of(self, item: pytest.Item) -> str:
        marker = item.get_closest_marker("autosession")
        if marker is None:
            return str(self._config.getini("autosession_strategy"))
        given = [*marker.args, *marker.kwargs.values()]
        if len(given) != 1:
            raise pytest.UsageError(f"{item.nodeid}: @pytest.mark.autosession takes one strategy.")
        _check(given[0], f"{item.nodeid}: @pytest.mark.autosession", STRATEGIES)
        return str(given[0])

    def _begin(self, item: pytest.Item) -> None:
        if self._item is not item:
            self._item = item
            # The first one that is added is the last one to run: behind all fixtures of the test.
            item.addfinalizer(self._end)
            for app in list(self._apps):
                self._isolate(app)

    def _isolate(self, app: Flask) -> None:
        item = cast(pytest.Item, self._item)
        source = self._config.getini("autosession_schema")
        isolation = Isolation(app, self._strategy_of(item), source)
        isolation.begin()
        self._begun.append(isolation)

    def _end(self) -> None:
        failed = self._item in self._failed
        self._item = None
        errors: list[IsolationError] = []
        while self._begun:
            try:
                self._begun.pop().end(quiet=failed)
            except IsolationError as error:
                errors.append(error)
        while self._own:
            for engine in engines_of(self._own.pop()).values():
                engine.dispose()
        if errors:
            raise errors[0]


def _look(connection: Connection) -> None:
    schema.look(connection.engine)


def _check(value: str, what: str, known: Iterable[str]) -> None:
    if value not in known:
        raise pytest.UsageError(f"{what} is {value!r}, but takes one of: {', '.join(known)}.")


@pytest.fixture
def autosession(app: Flask) -> AutoSession:
    """The AutoSession of the application that the fixture ``app`` returns."""
    auto: AutoSession = app.extensions["autosession"]
    return auto


@pytest.fixture
def db_session(app: Flask, autosession: AutoSession) -> Generator[scoped_session[Any]]:
    """The session of the current app context; one is pushed where there is none."""
    with nullcontext() if has_app_context() and current_app == app else app.app_context():
        yield autosession.session


@pytest.fixture
def commits(app: Flask) -> Generator[list[EndedUnit]]:
    """The units of work that have ended since this fixture was set up, in order."""
    with record_units(app) as ended:
        yield ended


@pytest.fixture
def on_commit_callbacks(app: Flask) -> Callable[..., Captured]:
    """:func:`.capture_on_commit_callbacks` for the application."""
    return partial(capture_on_commit_callbacks, app)
