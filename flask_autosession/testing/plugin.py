"""The pytest plugin: every test of every application is isolated, from its first fixture on.

What fixtures of a wider scope do, before the first fixture of a test is set up, is not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
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
from .leaks import contexts, left_behind, pop_contexts
from .undoing import told
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
        self._late: list[Isolation] = []
        """Of apps that are made in the test: their models were not there yet."""
        self._own: list[Flask] = []
        self._made_in_tests: WeakSet[Flask] = WeakSet()
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
        self, fixturedef: pytest.FixtureDef[Any], request: Any
    ) -> Generator[None, object, object]:
        written = 0
        try:
            if fixturedef.scope == "function":
                self._begin(request.node)
            elif self._item is not None:
                written = self._written()
        except BaseException as error:
            # As pytest itself does, or it would stumble over the fixture in the next test.
            key = fixturedef.cache_key(request)
            fixturedef.cached_result = None, key, (error, error.__traceback__)
            raise
        result = yield
        if fixturedef.scope != "function" and self._item is not None and self._written() > written:
            raise IsolationError(
                f"The fixture {fixturedef.argname!r} has the scope {fixturedef.scope!r}, but is set"
                " up inside of a test, at whose end the rows are undone that it wrote.",
                "Name it in the arguments of the test or of the fixture that needs it.",
            )
        return result

    def _written(self) -> int:
        return sum(isolation.written() for isolation in self._begun)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        self._begin(item)
        for isolation in self._begun:
            isolation.check_session()
        for isolation in self._late:
            isolation.prepare()
        before = contexts()
        try:
            result = yield
        except BaseException:
            pop_contexts(before, clients=False)
            raise
        # Here, because fixtures that pop theirs would trip over it.
        left = pop_contexts(before, clients=False)
        if left:
            pytest.fail(left_behind(left), pytrace=False)
        return result

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        if call.excinfo is not None:
            self._failed.add(item)

    def _initialised(self, app: Flask) -> None:
        if self._databases is not None:
            self._databases.redirect(app)
        for key, engine in engines_of(app).items():
            event.listen(engine, "engine_connect", partial(_look, app, key), once=True)
        keep_contexts(app)
        self._apps.add(app)
        if self._item is not None:
            self._own.append(app)
            self._made_in_tests.add(app)
            self._late.append(self._isolate(app, lazy=True))

    def _strategy_of(self, item: pytest.Item) -> str:
        marker = item.get_closest_marker("autosession")
        if marker is None:
            return str(self._config.getini("autosession_strategy"))
        if len(marker.args) != 1 or marker.kwargs:
            raise pytest.UsageError(f"{item.nodeid}: @pytest.mark.autosession takes one strategy.")
        _check(marker.args[0], f"{item.nodeid}: @pytest.mark.autosession", STRATEGIES)
        return str(marker.args[0])

    def _begin(self, item: pytest.Item) -> None:
        if self._item is not item:
            self._item = item
            self._failed.discard(item)
            # The first one that is added is the last one to run: behind all fixtures of the test.
            item.addfinalizer(self._end)
            for app in list(self._apps):
                # Those of earlier tests are most likely just waiting for the garbage collector.
                self._isolate(app, lazy=app in self._made_in_tests)

    def _isolate(self, app: Flask, *, lazy: bool) -> Isolation:
        item = cast(pytest.Item, self._item)
        source = self._config.getini("autosession_schema")
        isolation = Isolation(app, self._strategy_of(item), source)
        isolation.begin(lazy=lazy)
        self._begun.append(isolation)
        return isolation

    def _end(self) -> None:
        failed = self._item in self._failed
        self._item = None
        self._late.clear()
        problems: list[str] = []
        with ExitStack() as stack:  # all have their turn, last first, even if one is interrupted
            for app in self._own:
                stack.callback(_dispose, app, problems)
            for isolation in self._begun:
                stack.callback(_undo, isolation, failed, problems)
            self._own.clear()
            self._begun.clear()
        if problems:
            pytest.fail("\n".join(problems), pytrace=False)


def _undo(isolation: Isolation, failed: bool, problems: list[str]) -> None:
    with told(problems, "The test could not be undone"):
        isolation.end(failed=failed)


def _dispose(app: Flask, problems: list[str]) -> None:
    with told(problems, f"The engines of {app.name!r} could not be disposed of"):
        for engine in engines_of(app).values():
            engine.dispose()
            schema.forget_engine(engine)


def _look(app: Flask, key: str | None, connection: Connection) -> None:
    # Before anybody has changed anything.
    begun = connection.in_transaction()
    schema.look(connection, schema.metadata_of(app, key))
    if not begun:
        connection.rollback()


def _check(value: object, what: str, known: Iterable[str]) -> None:
    if value not in list(known):
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
