"""What has failed in a unit of work, and what is refused from then on."""

from __future__ import annotations

from typing import cast

from sqlalchemy import event
from sqlalchemy.orm import ORMExecuteState, Session

from .callsite import caller
from .drivers import is_aborted
from .exc import AutoSessionError, DoomedError
from .state import Failure, Unit


class Failing:
    """A session whose unit of work can be doomed by what fails in it."""

    session: Session | None = None
    ending: bool = False
    """True while a unit of work drives its session, so that its overrides stand back."""
    _guarded: Session | None = None
    _broken: BaseException | None = None

    def __init__(self) -> None:
        self.unit: Unit = Unit()

    def clear(self, session: Session) -> None:
        """Roll a session back in the database, whatever state it is in."""
        # No abstract method: to tell what is an instance takes Python much longer then.

    @property
    def failure(self) -> Failure | None:
        """What dooms the unit, if anything."""
        unit = self.unit
        return unit.failure or (self.aborted() if unit.telling else None)

    def aborted(self) -> Failure | None:
        """Return what the database alone has seen to fail, if it says so."""
        if not is_aborted(self.unit.telling):
            return None
        error = AutoSessionError("PostgreSQL reports that a statement failed.")
        return Failure(error, "a place that only the database has seen")

    def refuse_doomed(self, failure: Failure | None) -> None:
        """Raise if there is a failure.

        :param failure: What dooms the unit, if anything.
        :raises DoomedError: If something does, with what failed first.
        """
        if failure is not None:
            raise DoomedError(failure.error, failure.where)

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
        self.clear(session)
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
