"""The unit of work on one session: the one place that commits and rolls back."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast
from weakref import ref

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, make_transient, object_session

from .exc import AutoSessionError
from .failures import Failing
from .phases import COMMITTED, ROLLED_BACK, State
from .signals import unit_committed
from .state import Failure, Unit

logger: logging.Logger = logging.getLogger("flask_autosession")
committing: ContextVar[UnitOfWork | None] = ContextVar("flask_autosession_unit", default=None)
"""The unit whose session is committing right now."""


class UnitOfWork(Failing):
    """A session, and the unit of work that is going on in it.

    It knows nothing of requests: :class:`.Scope` says when a unit ends, and what follows.
    """

    unit: Unit
    session: Session | None = None
    ending: bool = False
    _durable: bool = False
    _sent: list[Connection]

    def ended(self, unit: Unit, reason: str) -> None:
        """Do what follows the end of a unit that was used; the next one has begun already."""
        # No abstract method: to tell what is an instance takes Python much longer then.

    @property
    def unsaved(self) -> bool:
        """Whether the unit has written, or holds changes, that only a commit would keep."""
        session = self.session
        if self.unit.wrote or session is None or not session.in_transaction():
            return self.unit.wrote  # whatever changes an object begins a transaction
        return bool(session.new or session.deleted or any(map(session.is_modified, session.dirty)))

    # Endings

    def commit(self, reason: str, *, last: bool = False) -> None:
        """End the unit by committing it, or doom it and raise what prevented that.

        :param reason: Why, for the log.
        :param last: Whether the session is removed next, so that nobody reads its objects anew.
        :raises DoomedError: If the unit is doomed already.
        """
        self.refuse_doomed(self.failure)
        self._commit(reason, last)

    def _commit(self, reason: str, last: bool) -> None:
        self._durable, self._sent = False, []
        session = self.session
        if session is not None and session.in_transaction():
            try:
                session.flush()
                self._commit_session(session, last)
                if not self._durable:
                    raise AutoSessionError("commit() of the session's class did not commit.")
            except BaseException as error:
                if not self._durable:
                    self._report_split()
                    self._fail(session, error, level=0)
                    self.settle()
                    raise
                with self.driving():
                    session.close()
                if not isinstance(error, Exception):
                    self._finish(COMMITTED, reason)
                    raise
                logger.exception("A listener failed after the commit, which stands")
        self._finish(COMMITTED, reason)

    def _commit_session(self, session: Session, last: bool) -> None:
        self._broken = None
        before, self.ending = self.ending, True
        token = committing.set(self)
        expire = session.expire_on_commit
        # Expired objects could not be read any more once they are detached. But a callback must
        # not go on with what is not so any more.
        stale = self.unit.bypassed and (self.unit.on_commit or unit_committed.receivers)
        session.expire_on_commit = expire and bool(stale or not last)
        try:
            session.commit()
        finally:
            session.expire_on_commit = expire
            committing.reset(token)
            self.ending = before

    def commit_sent(self, proxy: Any) -> None:
        """Note that COMMIT is about to be sent on a connection, if that is one of the unit's.

        :param proxy: What the pool has handed out for the connection.
        :raises DoomedError: If a listener has swallowed a failure.
        """
        for connection, handed_out in self.unit.connections.items():
            if handed_out is proxy and connection not in self._sent:
                failure = self.aborted()
                if self._broken is not None:
                    failure = Failure(self._broken, "a listener for before_commit")
                self.refuse_doomed(failure)
                self._sent.append(connection)

    def commit_done(self) -> None:
        """Note that a COMMIT has succeeded; the last one of the unit makes it durable."""
        if self._sent and len(self._sent) == len(self.unit.connections):
            self._durable = True

    def committed(self) -> None:
        """Note that all is durable; told before any listener can raise."""
        self._durable = True

    def _report_split(self) -> None:
        if len(self._sent) > 1:
            *done, failed = map(_database, self._sent)
            logger.error(
                "One unit of work, two fates: it was committed on %s, but its commit failed on %s",
                ", ".join(done),
                failed,
            )

    def rollback(self, reason: str, *, last: bool = False) -> None:
        """End the unit by rolling it back.

        :param reason: Why, for the log and for ``unit_rolled_back``.
        :param last: Whether the session is removed next.
        """
        session = self.session
        if session is not None and session.in_transaction():
            # rollback() expires objects. Detached ones stay readable; only callbacks need them.
            needed = self.unit.on_rollback or _is_told(session)
            self.clear(session, close=last and not needed)
        self._finish(ROLLED_BACK, reason)

    def clear(self, session: Session, *, close: bool = False) -> None:
        """Roll a session back in the database, whatever state it is in.

        :param session: The session.
        :param close: Whether nobody needs its objects in the session any more.
        """
        before, self.ending = self.ending, True
        try:
            if close and not self.unit.deleted and not _rollback_is_heard(session):
                session.reset()  # which rolls back, too, with half of the work
                _have_no_rows(self.unit.inserted)
            else:
                if close:
                    session.expunge_all()
                session.rollback()
        except Exception:
            # Most likely the connection is lost, and the work with it.
            logger.warning("ROLLBACK failed; its connection is thrown away", exc_info=True)
            session.invalidate()
        finally:
            self.ending = before

    def _finish(self, outcome: State, reason: str) -> None:
        unit = self.unit
        self._unguard()
        if unit.used:
            self.unit = Unit()
            unit.outcome = outcome
            self.ended(unit, reason)

    def give_up(self) -> Session | None:
        """Let the session go on by itself, as one that no unit of work belongs to.

        :return: The session, if there is one.
        """
        session = self.session
        self.session = None
        self._unguard()
        if session is not None:
            session.scope = None  # type: ignore[attr-defined]
        return session

    def remove(self) -> None:
        """Give the session up, and its connection back, whatever state they are in."""
        session = self.give_up()
        if session is not None:
            session.close()

    @contextmanager
    def driving(self) -> Generator[None]:
        """Let the session's own methods through, because they are called from here."""
        before = self.ending
        self.ending = True
        try:
            yield
        finally:
            self.ending = before


def _have_no_rows(inserted: list[ref[Any]]) -> None:
    # Somebody may hold them still. Saved again, they would be taken for objects that have a row.
    alive = filter(None, (found() for found in inserted))
    for instance in [one for one in alive if object_session(one) is None]:
        make_transient(instance)


def _is_told(session: Session) -> bool:
    return bool(cast(Any, session).dispatch.persistent_to_transient)


def _rollback_is_heard(session: Session) -> bool:
    if not getattr(session, "rolls_back_plainly", False):
        return True
    events = cast(Any, session).dispatch
    return bool(events.after_rollback or events.after_soft_rollback)


def _database(connection: Connection) -> str:
    return connection.engine.url.render_as_string(hide_password=True)
