"""The unit of work of one app context: the one place that commits and rolls back."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask
from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.orm import ORMExecuteState, Session

from .callsite import caller, raised_at
from .config import Settings
from .exc import AutoSessionError, DoomedError, ExplicitCommitError
from .signals import unit_committed, unit_rolled_back
from .state import Callback, Failure, Frame, Phase, State, Unit, decide

logger = logging.getLogger("flask_autosession")

# libpq's PQTRANS_INERROR, as psycopg and psycopg2 both report it.
_IN_ERROR = 3


class Scope:
    """The session of one app context, its current unit of work, and what ends it.

    :param app: The application that the context belongs to.
    :param settings: Its configuration.
    :param warned: The call sites that were warned of already; shared by the app's scopes.
    """

    def __init__(self, app: Flask, settings: Settings, warned: set[str]) -> None:
        self.app = app
        self.settings = settings
        self.session: Session | None = None
        self.unit = Unit()
        self.frames = [Frame(lambda: "app context", Phase.CONTEXT)]
        self.ending = False
        """True while this class itself drives the session, so that its overrides stand back."""
        self._warned = warned
        self._queue: deque[tuple[Callback, str]] = deque()
        self._draining = False
        self._guarded: tuple[Session, bool] | None = None
        self._sent: list[Connection] = []
        self._broken: Connection | None = None

    @property
    def frame(self) -> Frame:
        """The innermost request, callback or context."""
        return self.frames[-1]

    @property
    def failure(self) -> Failure | None:
        """What dooms the current unit, if anything."""
        return self.frame.doom or self.unit.failure or self._aborted()

    def _aborted(self) -> Failure | None:
        # PostgreSQL answers COMMIT of an aborted transaction with a silent ROLLBACK, and errors
        # of a raw cursor, or swallowed inside begin_nested(), reach no event. Its driver knows.
        for connection in self.unit.connections:
            if not connection.closed and not connection.invalidated:
                driver = connection.connection.driver_connection
                info = getattr(driver, "info", None)
                if getattr(info, "transaction_status", None) == _IN_ERROR:
                    error = AutoSessionError("PostgreSQL reports that a statement failed.")
                    return Failure(error, "a place that only the database has seen")
        return None

    # Endings

    def commit(self, reason: str, *, last: bool = False) -> None:
        """End the unit by committing it, or raise what prevented that, with all of it rolled back.

        :param reason: Why, for the log.
        :param last: Whether the session is removed next, so that nobody reads its objects anew.
        :raises DoomedError: If the unit is doomed; it goes on then, and nothing is ended.
        """
        self.refuse_doomed()
        session = self.session
        if session is not None and session.in_transaction():
            try:
                session.flush()
                self.refuse_doomed()
                self._commit_session(session, last)
            except BaseException as error:
                if not self._was_committed(error):
                    self._report_split()
                    self.rollback(f"the commit failed with {type(error).__name__}")
                    raise
                logger.exception("A listener failed after the commit, which stands")
                self._clear(session)
        self._finish(State.COMMITTED, reason)

    def _commit_session(self, session: Session, last: bool) -> None:
        self._sent.clear()
        self._broken = None
        expire = session.expire_on_commit
        # Expired objects could not be read any more once they are detached.
        session.expire_on_commit = expire and not last
        try:
            with self._driving():
                session.commit()
        finally:
            session.expire_on_commit = expire

    def commit_sent(self, connection: Connection) -> None:
        """Note that COMMIT is being sent on a connection."""
        if self.ending:
            self._sent.append(connection)

    def _was_committed(self, error: BaseException) -> bool:
        # A listener for after_commit that raises does so when all is durable already.
        every = self.unit.connections
        return (
            isinstance(error, Exception)
            and self._broken is None
            and bool(every)
            and len(self._sent) >= len(every)
        )

    def _report_split(self) -> None:
        done = [connection for connection in self._sent if connection is not self._broken]
        if self._broken is not None and done:
            logger.error(
                "%s: one unit of work, two fates: committed on %s, but the commit on %s failed",
                self.frame.name(),
                ", ".join(_database(connection) for connection in done),
                _database(self._broken),
            )

    def rollback(self, reason: str, *, last: bool = False) -> None:
        """End the unit by rolling it back.

        :param reason: Why, for the log and for ``unit_rolled_back``.
        :param last: Whether the session is removed next.
        """
        session = self.session
        if session is not None and session.in_transaction():
            # close() leaves the objects readable where rollback() expires them all; only who
            # still runs in this session, a callback, needs them attached.
            self._clear(session, detach=last and not self.unit.on_rollback)
        self._finish(State.ROLLED_BACK, reason)

    def _clear(self, session: Session, *, detach: bool = False) -> None:
        with self._driving():
            try:
                session.close() if detach else session.rollback()
            except Exception:
                # Most likely the connection is lost, and the work with it.
                logger.warning("ROLLBACK failed; its connection is thrown away", exc_info=True)
                session.invalidate()

    def _finish(self, outcome: State, reason: str) -> None:
        unit, self.unit = self.unit, Unit()
        self._unguard()
        if unit.state is State.IDLE:
            return
        unit.outcome = outcome
        logger.debug("%s: %s (%s)", self.frame.name(), outcome.value, reason)
        committed = outcome is State.COMMITTED
        signal, extra = (unit_committed, {}) if committed else (unit_rolled_back, {"reason": reason})
        if signal.receivers:
            self._queue.append((lambda: signal.send(self.app, **extra), "a signal's receivers"))
        callbacks, kind = (
            (unit.on_commit, "on_commit") if committed else (unit.on_rollback, "on_rollback")
        )
        self._queue.extend((callback, kind) for callback in callbacks)
        self._drain()

    # Failures

    def refuse_doomed(self) -> None:
        """Raise if nothing can be written or committed in the current unit any more.

        :raises DoomedError: If so, with what failed first.
        """
        failure = self.failure
        if failure is not None:
            raise DoomedError(failure.error, failure.where)

    def flush_failed(self, session: Session, error: BaseException) -> None:
        """Doom the unit, or just the open savepoint, because a flush has failed in it."""
        self._fail(session, error)
        self.settle()

    def statement_failed(
        self, connection: Connection, error: BaseException, statement: str
    ) -> None:
        """Doom the unit, or just the open savepoint, because a statement has failed in it.

        The transaction is left as it is for now: this is called while the statement is still
        being dealt with. :meth:`settle` rolls back before the session is used again.
        """
        if self.ending:
            self._broken = connection
        elif self.session is not None:
            # Where a savepoint's own end fails, nothing in it is undone: PostgreSQL refuses to
            # release it after an error in it, MariaDB has lost it after a deadlock.
            around = statement.startswith(("RELEASE", "ROLLBACK TO"))
            self._fail(self.session, error, around=around)

    def _fail(self, session: Session, error: BaseException, *, around: bool = False) -> None:
        self.unit.failed(error, caller, around=around)
        if self._guarded is None:
            self._guarded = (session, session.autoflush)
            session.autoflush = False
            event.listen(session, "do_orm_execute", self._before_execute)

    def _before_execute(self, _: ORMExecuteState) -> None:
        self.settle()

    def settle(self) -> None:
        """Roll a doomed unit back in the database, so that it can be read from again.

        Inside a savepoint there is nothing to do: its own end rolls it back.
        """
        failure, session = self.unit.failure, self.session
        if failure is not None and session is not None and not failure.level and not failure.undone:
            self._clear(session)
            self.unit.undone()

    def lift(self) -> None:
        """Take the guard off the session again if a savepoint's rollback undid the failure."""
        if self.unit.failure is None:
            self._unguard()

    def _unguard(self) -> None:
        if self._guarded is not None:
            session, session.autoflush = self._guarded
            event.remove(session, "do_orm_execute", self._before_execute)
            self._guarded = None

    # Callbacks

    def _drain(self) -> None:
        # What a callback registers itself is appended, so that it runs behind those that wait.
        if self._draining:
            return
        self._draining = True
        try:
            while self._queue:
                self._call(*self._queue.popleft())
        finally:
            self._draining = False
            if self._queue:
                logger.error("%d callbacks were not run: a callback was killed", len(self._queue))
                self._queue.clear()

    def _call(self, callback: Callback, kind: str) -> None:
        name = getattr(callback, "__qualname__", repr(type(callback)))
        self.frames.append(Frame(lambda: f"{kind} {name}", Phase.CALLBACK))
        try:
            self.app.ensure_sync(callback)()
            self.end_cleanly("the callback returned")
        except BaseException as error:
            self.rollback(f"{type(error).__name__} in a callback")
            if not isinstance(error, Exception):
                raise
            logger.exception("%s %s failed; its own work was rolled back", kind, name)
        finally:
            self.frames.pop()

    # What the application does explicitly

    def explicit_commit(self) -> None:
        """Do what ``db.session.commit()`` means here. See ``AUTOSESSION_EXPLICIT_COMMIT``.

        :raises ExplicitCommitError: In a request, under ``forbid``.
        :raises DoomedError: If the unit is doomed.
        """
        in_request = self.frame.phase is Phase.REQUEST
        policy = self.settings.explicit_commit if in_request else "allow"
        if policy == "forbid":
            raise ExplicitCommitError(caller())
        if policy == "flush":
            self.refuse_doomed()
            assert self.session is not None
            self.session.flush()
            return
        if policy == "warn":
            self._warn_once(caller())
        self.commit("explicit commit")

    def _warn_once(self, where: str) -> None:
        if where not in self._warned:
            self._warned.add(where)
            logger.warning(
                "db.session.commit() at %s commits what the request has done so far, whatever its"
                " response will be. Remove it, or set AUTOSESSION_EXPLICIT_COMMIT. (Told once.)",
                where,
            )

    def explicit_end(self, how: str, end: Callable[[], None]) -> None:
        """Drop the unit because the application says so: ``rollback()``, ``close()``, ``remove()``.

        :param how: The name of the method that was called.
        :param end: The method itself, of the session's own class.
        """
        if self.unsaved:
            self._drop(f"{how} was called at {caller()}", now=self.frame.phase is Phase.DECIDED)
        with self._driving():
            end()
        self._finish(State.ROLLED_BACK, f"explicit {how}")

    @property
    def unsaved(self) -> bool:
        """Whether the unit has written, or holds changes, that only a commit would keep."""
        session = self.session
        return self.unit.wrote or (
            session is not None and bool(session.new or session.dirty or session.deleted)
        )

    def _drop(self, what: str, *, now: bool = False) -> None:
        first = f" ({self.unit.failure} came first)" if self.unit.failure else ""
        self.frame.drops.append(what + first)
        if now:
            self.tell_drops()

    def tell_drops(self) -> None:
        """Warn of the work that was thrown away in this frame, though it ends in success."""
        for drop in self.frame.drops:
            logger.warning("%s: work was thrown away: %s", self.frame.name(), drop)
        self.frame.drops.clear()

    def raised(self, error: BaseException) -> None:
        """Roll back because an exception has left the application's code."""
        what = f"{type(error).__name__} at {raised_at(error)}"
        if self.unsaved and not self.frame.doom:
            self._drop(what)
        self.rollback(what)

    def conclude(self, success: bool, *, last: bool) -> None:
        """End a request's unit as its response says.

        :param success: Whether the response says success.
        :param last: Whether the session is removed next.
        :raises Exception: What prevented the commit; the unit is rolled back then.
        """
        frame, failure = self.frame, self.failure
        if frame.phase is Phase.MANUAL:
            self.leftovers("the view marked @auto.manual did not commit it", last=last)
        else:
            commit, reason = decide(success=success, failure=failure)
            if commit:
                self.commit(reason, last=last)
            else:
                if failure is not None and (self.unsaved or failure.error is not None):
                    frame.drops.append(str(failure))
                self.rollback(reason, last=last)
        if success:
            self.tell_drops()
        frame.phase = Phase.DECIDED

    def leftovers(self, why: str, *, last: bool = True) -> None:
        """Roll back what nobody committed, with a warning if something was written."""
        if self.unsaved:
            logger.warning("%s: uncommitted work was dropped: %s", self.frame.name(), why)
        self.rollback(why, last=last)

    def end_cleanly(self, reason: str, *, last: bool = False) -> None:
        """End a unit that has no response to judge it by and raised nothing.

        :param reason: Why, for the log.
        :param last: Whether the session is removed next.
        :raises DoomedError: If a failure in it was swallowed; it is rolled back all the same.
        """
        if self.frame.doom is not None:
            self.rollback(f"doomed: {self.frame.doom}", last=last)
            return
        try:
            self.commit(reason, last=last)
        except DoomedError:
            self.rollback("doomed", last=last)
            raise
        self.tell_drops()

    def remove(self) -> None:
        """Give the session up, and its connection back, whatever state they are in."""
        session, self.session = self.session, None
        self._unguard()
        if session is not None:
            with self._driving():
                session.close()

    @contextmanager
    def _driving(self) -> Iterator[None]:
        before, self.ending = self.ending, True
        try:
            yield
        finally:
            self.ending = before


def _database(connection: Connection) -> str:
    return connection.engine.url.render_as_string(hide_password=True)
