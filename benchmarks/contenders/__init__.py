"""Who is measured: applications that answer the same requests, each in a way of its own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.workloads import WSGIApp


def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Contender:
    """One application, with its database.

    :param app: What answers the requests.
    :param count: Returns how many items are in the database.
    :param close: Gives everything back.
    :param enter: Called before it is sent requests: puts in place what its framework has only once
        in a process.
    """

    app: WSGIApp
    count: Callable[[], int]
    close: Callable[[], None]
    enter: Callable[[], None] = _nothing


@dataclass(frozen=True)
class Entry:
    """What is known of a contender before it is made.

    :param title: Its column's heading.
    :param place: The module and the function that make it, the latter taking a database's URI.
        Imported when used, so that only what takes part need be installed.
    :param base: The explicit form it is held against; empty for those forms themselves.
    """

    title: str
    place: str
    base: str = ""

    def make(self, uri: str) -> Contender:
        """Make it."""
        module, _, function = self.place.partition(":")
        made: Contender = getattr(
            importlib.import_module(f"benchmarks.contenders.{module}"), function
        )(uri)
        return made


CONTENDERS = {
    "flask_by_hand": Entry("Flask-SQLAlchemy", "flask_by_hand:make"),
    "ours": Entry("Flask-AutoSession", "ours:make", "flask_by_hand"),
    "flask_naive": Entry("`after_request` commit", "flask_naive:make", "flask_by_hand"),
    "advanced_alchemy_by_hand": Entry(
        "Advanced Alchemy, manual", "advanced_alchemy_flask:make_by_hand"
    ),
    "advanced_alchemy": Entry(
        "Advanced Alchemy, autocommit", "advanced_alchemy_flask:make", "advanced_alchemy_by_hand"
    ),
    "pyramid_by_hand": Entry("Pyramid", "pyramid_sqlalchemy:make_by_hand"),
    "pyramid_tm": Entry("pyramid_tm", "pyramid_sqlalchemy:make", "pyramid_by_hand"),
    "django_by_hand": Entry("Django, `atomic()`", "django_orm:make_by_hand"),
    "django_atomic": Entry("Django, `ATOMIC_REQUESTS`", "django_orm:make", "django_by_hand"),
}
"""All of them. An explicit form stands right before those that are held against it, so that they
take turns side by side."""


def with_their_bases(names: list[str]) -> list[str]:
    """Return the names, and those of their explicit forms, in the order of all."""
    wanted = {*names, *(CONTENDERS[name].base for name in names)}
    return [name for name in CONTENDERS if name in wanted]
