"""The session class that asks the unit of work before it commits."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, cast

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, SessionTransaction

from .phases import SHELL
from .scope import Scope
from .state import Failure


class UnitSession(Session):
    """A session whose endings belong to a unit of work, mixed into the class the db came with.

    Sessions made directly from ``db.session.session_factory`` have no ``scope`` and behave
    like any other.
    """

    scope: Scope | None = None
    """The scope that this session works for; none once its context has another, or is over."""
    rolls_back_plainly: bool = True
    """Whether the class that this was mixed into has no ``rollback()`` of its own."""

    @property
    def autoflush(self) -> bool:
        """Whether queries flush what is pending; never in a unit that can only be rolled back."""
        return self._autoflush_wanted and (self.scope is None or self.scope.unit.failure is None)

    @autoflush.setter
    def autoflush(self, value: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        # no_autoflush and merge() put back what they have found: then that is what the doom says.
        if value or self.scope is None or self.scope.unit.failure is None:
            self._autoflush_wanted = value

    @property
    def master(self) -> Scope | None:
        """The scope to be asked, unless it is that scope which calls."""
        scope = self.scope
        return None if scope is None or scope.ending else scope

    def commit(self) -> None:
        """Commit, or whatever ``AUTOSESSION_EXPLICIT_COMMIT`` says of it."""
        scope = self.master
        if scope is None:
            super().commit()
        else:
            scope.explicit_commit(self)

    def rollback(self) -> None:
        """Roll back; what was done so far is dropped, and a new unit of work begins."""
        self._end("rollback()", super().rollback)

    def close(self) -> None:
        """Close; what was done so far is dropped, and a new unit of work begins."""
        self._end("close()", super().close)

    def reset(self) -> None:
        """Close, in a way that lets the session be used again."""
        self._end("reset()", super().reset)

    def invalidate(self) -> None:
        """Close, and throw the connections away."""
        self._end("invalidate()", super().invalidate)

    def _end(self, how: str, end: Callable[[], None]) -> None:
        scope = self.master
        if scope is None:
            end()
        else:
            scope.explicit_end(how, end)

    def flush(self, *args: Any, **kwargs: Any) -> None:
        """Flush; where that fails, roll back at once and doom the unit of work."""
        scope = self.scope
        if scope is None or scope.ending:
            super().flush(*args, **kwargs)
            return
        unit = scope.unit
        if unit.failure is not None and self._is_refused(scope, unit.failure):
            return
        unit.flushing, wrote, flushed = True, unit.wrote, None
        if scope.frame.phase is SHELL:
            flushed = {id(one): one for one in (*self.new, *self.dirty, *self.deleted)}
        try:
            super().flush(*args, **kwargs)
        except BaseException as error:
            unit.flushing, unit.wrote = False, wrote
            scope.flush_failed(self, error)
            del scope, unit  # or else this frame keeps what keeps the error that keeps this frame
            raise
        unit.flushing = False
        if flushed:
            unit.flushed.update(flushed)

    def _is_refused(self, scope: Scope, failure: Failure) -> bool:
        if self._changed():
            scope.refuse_doomed(failure)
        if failure.level:
            # The savepoint is dead, not even a flush of nothing is possible. SQLAlchemy would
            # ask for one a hundred times over an attribute that was set to what it was.
            for unchanged in self.dirty:
                self.expire(unchanged)
        return failure.level > 0

    def _changed(self) -> bool:
        return bool(self.new or self.deleted or any(map(self.is_modified, self.dirty)))

    def begin(self, nested: bool = False) -> SessionTransaction:
        """Begin a transaction whose end asks the unit of work, or set a savepoint."""
        scope = self.master
        if scope is None:
            return super().begin(nested)
        if not nested:
            return cast(SessionTransaction, _Begun(self, super().begin()))
        scope.settle()
        # SQLAlchemy would flush while it builds the savepoint, where nothing can be rolled back.
        self.flush()
        transaction = super().begin(nested=True)
        if not scope.unit.level:
            _follow_savepoints(self)
        scope.unit.savepoint_set(transaction)
        if scope.unit.failure is None and scope.aborted() is None:
            for connection in list(scope.unit.connections):
                # Else SQLAlchemy would set it when the session asks for the connection again, and
                # not at all for those who have got that already.
                super().connection(bind_arguments={"bind": connection})
        return transaction

    def connection(self, *args: Any, **kwargs: Any) -> Connection:
        """Return the connection of the current transaction."""
        scope = self.master
        if scope is not None:
            scope.settle()
        return super().connection(*args, **kwargs)


class _Begun:
    """What ``with db.session.begin():`` holds: a transaction whose commit goes by the session.

    SQLAlchemy's own object would commit past ``Session.commit()``.
    """

    def __init__(self, session: UnitSession, transaction: SessionTransaction) -> None:
        self._session = session
        self._transaction = transaction

    def __enter__(self) -> SessionTransaction:
        return cast(SessionTransaction, self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if error is not None:
            self.rollback()
            return
        try:
            self.commit()
        except BaseException:
            self.rollback()
            raise

    def commit(self) -> None:
        self._session.commit()

    def rollback(self) -> None:
        self._session.rollback()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transaction, name)


def _follow_savepoints(session: UnitSession) -> None:
    # On this one session and only once it needs it: every event costs each request that has it.
    if not event.contains(session, "after_commit", _released):
        event.listen(session, "after_commit", _released)
        event.listen(session, "after_transaction_end", _ended)


def _ended(session: UnitSession, transaction: SessionTransaction) -> None:
    # A savepoint that was released is known no more. (after_soft_rollback would not do: it is
    # not sent for a savepoint that a failed flush has rolled back before its block ended.)
    scope = session.scope
    if scope is not None:
        failure = scope.unit.savepoint_rolled_back(transaction)
        if failure is not None:
            scope.lift(session, failure)


def _released(session: UnitSession) -> None:
    if session.scope is not None:
        session.scope.unit.savepoint_released(session.get_nested_transaction())
