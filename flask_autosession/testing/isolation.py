"""``isolate()``: what a test does to the databases of an application is undone at its end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from flask import Flask
from sqlalchemy.engine import Engine

from flask_autosession.config import PREFIX
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
        _check("strategy", strategy, STRATEGIES)
        _check("schema", schema, SOURCES)
        self._app = app
        engines = list(engines_of(app).values())
        self._strategy = STRATEGIES[strategy](app, engines, schema)
        self._dropped = Dropped(app)
        self._leaks = Leaks(app, engines, self._dropped.session_began)
        self._problems: list[str] = []
        self._failed = False
        self._undo = ExitStack()

    def begin(self, *, lazy: bool = False) -> None:
        """Begin.

        :param lazy: Whether the app is only just being made: its models may not be there yet.
        :raises IsolationError: If the databases cannot be isolated; they are as before then.
        """
        self.check_session()
        with ExitStack() as undo:
            enter_thread(1)
            undo.callback(enter_thread, -1)
            undo.callback(keep_contexts(self._app))
            self._dropped.begin()
            undo.callback(self._dropped.end)
            self._leaks.prepare(nested=self._strategy.nested)
            self._strategy.begin(lazy=lazy)
            undo.callback(self._end_strategy)
            self._leaks.begin()
            undo.callback(self._end_leaks)
            self._undo = undo.pop_all()

    def end(self, *, failed: bool = False) -> None:
        """Undo everything.

        :param failed: Whether the test has failed, which may be why something is left open.
        :raises IsolationError: If something is left, or could not be undone.
        """
        self._problems.clear()
        self._failed = failed
        self._undo.close()
        if self._problems:
            raise IsolationError(*self._problems)

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

    def _end_leaks(self) -> None:
        left = self._leaks.end()
        for connection in list(self._strategy.open_connections()):
            left.append(str(connection))
            connection.close()
        if left and not self._failed:
            self._problems.append(left_behind(left))
        refusals = self._strategy.refusals()
        if not self._failed:  # they may well be why
            self._problems.extend(refusals)

    def _end_strategy(self) -> None:
        self._problems.extend(self._strategy.end())


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
    lifecycle.settings = replace(before, commit_contexts=False)
    return partial(setattr, lifecycle, "settings", before)


def _check(what: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise IsolationError(f"There is no {what} {value!r}.", f"There are: {', '.join(known)}.")


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
