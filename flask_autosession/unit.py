"""The unit of work on one session: the one place that commits and rolls back."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.orm import ORMExecuteState, Session

from .callsite import caller
from .drivers import is_aborted
from .exc import AutoSessionError, DoomedError
from .state import Failure, State, Unit

logger: logging.Logger = logging.getLogger("flask_autosession")


class UnitOfWork(ABC):
    """A session, and the unit of work that is going on in it.

    It knows nothing of requests: :class:`.Scope` says when a unit ends, and what follows.
    """

    def __init__(self) -> None:
        self.session: Session | None = None
        self.unit: Unit = Unit()
        self.ending: bool = False
        """True while this class itself drives the session, so that its overrides stand back."""
        self._guarded: Session | None = None
        self._sent: list[Connection] = []
        self._broken: BaseException | None = None
        self._durable = False

    @abstractmethod
    def ended(self, unit: Unit, reason: str) -> None:
        """Do what follows the end of a unit that was used; the next one has begun already."""

    @property
    def unsaved(self) -> bool:
        """Whether the unit has written, or holds changes, that only a commit would keep."""
        session = self.session
        return self.unit.wrote or (
            session is not None
            and bool(session.new or session.deleted or any(map(session.is_modified, session.dirty)))
        )

    @property
    def failure(self) -> Failure | None:
        """What dooms the unit, if anything."""
        return self.unit.failure or self._aborted()

    def _aborted(self) -> Failure | None:
        if any(map(is_aborted, self.unit.connections)):
            error = AutoSessionError("PostgreSQL reports that a statement failed.")
            return Failure(error, "a place that only the database has seen")
        return None

    def refuse_doomed(self, failure: Failure | None) -> None:
        """Raise if there is a failure.

        :param failure: What dooms the unit, if anything.
        :raises DoomedError: If something does, with what failed first.
        """
        if failure is not None:
            raise DoomedError(failure.error, failure.where)

    # Endings

    def commit(self, reason: str, *, last: bool = False) -> None:
        """End the unit by committing it, or doom it and raise what prevented that.

        :param reason: Why, for the log.
        :param last: Whether the session is removed next, so that nobody reads its objects anew.
        :raises DoomedError: If the unit is doomed already.
        """
        self.refuse_doomed(self.failure)
        self._durable = False
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
                    self._finish(State.COMMITTED, reason)
                    raise
                logger.exception("A listener failed after the commit, which stands")
        self._finish(State.COMMITTED, reason)

    def _commit_session(self, session: Session, last: bool) -> None:
        self._sent.clear()
        self._broken = None
        expire = session.expire_on_commit
        # Expired objects could not be read any more once they are detached.
        session.expire_on_commit = expire and not last
        try:
            with self.driving():
                session.commit()
        finally:
            session.expire_on_commit = expire

    def commit_sent(self, connection: Connection) -> None:
        """Note that COMMIT is about to be sent; raise if a listener has swallowed a failure."""
        if self.ending:
            failure = self._aborted()
            if self._broken is not None:
                failure = Failure(self._broken, "a listener for before_commit")
            self.refuse_doomed(failure)
            self._sent.append(connection)

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
            self._clear(session, detach=last and not self.unit.on_rollback)
        self._finish(State.ROLLED_BACK, reason)

    def _clear(self, session: Session, *, detach: bool = False) -> None:
        with self.driving():
            try:
                if detach:
                    session.expunge_all()
                session.rollback()
            except Exception:
                # Most likely the connection is lost, and the work with it.
                logger.warning("ROLLBACK failed; its connection is thrown away", exc_info=True)
                session.invalidate()

    def _finish(self, outcome: State, reason: str) -> None:
        unit = self.unit
        self.unit = Unit()
        self._unguard()
        if unit.state is not State.IDLE:
            unit.outcome = outcome
            self.ended(unit, reason)

    def remove(self) -> None:
        """Give the session up, and its connection back, whatever state they are in."""
        session = self.session
        self.session = None
        self._unguard()
        if session is not None:
            with self.driving():
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

    # Failures

    def flush_failed(self, session: Session, error: BaseException) -> None:
        """Doom the unit, or just the open savepoint, because a flush has failed in it."""
        self._fail(session, error, level=self.unit.level)
        self.settle()

    def statement_failed(self, error: BaseException, statement: str) -> None:
        """Doom the unit, or just the open savepoint, because a statement has failed in it.

        It is being dealt with: :meth:`settle` rolls back before the session is used again.
        """
        if self.ending:
            self._broken = error
        else:
            # Where a savepoint's own end fails, nothing in it is undone: PostgreSQL refuses to
            # release it after an error in it, MariaDB has lost it after a deadlock.
            around = statement.startswith(("RELEASE", "ROLLBACK TO"))
            level = max(self.unit.level - around, 0)
            self._fail(cast(Session, self.session), error, level=level)

    def _fail(self, session: Session, error: BaseException, *, level: int) -> None:
        self.unit.failed(error, caller, level=level)
        if self._guarded is None:
            self._guarded = session
            event.listen(session, "do_orm_execute", self._before_execute)

    def _before_execute(self, _: ORMExecuteState) -> None:
        self.settle()

    def settle(self) -> None:
        """Roll a doomed unit back in the database, so that it can be read from again.

        Inside a savepoint there is nothing to do: its own end rolls it back.
        """
        failure, session = self.unit.failure, self.session
        if failure is None or session is None or failure.level or failure.undone:
            return
        self._clear(session)
        self.unit.undone()

    def lift(self, session: Session, failure: Failure) -> None:
        """Go on after a savepoint's rollback has undone a failure, without what it left pending."""
        self._unguard()
        # SQLAlchemy has forgotten what was pending when the flush failed, but not what came after.
        for added in list(session.new):
            session.expunge(added)
        for deleted in list(session.deleted):
            session.add(deleted)
        for changed in list(session.dirty):
            session.expire(changed)

    def _unguard(self) -> None:
        if self._guarded is not None:
            event.remove(self._guarded, "do_orm_execute", self._before_execute)
            self._guarded = None


def _database(connection: Connection) -> str:
    return connection.engine.url.render_as_string(hide_password=True)
