"""The extension object: ties Flask, Flask-SQLAlchemy and the units of work together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakSet

from flask import Flask, Response, current_app, has_app_context
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import URL
from sqlalchemy.orm import scoped_session

from .cli import current_command, enter_shell
from .config import read_settings
from .control import Control
from .current import app_contexts, scope_in
from .engines import Engines, refuse_autocommit
from .exc import ConfigError, NoUnitError
from .lifecycle import Lifecycle
from .model import swap_in
from .phases import REQUEST
from .registry import wrap_session
from .scope import Scope
from .session import UnitSession

Rule = Callable[[Response], bool]

initialised: list[Callable[[Flask], None]] = []
"""Are called with each application that was initialised; for :mod:`flask_autosession.testing`."""


class AutoSession(Control):
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
        app.shell_context_processor(self._shell_context)
        if settings.enabled:
            lifecycle = Lifecycle(
                self, app, settings, functools.partial(self._success, settings.rollback_from_status)
            )
            self._lifecycles[app] = lifecycle
            lifecycle.install()
            _remove_teardown(app, self.db)
        for tell in initialised:
            tell(app)

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
        wrap_session(db, self._engines, self._scope)
        swap_in(db)
        init_app = db.init_app

        @functools.wraps(init_app)
        def init_app_once(app: Flask) -> None:
            # Whichever comes first, auto.init_app(app) or db.init_app(app), the other may follow.
            if app in self._initialised:
                self._initialised.discard(app)
            else:
                init_app(app)

        cast(Any, db).init_app = init_app_once

    def _shell_context(self) -> dict[str, Any]:
        scope = self._scope()
        if scope is not None and current_command() is not None:
            enter_shell(scope)
        return {"auto": self, "db": self.db}

    def _success(self, from_status: int, response: Response) -> bool:
        if self._rule is not None:
            return bool(self._rule(response))
        return response.status_code < from_status

    def _scope(self) -> Scope | None:
        context = app_contexts.get(None)
        if context is None:
            return None
        scope = scope_in(context)
        if scope is not None and scope.frame.phase is REQUEST and scope.owner is self:
            return scope
        lifecycle = self._lifecycles.get(context.app)
        if lifecycle is None:
            return None
        scope = lifecycle.scope()
        if scope.frame.phase is not REQUEST:
            lifecycle.arrive(scope)
        return scope

    def _default_app(self) -> Flask:
        if has_app_context():
            app: Flask = cast(Any, current_app)._get_current_object()
            return app
        apps = list(self._lifecycles)
        if len(apps) != 1:
            raise NoUnitError("auto.unit() without an app, and not exactly one initialised,")
        return apps[0]

    def is_enabled(self, app: Flask) -> bool:
        """Tell whether an application's sessions belong to units of work.

        :param app: The application.
        :return: False if ``init_app()`` was not called for it, or ``AUTOSESSION_ENABLED`` is False.
        """
        return app in self._lifecycles

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
        self._rule = rule
        return rule


def _remove_teardown(app: Flask, db: SQLAlchemy) -> None:
    # The context's own end removes the session, whatever becomes of the functions in this list.
    functions = app.teardown_appcontext_funcs
    functions[:] = (
        function
        for function in functions
        if getattr(function, "__self__", None) is not db
        or not function.__module__.startswith("flask_sqlalchemy.")
    )


def _check_engine_options(app: Flask) -> None:
    config = cast("dict[str, Any]", app.config)
    default: dict[str, Any] = config.get("SQLALCHEMY_ENGINE_OPTIONS") or {}
    binds: dict[str, Any] = config.get("SQLALCHEMY_BINDS") or {}
    refuse_autocommit(default, "SQLALCHEMY_DATABASE_URI")
    for key, options in binds.items():
        if not isinstance(options, (str, URL)):
            refuse_autocommit(options, f"SQLALCHEMY_BINDS[{key!r}]")
