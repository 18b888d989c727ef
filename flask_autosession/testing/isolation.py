"""``isolate()``: what a test does to the databases of an application is undone at its end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any, Protocol

from flask import Flask
from sqlalchemy.engine import Engine

from flask_autosession.config import PREFIX, Settings
from flask_autosession.exc import IsolationError
from flask_autosession.lifecycle import lifecycles
from flask_autosession.session import UnitSession

from .binds import engines_of
from .held import enter_thread
from .leaks import Leaks, left_behind
from .real import Recreate, Truncate
from .rollback import Rollback
from .schema import SOURCES
from .units import Dropped


class Strategy(Protocol):
    """How what a test does is undone."""

    @property
    def nested(self) -> bool:
        """Whether somebody else undoes everything as well, later."""
        ...

    def begin(self, *, lazy: bool = False) -> None:
        """Prepare."""
        ...

    def open_connections(self) -> Iterable[Any]:
        """Return what was taken and not given back; each has a ``close()``."""
        ...

    def prepare(self) -> None:
        """Make the tables, where that was put off."""
        ...

    def refusals(self) -> list[str]:
        """Return who was refused a connection."""
        ...

    def written(self) -> int:
        """Return how many statements have written what this will undo."""
        ...

    def end(self) -> list[str]:
        """Undo, and return what could not be."""
        ...


STRATEGIES: dict[str, Callable[[Flask, list[Engine], str], Strategy]] = {
    "rollback": Rollback,
    "truncate": Truncate,
    "recreate": Recreate,
}


class Isolation:
    """One test's use of one application. See :func:`isolate`."""

    def __init__(self, app: Flask, strategy: str, schema: str) -> None:
        if "autosession" not in app.extensions:
            raise IsolationError(
                f"The application {app.name!r} has no AutoSession.",
                "Call auto.init_app(app) before isolate(app).",
            )
        for what, value, known in (("strategy", strategy, STRATEGIES), ("schema", schema, SOURCES)):
            if value not in known:
                there_are = f"There are: {', '.join(known)}."
                raise IsolationError(f"There is no {what} {value!r}.", there_are)
        self._app = app
        engines = list(engines_of(app).values())
        self._strategy = STRATEGIES[strategy](app, engines, schema)
        self._dropped = Dropped(app)
        self._leaks = Leaks(app, engines, self._dropped)
        self._recommit = nothing

    def begin(self, *, lazy: bool = False) -> None:
        """Begin.

        :param lazy: Whether the app is only just being made: its models may not be there yet.
        :raises IsolationError: If the databases cannot be isolated; they are as before then.
        """
        self.check_session()
        enter_thread(1)
        self._recommit = keep_contexts(self._app)
        try:
            self._leaks.prepare(nested=self._strategy.nested)
            self._strategy.begin(lazy=lazy)
        except BaseException:
            self._leave()
            raise
        self._leaks.begin()

    def end(self, *, failed: bool = False) -> None:
        """Undo everything.

        :param failed: Whether the test has failed, which may be why something is left open.
        :raises IsolationError: If something is left, or could not be undone.
        """
        try:
            problems = self._end_leaks(failed=failed)
        finally:
            try:
                undone = self._strategy.end()
            finally:
                self._leave()
        if problems or undone:
            raise IsolationError(*problems, *undone)

    def _leave(self) -> None:
        self._dropped.end()
        self._recommit()
        enter_thread(-1)

    def check_session(self) -> None:
        """Refuse a session that knows nothing of units of work.

        :raises IsolationError: If ``db.session`` is one.
        """
        factory = getattr(self._app.extensions["sqlalchemy"].session, "session_factory", None)
        kind = getattr(factory, "class_", None)
        if not (isinstance(kind, type) and issubclass(kind, UnitSession)):
            raise IsolationError(
                f"db.session of {self._app.name!r} was replaced: its requests commit nothing and"
                " roll nothing back.",
                "Remove the fixture that does it: the tests are isolated already.",
            )

    def prepare(self) -> None:
        """Make the tables, where that was put off.

        :raises IsolationError: If rows are there that would be lost.
        """
        self._strategy.prepare()

    def written(self) -> int:
        """Return how many statements have written on connections that are shared."""
        return self._strategy.written()

    def _end_leaks(self, *, failed: bool) -> list[str]:
        left = self._leaks.end()
        for connection in list(self._strategy.open_connections()):
            left.append(str(connection))
            connection.close()
        refusals = self._strategy.refusals()
        if failed:  # they may well be why
            return []
        return [left_behind(left), *refusals] if left else refusals


def nothing() -> None:
    """Do nothing."""


def keep_contexts(app: Flask) -> Callable[[], None]:
    """Have bare app contexts of an application not commit when they are left.

    Those that the application sets ``AUTOSESSION_COMMIT_CONTEXTS`` for are left alone.

    :param app: The application.
    :return: Has them work as before.
    """
    lifecycle = lifecycles.get(app)
    if lifecycle is None or f"{PREFIX}COMMIT_CONTEXTS" in app.config:
        return nothing
    before = lifecycle.settings
    lifecycle.settings = _not_committing(before)
    return partial(setattr, lifecycle, "settings", before)


@cache
def _not_committing(settings: Settings) -> Settings:
    return replace(settings, commit_contexts=False)


@contextmanager
def isolate(
    app: Flask, strategy: str = "rollback", *, schema: str = "create_all"
) -> Generator[None]:
    """Undo at the end of a block what was done to the databases of an application in it.

    Blocks can be nested, around the tests of a class or a module and around each of them. With
    pytest, the plugin does this for each test.

    :param app: The application, after ``auto.init_app(app)``.
    :param strategy: ``rollback``: all connections share one, whose transaction is rolled back at
        the end. ``truncate``: connections are real ones, and all tables are emptied at the end.
        ``recreate``: the same, and all tables are dropped and made again.
    :param schema: Where tables that are not there come from: ``create_all``, ``migrate``
        (Flask-Migrate's ``upgrade()``), or ``none``.
    :return: The context manager. Leaving it raises :exc:`IsolationError` if a context, a session
        or a connection was left open in it, or if something could not be undone.
    :raises IsolationError: If the application has no AutoSession, or there is no such strategy.

    .. versionadded:: 0.1.0
    """
    isolation = Isolation(app, strategy, schema)
    isolation.begin()
    try:
        yield
    except BaseException:
        isolation.end(failed=True)
        raise
    isolation.end()
