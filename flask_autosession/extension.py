"""The extension object: ties Flask, Flask-SQLAlchemy and the units of work together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from flask import Flask, Response, current_app, has_app_context
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Session, scoped_session

from .callsite import caller
from .config import Settings, read_settings
from .engines import Engines, refuse_autocommit
from .exc import ConfigError, NoUnitError
from .lifecycle import Lifecycle, scope_of_context
from .model import swap_in
from .savepoint import Savepoint
from .session import UnitSession, wrap
from .state import Failure, Phase
from .unit import Scope

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
Rule = Callable[[Response], bool]


class AutoSession:
    """Makes everything that one request does one unit of work.

    :param app: The application, where there is one already; else call :meth:`init_app`.
    :param db: The Flask-SQLAlchemy object. Without it, the one that the first application has is
        taken, or one is made.
    :raises ConfigError: If the configuration or the set-up is wrong.

    .. versionadded:: 0.1.0
    """

    def __init__(self, app: Flask | None = None, *, db: SQLAlchemy | None = None) -> None:
        self._db: SQLAlchemy | None = None
        self._engines = Engines()
        self._lifecycles: WeakKeyDictionary[Flask, Lifecycle] = WeakKeyDictionary()
        self._initialised: WeakSet[Flask] = WeakSet()
        self._rule: Rule | None = None
        if db is not None:
            self._wrap(db)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Initialise an application, and its Flask-SQLAlchemy object if that is not done yet.

        :param app: The application, already configured: the configuration is read once, here.
        :raises ConfigError: If an ``AUTOSESSION_`` key is unknown or has a wrong value, if an
            engine is at isolation level AUTOCOMMIT, or if the application has an AutoSession or
            another Flask-SQLAlchemy object already.
        """
        if "autosession" in app.extensions:
            raise ConfigError(
                f"The application {app.name!r} has an AutoSession already. Call init_app() once"
                " for each application, and use one AutoSession."
            )
        settings = read_settings(app.config)
        db = app.extensions.get("sqlalchemy")
        if self._db is None:
            self._wrap(SQLAlchemy() if db is None else db)
        elif db is not None and db is not self._db:
            raise ConfigError(
                f"The application {app.name!r} uses another SQLAlchemy object than this"
                " AutoSession. Pass that one: AutoSession(app, db=db)."
            )
        if settings.enabled:
            _check_engine_options(app)
        if db is None:
            self.db.init_app(app)
            self._initialised.add(app)
        app.extensions["autosession"] = self
        if settings.enabled:
            lifecycle = Lifecycle(app, settings, functools.partial(self._success, settings))
            self._lifecycles[app] = lifecycle
            lifecycle.install()

    def _wrap(self, db: SQLAlchemy) -> None:
        if issubclass(db.session.session_factory.class_, UnitSession):
            raise ConfigError(
                "This SQLAlchemy object has an AutoSession already. Make one AutoSession, and call"
                " its init_app() for each application."
            )
        scope_function = db.session.registry.scopefunc
        if not getattr(scope_function, "__module__", "").startswith("flask_sqlalchemy."):
            raise ConfigError(
                "This SQLAlchemy object was made with a 'scopefunc' of its own in session_options."
                " A unit of work needs one session for each app context: take 'scopefunc' out."
            )
        self._db = db
        wrap(db.session, self._engines, self._scope, lambda: db.engines.values())
        swap_in(db)
        init_app = db.init_app

        @functools.wraps(init_app)
        def init_app_once(app: Flask) -> None:
            # Whichever comes first, auto.init_app(app) or db.init_app(app), the other may follow.
            if app in self._initialised:
                self._initialised.discard(app)
            else:
                init_app(app)

        db.init_app = init_app_once  # type: ignore[method-assign]

    def _success(self, settings: Settings, response: Response) -> bool:
        if self._rule is not None:
            return bool(self._rule(response))
        return response.status_code < settings.rollback_from_status

    def _scope(self) -> Scope | None:
        if not has_app_context():
            return None
        scope = scope_of_context()
        if scope is None:
            app = current_app._get_current_object()  # type: ignore[attr-defined]
            lifecycle = self._lifecycles.get(app)
            scope = None if lifecycle is None else lifecycle.scope()
        return scope

    def _require(self, name: str) -> Scope:
        scope = self._scope()
        if scope is None:
            raise NoUnitError(name)
        return scope

    @property
    def db(self) -> SQLAlchemy:
        """The Flask-SQLAlchemy object.

        :raises ConfigError: If there is none yet: before ``init_app()``, where none was given.
        """
        if self._db is None:
            raise ConfigError("This AutoSession has no SQLAlchemy object before init_app(app).")
        return self._db

    @property
    def session(self) -> scoped_session[Any]:
        """The session of the current app context, ``db.session``."""
        return self.db.session

    @property
    def Model(self) -> type[Any]:
        """The base class of models, ``db.Model``."""
        return self.db.Model

    def commit(self) -> None:
        """Commit what was done so far, for real, wherever this is called; a new unit begins.

        :raises DoomedError: If the unit is doomed.
        :raises NoUnitError: Outside of an app context.
        """
        self._require("auto.commit()").commit("auto.commit()")

    def doom(self) -> None:
        """Have the current request, command, callback or context rolled back at its end.

        Nothing lifts this; what would write or commit from here on raises :exc:`DoomedError`.

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
        return Savepoint(self._enter_savepoint)

    def _enter_savepoint(self) -> tuple[Scope, Session]:
        return self._require("auto.savepoint()"), self.db.session()

    @contextmanager
    def unit(self, app: Flask | None = None) -> Iterator[None]:
        """Run a block in an app context, session and unit of work of its own.

        It is committed if the block is left cleanly, rolled back if an exception leaves it.

        :param app: The application; by default the current one, else the only one there is.
        :raises DoomedError: On leaving, if a database error was swallowed inside.
        :raises NoUnitError: If it is not clear which application is meant.
        """
        if app is None:
            app = self._guess_app()
        with app.app_context():
            scope = self._require("auto.unit()")
            yield
            scope.end_cleanly("the unit was left", last=True)

    def _guess_app(self) -> Flask:
        if has_app_context():
            app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
            return app
        apps = list(self._lifecycles)
        if len(apps) != 1:
            raise NoUnitError("auto.unit() without an app, and not exactly one initialised,")
        return apps[0]

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

    def commit_when(self, rule: Rule) -> Rule:
        """Decide by a rule of the application's own which responses are committed.

        It takes the place of the status, but overrides neither exceptions nor doom. It may be
        asked more than once about one response.

        :param rule: A function that takes the response and returns whether to commit.
        :return: The function, so that this can be used as a decorator.
        :raises ConfigError: If there is a rule already.
        """
        if self._rule is not None:
            raise ConfigError("auto.commit_when has a rule already; write one rule for both.")
        self._rule = _callable(rule)
        return rule


def _callable(function: F) -> F:
    if not callable(function):
        raise TypeError(f"A function is needed here, not {function!r}.")
    return function


def _check_engine_options(app: Flask) -> None:
    refuse_autocommit(app.config.get("SQLALCHEMY_ENGINE_OPTIONS") or {}, "SQLALCHEMY_DATABASE_URI")
    for key, options in (app.config.get("SQLALCHEMY_BINDS") or {}).items():
        if isinstance(options, dict):
            refuse_autocommit(options, f"SQLALCHEMY_BINDS[{key!r}]")
