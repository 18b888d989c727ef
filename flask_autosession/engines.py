"""Follows what happens on the connections of sessions: statements that write or fail, commits.

All of it hangs on the dialect of an engine. As soon as somebody listens to an engine itself,
SQLAlchemy prepares every event of every connection and statement, which costs more than the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakSet, ref

from sqlalchemy import event
from sqlalchemy.engine import Connection, Dialect, Engine, ExceptionContext

from . import sqlite
from .drivers import commits_by_itself, libpq_of
from .exc import AutoSessionError, ConfigError
from .scope import Scope
from .statements import is_write
from .unit import committing

_SCOPE = "flask_autosession.scope"
"""The attribute of a connection that holds the scope it works for."""
_FOLLOWED_BY = "flask_autosession.engines"
"""The attribute of an engine that holds who follows it. A set would have to be asked by functions
of Python, twice in each request."""


class Engines:
    """The engines that are followed.

    Connections that no session uses are left alone: they are the application's own.
    """

    def __init__(self) -> None:
        self._followed: WeakSet[Dialect] = WeakSet()
        self._lock = Lock()

    def attach(self, engine: Engine, scope: Scope) -> None:
        """Follow an engine, once.

        :param engine: One of the engines that a scope's session may use.
        :param scope: The scope.
        :raises ConfigError: If the engine commits every statement by itself.
        """
        if vars(engine).get(_FOLLOWED_BY) is self:
            return
        with self._lock:  # nobody else goes on before all is in place
            refuse_autocommit(engine.get_execution_options(), str(engine.url))
            if engine.dialect not in self._followed:  # engine.execution_options() shares it
                begin = None
                if engine.dialect.name == "sqlite":
                    begin = sqlite.attach(engine, scope.settings.sqlite_begin)
                _follow(engine, begin)
                self._followed.add(engine.dialect)
            vars(engine)[_FOLLOWED_BY] = self

    def adopt(self, connection: Connection, scope: Scope) -> None:
        """Note that a connection works for a scope's current unit from now on."""
        self.attach(connection.engine, scope)
        unit, known = scope.unit, ref(scope)  # weakly: a scope knows its connections
        if connection in unit.connections:
            return
        unit.connections[connection] = proxy = connection.connection
        vars(connection)[_SCOPE] = known
        if connection.dialect.name == "sqlite":
            return  # which gets real transactions of its own
        driver = proxy.driver_connection
        libpq = libpq_of(driver)
        if libpq is not None:
            unit.telling.append((connection, libpq))
        if commits_by_itself(driver):
            try:
                refuse_autocommit({"isolation_level": "AUTOCOMMIT"}, str(connection.engine.url))
            except ConfigError as error:
                scope.statement_failed(error, "")  # the session has the connection already
                raise


def _follow(engine: Engine, begin: Callable[[Connection, Any], None] | None) -> None:
    def before(cursor: Any, statement: str, *context: Any) -> None:
        if is_write(statement):
            connection: Connection = context[-1].root_connection
            scope = _scope_of(connection)
            if scope is not None:
                scope.refuse_doomed(scope.unit.failure)
                scope.unit.wrote = True
                scope.unit.bypassed = scope.unit.bypassed or not scope.unit.flushing
            if begin is not None:
                begin(connection, cursor)
        elif begin is not None and statement[:9].upper() == "SAVEPOINT":
            begin(context[-1].root_connection, cursor)  # or else it would stand alone

    dialect: Any = engine.dialect
    # In front of the application's own listeners, one of which may run the statement itself.
    for name in ("do_execute", "do_execute_no_params", "do_executemany"):
        event.listen(engine, name, before)
        getattr(dialect.dispatch, name).listeners.rotate(1)  # for these, insert=True is ignored
    event.listen(engine, "handle_error", _handle_error)
    dialect.do_commit = partial(_commit, dialect.do_commit)


def _scope_of(connection: Connection | None) -> Scope | None:
    known: ref[Scope] | None = None if connection is None else vars(connection).get(_SCOPE)
    scope = None if known is None else known()
    # A connection that was handed to the session from outside goes on without it.
    return scope if scope is not None and connection in scope.unit.connections else None


def _handle_error(context: ExceptionContext) -> None:
    scope = _scope_of(context.connection)
    error = context.sqlalchemy_exception or context.original_exception
    if scope is not None and not isinstance(error, AutoSessionError):
        scope.statement_failed(error, context.statement or "")


def _commit(commit: Callable[[Any], None], proxy: Any) -> None:
    # The last place before COMMIT is sent, which a listener for before_commit comes in front of.
    unit = committing.get()
    if unit is not None:
        unit.commit_sent(proxy)
    commit(proxy)
    if unit is not None:
        unit.commit_done()  # an event of the session's may be stopped by a listener in front of us


def refuse_autocommit(options: Any, database: str) -> None:
    """Raise if an engine's options make every statement commit by itself.

    :param options: The engine's options, or its execution options.
    :param database: What the engine is called in the error.
    :raises ConfigError: If so.
    """
    levels = (
        options.get("isolation_level"),
        options.get("execution_options", {}).get("isolation_level"),
    )
    if any(str(level).upper().replace("_", "") == "AUTOCOMMIT" for level in levels):
        raise ConfigError(
            f"The engine of {database} is at isolation level AUTOCOMMIT: every statement would be"
            " committed by itself, and no unit of work could be rolled back. Take"
            " 'isolation_level' out of its engine options."
        )
