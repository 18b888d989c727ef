"""What became of units of work in a test, and the functions that waited for their commit."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

from flask import Flask

from flask_autosession.phases import State
from flask_autosession.scope import logger
from flask_autosession.signals import unit_ended
from flask_autosession.state import Frame, Unit

NOT_COMMITTED: str = "AUTOSESSION_COMMIT_CONTEXTS is False"


class EndedUnit(NamedTuple):
    """One unit of work that has ended.

    .. versionadded:: 0.1.0
    """

    committed: bool
    """Whether it was committed; else it was rolled back."""
    reason: str
    """Why."""
    name: str
    """What it belonged to: ``"POST /orders 201"``, ``"app context"``, ``"command import"``."""


@contextmanager
def _receiving(app: Flask, receive: Callable[..., None]) -> Generator[None]:
    with unit_ended.connected_to(receive, sender=app):
        yield


@contextmanager
def record_units(app: Flask) -> Generator[list[EndedUnit]]:
    """Record the units of work that end in a block. Those that were never used are left out.

    :param app: The application.
    :return: The context manager, which gives the list that they are put into.

    .. versionadded:: 0.1.0
    """
    ended: list[EndedUnit] = []

    def note(_: Flask, unit: Unit, frame: Frame, reason: str) -> None:
        ended.append(EndedUnit(unit.outcome is State.COMMITTED, reason, str(frame)))

    with _receiving(app, note):
        yield ended


@contextmanager
def capture_on_commit_callbacks(
    app: Flask, *, run: bool = True
) -> Generator[list[Callable[[], Any]]]:
    """Capture the ``on_commit`` functions of the units of work that are committed in a block.

    The idea is that of Django's ``captureOnCommitCallbacks``.

    :param app: The application.
    :param run: Whether they run as well, where they always do: behind the commit.
    :return: The context manager, which gives the list that they are put into.

    .. versionadded:: 0.1.0
    """
    captured: list[Callable[[], Any]] = []

    def capture(_: Flask, unit: Unit, **__: Any) -> None:
        if unit.outcome is State.COMMITTED:
            captured.extend(unit.on_commit)
            if not run:
                unit.on_commit.clear()

    with _receiving(app, capture):
        yield captured


class Dropped:
    """Warns of work that an app context wrote and dropped, if the test goes on after that.

    :param app: The application.
    """

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._dropped = 0
        self._listening = False

    def session_rolled_back(self) -> None:
        """Listen from now on: the end of the session's unit is not told yet."""
        # Not from the test's beginning: most tests drop nothing, and a signal takes its time.
        if not self._listening:
            self._listening = True
            unit_ended.connect(self._ended, sender=self._app)

    def end(self) -> None:
        """Stop."""
        if self._listening:
            unit_ended.disconnect(self._ended, sender=self._app)

    def _ended(self, _: Flask, unit: Unit, frame: Frame, reason: str) -> None:
        if reason == NOT_COMMITTED and unit.wrote:
            self._dropped += 1

    def session_began(self) -> None:
        """Warn, because somebody looks at the database again."""
        if self._dropped:
            self._dropped = 0
            logger.warning(
                "An app context was left, and what it wrote was dropped: in tests only requests,"
                " commands, tasks and units commit. Make the request inside of the context, or"
                " write 'with auto.unit():' in place of 'with app.app_context():'."
            )
