"""What a test leaves behind: contexts, sessions, connections."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, cast
from weakref import WeakKeyDictionary

from flask import Flask, current_app, g, has_app_context, has_request_context, request
from flask import globals as flask_globals
from sqlalchemy import event, inspect
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session, SessionTransaction, make_transient, make_transient_to_detached

from flask_autosession.callsite import caller
from flask_autosession.current import current_scope, request_name
from flask_autosession.exc import AutoSessionError, IsolationError
from flask_autosession.scope import Scope

from .units import Dropped

_watching: list[Leaks] = []
"""Those that watch right now, innermost last."""
Contexts = tuple[object, object]


def contexts() -> Contexts:
    """Return what tells the current contexts from others."""
    return (
        g._get_current_object() if has_app_context() else None,
        cast(Any, request)._get_current_object() if has_request_context() else None,
    )


def left_behind(things: list[str]) -> str:
    """Return what to say about things that a test has left behind."""
    return f"The test has left behind: {'; '.join(things)}. Close what it opens, in a 'with' block."


class Leaks:
    """What was there when a test began, and what is there still when it is over.

    :param app: The application.
    :param engines: Its engines.
    :param dropped: Is told of the sessions that begin and that roll back.
    """

    def __init__(self, app: Flask, engines: Iterable[Engine], dropped: Dropped) -> None:
        self.dropped: Dropped = dropped
        self._app = app
        self._engines = list(engines)
        self._contexts: Contexts = (None, None)
        self._outer: Scope | None = None
        self._known: dict[Any, object] = {}
        self.sessions: WeakKeyDictionary[Session, str] = WeakKeyDictionary()
        """The sessions that began a transaction, and where."""

    def _scope(self) -> Scope | None:
        return current_scope() if has_app_context() and current_app == self._app else None

    def prepare(self, *, nested: bool) -> None:
        """Bring what is there into a state that can be come back to.

        :param nested: Whether what was done so far is undone by somebody else.
        :raises IsolationError: If a context that is pushed has work that nobody would undo.
        """
        self._contexts = contexts()
        self._outer = scope = self._scope() if self._contexts[0] is not None else None
        if scope is not None:
            if scope.unsaved and not nested:
                raise IsolationError(
                    f"A context of {self._app.name!r} that was pushed before the test began has"
                    " written something and not committed it.",
                    "Put 'with isolate(app):' around what a fixture of a wider scope does.",
                )
            scope.end_cleanly("a test begins inside of this context")

    def begin(self) -> None:
        """Remember what is there, and watch what comes."""
        scope = self._outer
        if scope is not None and scope.session is not None:
            self._known = dict(cast(Any, scope.session.identity_map).items())
        _watching.append(self)

    def began(self, session: Session, connection: Connection) -> bool:
        """Note that a session has begun a transaction, if it is on a database of the app."""
        pool = connection.engine.pool
        for engine in self._engines:
            if engine.pool is pool:
                self.sessions[session] = caller()
                self.dropped.session_began()
                return True
        return False

    def end(self) -> list[str]:
        """Take everything away that was not there before, and say what that is."""
        _watching.remove(self)
        found: list[str] = []
        scope: Scope | None = None
        if has_app_context():
            found, scope = pop_contexts(self._contexts), self._scope()
        if scope is not None:
            _clear(scope, self._known)
            if self._known:
                _bring_back(self._app.extensions["sqlalchemy"].session(), self._known)
        for reference in self.sessions.keyrefs():
            session = reference()
            if session is None or not session.in_transaction():
                continue
            if scope is None or scope.session is not session:
                found.append(f"a session that began a transaction at {self.sessions[session]}")
                session.close()
        return found


def pop_contexts(until: Contexts, *, clients: bool = True) -> list[str]:
    """Pop the contexts that were pushed, and say which they are.

    :param until: What :func:`contexts` has returned before.
    :param clients: Whether those go, too, that a test client keeps until its block ends.
    """
    found: list[str] = []
    while has_app_context() and contexts() != until:
        context: Any = cast(Any, flask_globals.app_ctx)._get_current_object()
        name = f"an app context of {context.app.name!r}"
        if has_request_context() and contexts()[1] is not until[1]:
            if not clients and "werkzeug.debug.preserve_context" in request.environ:
                break
            name = f"a request context ({request_name()})"
            # Before Flask 3.2 there are two of them.
            both = hasattr(context, "request")
            context = (
                context if both else cast(Any, flask_globals.request_ctx)._get_current_object()
            )
        found.append(name)
        before = contexts()
        with suppress(Exception):
            context.pop()
        if contexts() == before:
            break  # it cannot be popped from here
    return found


def _clear(scope: Scope, known: dict[Any, object]) -> None:
    while scope.blocks:
        with suppress(Exception):
            cast(Any, scope.blocks.pop()).leave(AutoSessionError("the test is over"))
    scope.rollback("the test is over")
    scope.frame.doom = None
    scope.frame.drops = ()
    session = scope.session
    if session is not None:
        session.expire_all()
        for key, instance in list(cast(Any, session.identity_map).items()):
            if key not in known:
                session.expunge(instance)


def _bring_back(session: Session, known: dict[Any, object]) -> None:
    for (cls, identity, *_), instance in known.items():
        if instance not in session:
            # Deleted or detached by the test; its row is there again.
            make_transient(instance)
            for column, value in zip(inspect(cls).primary_key, identity, strict=True):
                setattr(instance, inspect(cls).get_property_by_column(column).key, value)
            make_transient_to_detached(instance)
            session.add(instance)


@event.listens_for(Session, "after_begin")
def _note(session: Session, _: SessionTransaction, connection: Connection) -> None:
    for leaks in reversed(_watching):
        if leaks.began(session, connection):
            return


@event.listens_for(Session, "after_rollback")
def _note_rollback(session: Session) -> None:
    for leaks in _watching:
        if session in leaks.sessions:
            leaks.dropped.session_rolled_back()
