"""Where in the application's own code something happened, for messages and logs."""

from __future__ import annotations

import contextlib
import inspect
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

import sqlalchemy

_SITE_PACKAGES = str(Path(inspect.getfile(sqlalchemy)).parents[1])
_OWN = (str(Path(__file__).parent), inspect.getfile(contextlib), "<")


def caller() -> str:
    """Return the place that called into this library, or into one it stands on.

    :return: ``file:line`` of the innermost frame of the application.
    """
    # It is asked once or twice in each test of an application: a frame costs no call here.
    frame = inspect.currentframe()
    while frame is not None and _kinds[frame.f_code.co_filename] != "application":
        frame = frame.f_back
    return _first(traceback.walk_stack(None) if frame is None else [(frame, frame.f_lineno)])


def raised_at(error: BaseException) -> str:
    """Return the place where an exception was raised, or left the application's code.

    :param error: An exception that has been raised.
    :return: ``file:line`` of the innermost frame of the application in its traceback.
    """
    return _first(reversed(list(traceback.walk_tb(error.__traceback__))))


def _first(places: Iterable[tuple[FrameType, int]]) -> str:
    # What is installed is not what a developer can change. An application that is installed
    # itself still gets a place: the innermost one outside of this package.
    installed = "an unknown place"
    for frame, line in places:
        file = frame.f_code.co_filename
        kind = _kinds[file]
        if kind == "application":
            return f"{file}:{line}"
        if kind == "installed":
            installed = f"{file}:{line}"
    return installed


class _Kinds(dict[str, str]):
    """Whose each file is, as far as anybody has asked."""

    def __missing__(self, file: str) -> str:
        installed = "installed" if file.startswith(_SITE_PACKAGES) else "application"
        self[file] = "own" if file.startswith(_OWN) else installed
        return self[file]


_kinds = _Kinds()
