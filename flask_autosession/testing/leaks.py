"""What a test leaves behind: contexts, sessions, connections."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, cast
from weakref import WeakKeyDictionary

from flask import Flask, current_app, g, has_app_context, has_request_context, request
from flask import globals as flask_globals
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session, SessionTransaction

from flask_autosession.callsite import caller
from flask_autosession.contexts import request_name, scope_of_context
from flask_autosession.exc import IsolationError
from flask_autosession.scope import Scope

_watching: list[Leaks] = []
"""Those that watch right now, innermost last."""
_pushed_limit = 100


def _here() -> tuple[object, object]:
    """Return what tells the current contexts from others."""
    return (
        g._get_current_object() if has_app_context() else None,
        cast(Any, request)._get_current_object() if has_request_context() else None,
    )


class Leaks:
    """What was there when a test began, and what is there still when it is over.

    :param app: The application.
    :param engines: Its engines.
    :param look: Is called when a session begins to look at the database.
    """

    def __init__(self, app: Flask, engines: Iterable[Engine], look: Callable[[], None]) -> None:
        self._look = look
        self._app = app
        self._engines = list(engines)
        self._contexts: tuple[object, object] = (None, None)
        self._known: set[Any] = set()
        self.sessions: WeakKeyDictionary[Session, str] = WeakKeyDictionary()
        """The sessions that began a transaction, and where."""

    def _scope(self) -> Scope | None:
        return scope_of_context() if has_app_context() and current_app == self._app else None

    def begin(self, *, nested: bool) -> None:
        """Remember what is there.

        :param nested: Whether what was done so far is undone by somebody else.
        :raises IsolationError: If a context that is pushed has work that nobody would undo.
        """
        self._contexts = _here()
        scope = self._scope()
        if scope is not None:
            if scope.unsaved and not nested:
                raise IsolationError(
                    f"A context of {self._app.name!r} that was pushed before the test began has"
                    " written something and not committed it.",
                    "Put 'with isolate(app):' around what a fixture of a wider scope writes, or"
                    " write it in 'with auto.unit():' to keep it for all tests.",
                )
            scope.end_cleanly("a test begins inside of this context")
            if scope.session is not None:
                self._known = set(scope.session.identity_map.keys())
        _listen()
        _watching.append(self)

    def began(self, session: Session, connection: Connection) -> None:
        """Note that a session has begun a transaction."""
        if any(connection.engine.pool is engine.pool for engine in self._engines):
            self.sessions[session] = caller()
            self._look()

    def end(self) -> list[str]:
        """Take everything away that was not there before, and say what that is."""
        _watching.remove(self)
        found = list(self._pop_contexts())
        scope = self._scope()
        if scope is not None:
            _clear(scope, self._known)
        for session, where in list(self.sessions.items()):
            if session.in_transaction() and (scope is None or scope.session is not session):
                found.append(f"a session that began a transaction at {where}")
                session.close()
        return found

    def _pop_contexts(self) -> Iterable[str]:
        for _ in range(_pushed_limit):
            if _here() == self._contexts or not has_app_context():
                return
            context: Any = cast(Any, flask_globals.app_ctx)._get_current_object()
            name = f"an app context of {context.app.name!r}"
            if has_request_context():
                name = f"a request context ({request_name()})"
                if not hasattr(context, "request"):  # before Flask 3.2 there are two of them
                    context = cast(Any, flask_globals.request_ctx)._get_current_object()
            yield name
            with suppress(Exception):
                context.pop()


def _clear(scope: Scope, known: set[Any]) -> None:
    scope.rollback("the test is over")
    scope.frame.doom = None
    scope.frame.drops.clear()
    scope.blocks.clear()
    session = scope.session
    if session is not None:
        session.expire_all()
        for key, instance in list(cast(Any, session.identity_map).items()):
            if key not in known:
                session.expunge(instance)


def _note(session: Session, _: SessionTransaction, connection: Connection) -> None:
    if _watching:
        _watching[-1].began(session, connection)


def _listen() -> None:
    if not event.contains(Session, "after_begin", _note):
        event.listen(Session, "after_begin", _note)
