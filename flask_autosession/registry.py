"""Binds each app context's session to its scope, and the session class to the unit of work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast
from weakref import WeakKeyDictionary, ref

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import ScopedRegistry

from .engines import Engines
from .exc import AutoSessionError
from .scope import Scope
from .session import UnitSession


class UnitRegistry(ScopedRegistry[Session]):
    """Keeps each context's session on its scope, so that it cannot outlive or change its context.

    Flask-SQLAlchemy's own registry goes by the context's address, which the next context may get.
    In contexts without a scope, those of other apps, that registry is asked as before.

    :param plain: The registry that this one takes the place of.
    :param scope: Returns the current scope, or None.
    :param attach: Is called with each scope that gets a session.
    """

    def __init__(
        self,
        plain: ScopedRegistry[Session],
        scope: Callable[[], Scope | None],
        attach: Callable[[Scope], None],
    ) -> None:
        super().__init__(plain.createfunc, plain.scopefunc)
        self._attach = attach
        cast(Any, self).registry = plain.registry
        self._plain = plain
        self._scope = scope

    def __call__(self) -> Session:
        """Return the session of the current context; make it if there is none."""
        scope = self._scope()
        if scope is None:
            return self._plain()
        session = scope.session
        return self._bind(scope, self.createfunc()) if session is None else session

    def has(self) -> bool:
        """Tell whether the current context has a session."""
        scope = self._scope()
        return self._plain.has() if scope is None else scope.session is not None

    def set(self, obj: Session) -> None:
        """Make a session that of the current context."""
        scope = self._scope()
        if scope is None:
            self._plain.set(obj)
        else:
            scope.give_up()
            self._bind(scope, obj)

    def _bind(self, scope: Scope, session: Session) -> Session:
        self._attach(scope)
        scope.session = session
        if isinstance(session, UnitSession):
            session.scope = scope
        return session

    def clear(self) -> None:
        """Forget the session of the current context."""
        scope = self._scope()
        if scope is None:
            self._plain.clear()
        else:
            scope.give_up()


def wrap_session(db: SQLAlchemy, engines: Engines, scope: Callable[[], Scope | None]) -> None:
    """Make the sessions of ``db.session`` belong to units of work.

    :param db: The Flask-SQLAlchemy object.
    :param engines: Follows what the sessions' connections do.
    :param scope: Returns the current scope, or None.
    """
    session: Any = db.session
    factory = session.session_factory
    plain = factory.class_
    told = {"rolls_back_plainly": plain.rollback is Session.rollback}
    kind = type(plain.__name__, (UnitSession, plain), told)
    factory.class_ = kind

    engines_of: WeakKeyDictionary[Flask, Mapping[str | None, Engine]] = WeakKeyDictionary()

    def attach(scope: Scope) -> None:
        known = engines_of.get(scope.app)
        if known is None:
            known = engines_of[scope.app] = db.engines
        for engine in known.values():
            engines.attach(engine.engine, scope)  # tests put connections in their place

    session.registry = UnitRegistry(session.registry, scope, attach)

    def after_begin(session: UnitSession, _: SessionTransaction, connection: Connection) -> None:
        if session.scope is not None:
            engines.adopt(connection, session.scope)

    event.listen(kind, "after_begin", after_begin)
    event.listen(kind, "pending_to_persistent", _inserted)
    event.listen(kind, "persistent_to_deleted", _deleted)
    # In front of the application's own listeners: what they raise does not undo what is durable.
    event.listen(kind, "after_commit", _after_commit, insert=True)
    event.listen(kind, "before_commit", _before_commit)


def _inserted(session: UnitSession, instance: Any) -> None:
    if session.scope is not None:
        session.scope.unit.inserted.append(ref(instance))


def _deleted(session: UnitSession, _: Any) -> None:
    if session.scope is not None:
        session.scope.unit.deleted = True


def _after_commit(session: UnitSession) -> None:
    if session.scope is not None and not session.in_nested_transaction():
        session.scope.committed()


def _before_commit(session: UnitSession) -> None:
    if session.master is not None and not session.in_nested_transaction():
        raise AutoSessionError(
            "The transaction was about to be committed past the unit of work, most likely by"
            " commit() of a SessionTransaction. Call db.session.commit() instead."
        )
