"""What an application asks of its units of work: commit, doom, savepoints, callbacks."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from flask import Flask, current_app
from sqlalchemy.orm import scoped_session

from .callsite import caller
from .cli import exits_cleanly
from .exc import NoUnitError
from .phases import Phase
from .savepoint import Savepoint
from .scope import Scope
from .state import Failure

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


class Control(ABC):
    """The part of :class:`.AutoSession` that acts on the current unit of work."""

    @property
    @abstractmethod
    def session(self) -> scoped_session[Any]:
        """The session of the current app context, ``db.session``."""

    @abstractmethod
    def _scope(self) -> Scope | None: ...

    @abstractmethod
    def _default_app(self) -> Flask: ...

    def _require(self, name: str) -> Scope:
        scope = self._scope()
        if scope is None:
            raise NoUnitError(name)
        return scope

    def commit(self) -> None:
        """Commit what was done so far, for real, wherever this is called; a new unit begins.

        :raises DoomedError: If the unit is doomed.
        :raises NoUnitError: Outside of an app context.
        """
        self._require("auto.commit()").commit("auto.commit()")

    def doom(self) -> None:
        """Have the current request, command, callback or context rolled back at its end.

        Nothing lifts this. Writes go on working, so that their result can be shown, as in a
        preview; ``db.session.commit()`` just flushes from here on.

        :raises NoUnitError: Outside of an app context.
        """
        scope = self._require("auto.doom()")
        if scope.frame.doom is None:
            scope.frame.doom = Failure(None, caller())

    def on_commit(self, function: F) -> F:
        """Run a function after the current unit of work is committed, if it is.

        It is dropped if the unit, or the savepoint it is registered in, is rolled back. It runs
        in the same context, as a unit of work of its own. The idea is Django's ``on_commit``.

        :param function: A function without arguments; may be ``async``.
        :return: The function, so that this can be used as a decorator.
        :raises NoUnitError: Outside of an app context, at module level for example.
        :raises TypeError: If it cannot be called.
        """
        self._require("auto.on_commit()").unit.on_commit.append(_callable(function))
        return function

    def on_rollback(self, function: F) -> F:
        """Run a function after the current unit of work is rolled back, if it is.

        The place to keep what must outlive a failure: an audit row, a failed login. It runs in
        the same context, as a unit of work of its own, and is not dropped with a savepoint.

        :param function: A function without arguments; may be ``async``.
        :return: The function, so that this can be used as a decorator.
        :raises NoUnitError: Outside of an app context, at module level for example.
        :raises TypeError: If it cannot be called.
        """
        self._require("auto.on_rollback()").unit.on_rollback.append(_callable(function))
        return function

    def savepoint(self) -> Savepoint:
        """Guard a part of the unit of work that may fail: roll back just that part.

        A context manager, and a decorator for functions. It can be nested, and never commits. If
        an exception leaves the block, the block's work is rolled back, and the exception goes on.

        :return: The context manager. Leaving it raises :exc:`DoomedError` if a database error
            was swallowed inside.
        :raises NoUnitError: When entered outside of an app context.
        """
        return Savepoint(lambda: (self._require("auto.savepoint()"), self.session()))

    @contextmanager
    def unit(self, app: Flask | None = None) -> Generator[None]:
        """Run a block in an app context, session and unit of work of its own.

        It is committed if the block is left cleanly, rolled back if an exception leaves it.

        :param app: The application; by default the current one, else the only one there is.
        :raises DoomedError: On leaving, if a database error was swallowed inside.
        :raises NoUnitError: If it is not clear which application is meant.
        """
        if app is None:
            app = self._default_app()
        with app.app_context():
            scope = self._require("auto.unit()")
            scope.frame.phase = Phase.UNIT
            try:
                yield
            except BaseException as error:
                if exits_cleanly(error) or scope.settings.is_control_flow(error):
                    scope.end_cleanly(f"the unit was left by {type(error).__name__}", last=True)
                else:
                    scope.raised(error)
                raise
            scope.end_cleanly("the unit was left", last=True)

    def manual(self, view: Callable[P, R]) -> Callable[P, R]:
        """Let a view commit and roll back by itself.

        What was done before it, in ``before_request`` functions, is committed when it starts.
        What it leaves uncommitted is rolled back, with a warning.

        :param view: A view function, may be ``async``.
        :return: The decorated view.
        """

        @functools.wraps(view)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            scope = self._scope()
            if scope is not None and scope.frame.phase is Phase.REQUEST:
                scope.commit("a view marked @auto.manual begins")
                scope.frame.phase = Phase.MANUAL
            result: R = current_app.ensure_sync(view)(*args, **kwargs)
            return result

        return run


def _callable(function: F) -> F:
    if not callable(function):
        raise TypeError(f"A function is needed here, not {function!r}.")
    return function
