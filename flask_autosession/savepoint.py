"""``auto.savepoint()``: a part of the unit of work that may fail by itself."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import ParamSpec, TypeVar, cast

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from .exc import DoomedError
from .scope import Scope

P = ParamSpec("P")
R = TypeVar("R")
Enter = Callable[[], tuple[Scope, Session]]


@contextmanager
def _savepoint(scope: Scope, session: Session) -> Generator[None]:
    try:
        with session.begin_nested():
            level = scope.unit.level
            yield
            # Here, still inside, so that what fails is undone by this savepoint and no more.
            session.flush()
            failure = scope.unit.failure
            if failure is not None and failure.level >= level:
                raise DoomedError(failure.error, failure.where)
    except DBAPIError as error:
        # After a deadlock MariaDB has no savepoint to roll back to, and says just that. What the
        # caller may want to try again for is the deadlock.
        failure = scope.unit.failure
        if failure is not None and isinstance(failure.error, DBAPIError):
            raise failure.error from error
        raise


class Savepoint(AbstractContextManager[None, None]):
    """A savepoint as a context manager and as a decorator of functions, ``async`` ones too.

    :param enter: Returns the current scope and its session.
    """

    def __init__(self, enter: Enter) -> None:
        self._enter = enter
        self._open: list[ExitStack] = []

    def __enter__(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(_savepoint(*self._enter()))
            self._open.append(stack.pop_all())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._open.pop().__exit__(kind, error, tb)

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
                with Savepoint(self._enter):
                    return cast(R, await function(*args, **kwargs))

            return cast(Callable[P, R], run)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with Savepoint(self._enter):
                return function(*args, **kwargs)

        return call
