"""``isolate()``: what a test does to the databases of an application is undone at its end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from flask import Flask
from sqlalchemy.engine import Engine

from flask_autosession.config import PREFIX
from flask_autosession.exc import IsolationError
from flask_autosession.extension import AutoSession

from .binds import engines_of
from .held import enter_thread
from .leaks import Leaks
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

    def begin(self) -> None:
        """Prepare."""
        ...

    def open_connections(self) -> Iterable[Any]:
        """Return what was taken and not given back; each has ``where`` and ``close()``."""
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
        auto: AutoSession | None = app.extensions.get("autosession")
        if auto is None:
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
        self._give_back: Callable[[], None] = nothing

    def begin(self) -> None:
        """Begin."""
        self._leaks.begin(nested=self._strategy.nested)
        self._strategy.begin()
        enter_thread(1)
        self._give_back = keep_contexts(self._app)
        self._dropped.begin()

    def end(self, *, quiet: bool = False) -> None:
        """Undo everything.

        :param quiet: Whether the test has failed, which may be why something is left.
        :raises IsolationError: If something is left, or could not be undone.
        """
        left = self._leaks.end()
        for connection in list(self._strategy.open_connections()):
            left.append(f"a connection that was taken at {connection.where}")
            connection.close()
        problems = self._strategy.end()
        self._dropped.end()
        self._give_back()
        enter_thread(-1)
        if left and not quiet:
            problems.insert(0, f"The test has left behind: {'; '.join(left)}.")
        if problems and not quiet:
            raise IsolationError(" ".join(problems), "")


def nothing() -> None:
    """Do nothing."""


def keep_contexts(app: Flask) -> Callable[[], None]:
    """Have bare app contexts of an application not commit when they are left.

    Those that the application sets ``AUTOSESSION_COMMIT_CONTEXTS`` for are left alone.

    :param app: The application.
    :return: Has them work as before.
    """
    auto: AutoSession = app.extensions["autosession"]
    lifecycle = auto.lifecycle(app)
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
        isolation.end(quiet=True)
        raise
    isolation.end()
