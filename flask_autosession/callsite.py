"""Where in the application's own code something happened, for messages and logs."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType

import sqlalchemy

_SITE_PACKAGES = str(Path(inspect.getfile(sqlalchemy)).parents[1])
_OWN = (str(Path(__file__).parent), inspect.getfile(contextlib), "<")


def caller() -> str:
    """Return the place that called into this library, or into one it stands on.

    :return: ``file:line`` of the innermost frame of the application.
    """
    return _first(_stack())


def raised_at(error: BaseException) -> str:
    """Return the place where an exception was raised, or left the application's code.

    :param error: An exception that has been raised.
    :return: ``file:line`` of the innermost frame of the application in its traceback.
    """
    return _first(reversed(list(_traceback(error))))


def _stack() -> Iterator[tuple[CodeType, int]]:
    frame = inspect.currentframe()
    while frame is not None:
        yield frame.f_code, frame.f_lineno
        frame = frame.f_back


def _traceback(error: BaseException) -> Iterator[tuple[CodeType, int]]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame.f_code, traceback.tb_lineno
        traceback = traceback.tb_next


def _first(places: Iterable[tuple[CodeType, int]]) -> str:
    # What is installed is not what a developer can change. An application that is installed
    # itself still gets a place: the innermost one outside of this package.
    installed = "an unknown place"
    for code, line in places:
        place = f"{code.co_filename}:{line}"
        if code.co_filename.startswith(_OWN):
            continue
        if not code.co_filename.startswith(_SITE_PACKAGES):
            return place
        installed = place
    return installed
