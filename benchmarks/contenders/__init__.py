"""Who is measured: applications that answer the same requests, each in a way of its own.

Each module has a function ``make(uri)``, which returns a :class:`Contender`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.workloads import WSGIApp


@dataclass(frozen=True)
class Contender:
    """One application, with its database.

    :param app: What answers the requests.
    :param count: Returns how many items are in the database.
    :param close: Gives everything back.
    """

    app: WSGIApp
    count: Callable[[], int]
    close: Callable[[], None]
