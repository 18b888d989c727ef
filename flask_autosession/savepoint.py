"""``auto.savepoint()``: a part of the unit of work that may fail by itself."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import ParamSpec, TypeVar, cast

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from .exc import DoomedError, NoUnitError
from .scope import Scope

P = ParamSpec("P")
R = TypeVar("R")
Enter = Callable[[], tuple[Scope, Session]]


class _Block:
    """One savepoint that is open."""

    def __init__(self, owner: Savepoint, scope: Scope, session: Session) -> None:
        self.owner = owner
        self._scope = scope
        self._session = session
        self._transaction: SessionTransaction = session.begin_nested()
        self._transaction.__enter__()
        self._level = scope.unit.level

    def leave(self, error: BaseException | None) -> None:
        try:
            self._leave(error)
        except DBAPIError as failed:
            # After a deadlock MariaDB has no savepoint to roll back to, and says just that. What
            # the caller may want to try again for is the deadlock.
            first = self._scope.unit.failure
            if first is not None and isinstance(first.error, DBAPIError):
                raise first.error from failed
            raise

    def _leave(self, error: BaseException | None) -> None:
        if error is not None and not self._scope.settings.is_control_flow(error):
            self._transaction.__exit__(type(error), error, error.__traceback__)
            return
        try:
            # Here, still inside, so that what fails is undone by this savepoint and no more.
            self._session.flush()
            failure = self._scope.unit.failure
            if failure is not None and failure.level >= self._level:
                raise DoomedError(failure.error, failure.where)
            if failure is None:
                self._scope.refuse_doomed(self._scope.aborted())
        except BaseException as failed:
            self._transaction.__exit__(type(failed), failed, failed.__traceback__)
            raise
        self._transaction.__exit__(None, None, None)


class Savepoint(AbstractContextManager[None, None]):
    """A savepoint as a context manager and as a decorator of functions, ``async`` ones too.

    :param enter: Returns the current scope and its session.
    """

    def __init__(self, enter: Enter) -> None:
        self._enter = enter

    def __enter__(self) -> None:
        scope, session = self._enter()
        scope.blocks.append(_Block(self, scope, session))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # On the scope and not on this object, which several threads may share.
        blocks = self._enter()[0].blocks
        if not blocks or cast(_Block, blocks[-1]).owner is not self:
            raise NoUnitError("The end of auto.savepoint()")
        cast(_Block, blocks.pop()).leave(error)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function: each call runs in a savepoint of its own.

        :param function: A function, or an ``async`` function.
        :return: The decorated function.
        :raises TypeError: If it is a generator function: its body runs after the call.
        """
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"auto.savepoint() cannot decorate the generator function {function.__qualname__}:"
                " its body runs after the call has returned. Use 'with auto.savepoint():' in it."
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run(*args: P.args, **kwargs: P.kwargs) -> R:
                with self:
                    return cast(R, await function(*args, **kwargs))

            return cast(Callable[P, R], run)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with self:
                return function(*args, **kwargs)

        return call
