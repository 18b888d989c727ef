"""Follows what happens on the connections of sessions: statements that write or fail, commits."""

from __future__ import annotations

from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, ExceptionContext

from . import sqlite
from .drivers import commits_by_itself
from .exc import ConfigError
from .scope import Scope
from .statements import is_write


class Engines:
    """Which connection works for which scope.

    Connections that no session uses are not followed: they are the application's own.
    """

    def __init__(self) -> None:
        # Weak on both sides: a scope knows its connections, and each would keep the other.
        self._scopes: WeakKeyDictionary[Connection, ReferenceType[Scope]] = WeakKeyDictionary()
        self._known: WeakKeyDictionary[Engine, bool] = WeakKeyDictionary()

    def attach(self, engine: Engine, scope: Scope) -> None:
        """Listen to an engine, once.

        :param engine: One of the engines that a scope's session may use.
        :param scope: The scope.
        :raises ConfigError: If the engine commits every statement by itself.
        """
        if engine not in self._known:
            refuse_autocommit(engine.get_execution_options(), str(engine.url))
            self._known[engine] = True
            event.listen(engine, "before_cursor_execute", self._before_cursor_execute)
            event.listen(engine, "handle_error", self._handle_error)
            event.listen(engine, "commit", self._commit)
            if engine.dialect.name == "sqlite":
                sqlite.attach(engine, scope.settings.sqlite_begin)

    def adopt(self, connection: Connection, scope: Scope) -> None:
        """Note that a connection works for a scope's current unit from now on."""
        self.attach(connection.engine, scope)
        if connection not in scope.unit.connections:
            self._scopes[connection] = ref(scope)
            scope.unit.connections.append(connection)
            if commits_by_itself(connection):
                try:
                    refuse_autocommit({"isolation_level": "AUTOCOMMIT"}, str(connection.engine.url))
                except ConfigError as error:
                    scope.statement_failed(error, "")  # the session has the connection already
                    raise

    def _scope(self, connection: Connection | None) -> Scope | None:
        found = None if connection is None else self._scopes.get(connection)
        scope = None if found is None else found()
        # A connection that was handed to the session from outside goes on without it.
        return scope if scope is not None and connection in scope.unit.connections else None

    def _before_cursor_execute(
        self, connection: Connection, cursor: Any, statement: str, *_: Any
    ) -> None:
        scope = self._scope(connection)
        if scope is not None and is_write(statement):
            scope.refuse_doomed(scope.unit.failure)
            scope.unit.wrote = True

    def _handle_error(self, context: ExceptionContext) -> None:
        scope = self._scope(context.connection)
        if scope is not None:
            error = context.sqlalchemy_exception or context.original_exception
            scope.statement_failed(error, context.statement or "")

    def _commit(self, connection: Connection) -> None:
        scope = self._scope(connection)
        if scope is not None:
            scope.commit_sent(connection)


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
