"""One app context: what goes on in it, and what therefore ends its units of work, and how."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable

from flask import Flask
from sqlalchemy.orm import Session

from .callsite import caller, raised_at
from .config import Settings
from .exc import ExplicitCommitError
from .phases import COMMITTED, DECIDED, IN_REQUEST, MANUAL, REQUEST, ROLLED_BACK, SHELL, Phase
from .signals import unit_committed, unit_ended, unit_rolled_back
from .state import Callback, Failure, Frame, Unit, app_context, decide
from .unit import UnitOfWork

logger: logging.Logger = logging.getLogger("flask_autosession")


class Scope(UnitOfWork):
    """The session and the units of work of one app context.

    :param app: The application that the context belongs to.
    :param settings: Its configuration.
    :param warned: The call sites that were warned of already; shared by the app's scopes.
    :param frame: What it begins with.
    """

    owner: object = None
    """The AutoSession that it belongs to."""
    of_request: bool = False
    """Whether the context was made for a request, which decides for it even when it is over."""
    paused: bool = False
    """Whether a stream is to go on in this context after it was torn down."""
    _draining: bool = False

    def __init__(self, app: Flask, settings: Settings, warned: set[str], frame: Frame) -> None:
        super().__init__()
        self.app: Flask = app
        self.settings: Settings = settings
        self.frame: Frame = frame
        """The innermost request, callback or context."""
        self.blocks: list[object] = []
        """The blocks of ``auto.savepoint()`` that are open, innermost last."""
        self._warned = warned
        self._queue: deque[tuple[Callback, str]] = deque()

    def leave(self, frame: Frame) -> None:
        """Go back to what a frame stands inside of; nothing more is decided in its own context."""
        self.frame = frame.outer or Frame(app_context, DECIDED)

    @property
    def failure(self) -> Failure | None:
        """What dooms the unit, if anything."""
        return self.frame.doom or super().failure

    # What follows an end

    def ended(self, unit: Unit, reason: str) -> None:
        """Tell of the end of a unit, and run its callbacks."""
        if unit_ended.receivers:
            unit_ended.send(self.app, unit=unit, frame=self.frame, reason=reason)
        committed = unit.outcome is COMMITTED
        logger.debug("%s: %s (%s)", self.frame, unit.outcome, reason)
        kind = "on_commit" if committed else "on_rollback"
        signal = unit_committed if committed else unit_rolled_back
        if signal.receivers and signal.has_receivers_for(self.app) and not self.frame.receiving:
            send = functools.partial(signal.send, self.app)
            if not committed:
                send = functools.partial(send, reason=reason)
            self._queue.append((send, signal.name.replace("-", "_")))
        callbacks = unit.on_commit if committed else unit.on_rollback
        if callbacks:
            self._queue.extend((callback, kind) for callback in callbacks)
        if self._queue:
            self._drain()

    def _drain(self) -> None:
        # What a callback registers itself is appended, so that it runs behind those that wait.
        if self._draining:
            return
        self._draining = True
        queue = self._queue
        try:
            while queue:
                self._call(*queue.popleft())
        finally:
            self._draining = False
            if queue:
                logger.error("%d callbacks were not run: one was killed", len(queue))
                queue.clear()

    def _call(self, callback: Callback, kind: str) -> None:
        name = f"{kind} {getattr(callback, '__qualname__', type(callback).__name__)}"
        frame = Frame(lambda: name, Phase.CALLBACK, outer=self.frame)
        frame.receiving = kind.startswith("unit_")
        self.frame = frame
        try:
            self.app.ensure_sync(callback)()
            self.end_cleanly("it returned")
        except BaseException as error:
            self.rollback(f"{type(error).__name__} in a callback")
            if not isinstance(error, Exception):
                raise
            logger.exception("%s failed; its own work was rolled back", name)
        finally:
            self.leave(frame)

    # What the application does explicitly

    def lift(self, session: Session, failure: Failure) -> None:
        """Note that a savepoint's rollback has undone a failure; warn if nobody was told."""
        super().lift(session, failure)
        if failure.silent:
            # SQLAlchemy ends the block of a savepoint in which a flush has failed without a word.
            self.frame.drops += (str(failure),)

    def explicit_commit(self, session: Session) -> None:
        """Do what ``db.session.commit()`` means here. See ``AUTOSESSION_EXPLICIT_COMMIT``.

        :param session: The session of this scope.
        :raises ExplicitCommitError: In a request, under ``forbid``.
        :raises DoomedError: If the unit is doomed.
        """
        in_request = self.frame.phase in IN_REQUEST
        policy = self.settings.explicit_commit if in_request else "allow"
        if policy == "forbid":
            raise ExplicitCommitError(caller())
        if policy == "flush" or self.frame.doom is not None:
            # Under auto.doom() nothing is to be kept, whatever follows, a library's commit too.
            self.refuse_doomed(self.unit.failure)
            session.flush()
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
        # Only a response can say success over work that was dropped by choice.
        if self.unsaved and self.frame.phase in IN_REQUEST | {DECIDED}:
            self._drop(f"{how} was called at {caller()}")
            if self.frame.phase is DECIDED:
                self._tell_drops()
        if self.frame.phase is SHELL:
            self.frame.doom = None  # there is no end before which it could be lifted
        with self.driving():
            end()
        self._finish(ROLLED_BACK, f"explicit {how}")

    # What the life of requests and contexts says

    def _drop(self, what: str, error: BaseException | None = None) -> None:
        failure = self.unit.failure
        if failure is not None and failure.error is not error:
            what = f"{what} ({failure} came first)"
        self.frame.drops += (what,)

    def _tell_drops(self) -> None:
        for drop in self.frame.drops:
            logger.warning("%s: work was thrown away: %s", str(self.frame), drop)
        self.frame.drops = ()

    def raised(self, error: BaseException) -> None:
        """Roll back because an exception has left the application's code."""
        self.frame.errored = True
        if self.frame.phase is MANUAL:
            self.frame.phase = REQUEST  # what an error handler does is judged as ever
        what = f"{type(error).__name__} at {raised_at(error)}"
        if self.unsaved:
            self._drop(what, error)
        self.rollback(what)

    def flush(self) -> None:
        """Write what is pending, where the end will decide about it."""
        session = self.session
        if session is not None and self.frame.phase is REQUEST and self.failure is None:
            session.flush()

    def conclude(self, success: bool, *, last: bool) -> None:
        """End a request's unit as its response says.

        Where that was done already, what came after it is dropped.

        :param success: Whether the response says success.
        :param last: Whether the session is removed next.
        :raises Exception: What prevented the commit; the unit is rolled back then.
        """
        frame, failure = self.frame, self.failure
        if frame.phase is DECIDED:
            self.leftovers("it was written after the response was decided", last=last)
        elif frame.phase is MANUAL:
            self.leftovers("the view marked @auto.manual did not commit it", last=last)
        else:
            commit, reason = decide(success=success, failure=failure)
            if commit:
                self._commit(reason, last)
            else:
                if failure is not None and (self.unsaved or failure.error is not None):
                    frame.drops += (str(failure),)
                elif failure is None and self.unsaved:
                    frame.drops += (f"the response was {frame.status} at first",)
                self.rollback(reason, last=last)
        if success and frame.drops:
            self._tell_drops()
        frame.phase = DECIDED

    def leftovers(self, why: str, *, last: bool = True) -> None:
        """Roll back what nobody committed, with a warning if something was to follow from it."""
        session = self.session
        if not self.unit.used and (session is None or not session.in_transaction()):
            return
        if self.unsaved or self.unit.on_commit:
            logger.warning("%s: uncommitted work was dropped: %s", str(self.frame), why)
        self.rollback(why, last=last)

    def end_cleanly(self, reason: str, *, last: bool = False) -> None:
        """End a unit that has no response to judge it by and raised nothing.

        :param reason: Why, for the log.
        :param last: Whether the session is removed next.
        :raises Exception: What prevented the commit, :exc:`DoomedError` if that was a failure that
            the application swallowed; the unit is rolled back then.
        """
        if self.frame.doom is not None:
            self.rollback(f"doomed: {self.frame.doom}", last=last)
            return
        try:
            self.commit(reason, last=last)
        except BaseException as error:
            self.raised(error)
            raise
        self._tell_drops()
