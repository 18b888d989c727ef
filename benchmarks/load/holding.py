"""How long a request holds a connection: all the time between its check-outs and check-ins."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine


class Holding:
    """Stands around an application, and sums what each of its requests holds.

    A request runs in one thread, and gives all of it back before the application returns: Flask
    has torn its context down by then.

    :param engine: The engine whose pool is looked at.
    :param wsgi_app: The application.
    """

    def __init__(self, engine: Engine, wsgi_app: Callable[..., Iterable[bytes]]) -> None:
        self._wsgi_app = wsgi_app
        self._here = threading.local()
        self._held: list[float] = []
        event.listen(engine, "checkout", self._checkout)
        event.listen(engine, "checkin", self._checkin)

    def _checkout(self, connection: Any, record: Any, proxy: Any) -> None:
        if hasattr(self._here, "since"):
            self._here.since[id(record)] = time.perf_counter()

    def _checkin(self, connection: Any, record: Any) -> None:
        since = getattr(self._here, "since", {}).pop(id(record), None)
        if since is not None:
            self._here.held += time.perf_counter() - since

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request."""
        self._here.since, self._here.held = {}, 0.0
        body = self._wsgi_app(environ, start_response)
        if self._here.since:
            raise RuntimeError("a connection was not given back by the end of the request")
        self._held.append(self._here.held)
        return body

    def take(self) -> list[float]:
        """Return what each request has held since this was asked last, in seconds."""
        held, self._held = self._held, []
        return held
