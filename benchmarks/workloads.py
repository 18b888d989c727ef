"""What is measured: the requests that every contender answers, and how they are sent."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

ROWS = 1000
"""How many items there are from the beginning."""
WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass(frozen=True)
class Workload:
    """One kind of request.

    :param status: What must be answered.
    :param kept: How many rows each request must leave behind.
    :param repeat: How many requests are counted at a time.
    """

    name: str
    what: str
    method: str
    status: int
    kept: int
    repeat: int


WORKLOADS = (
    Workload("ok", "no database", "GET", 200, 0, 100),
    Workload("read", "one row by primary key", "GET", 200, 0, 100),
    Workload("insert", "one row", "POST", 201, 1, 100),
    Workload("insert_id", "one row, its id is in the response", "POST", 201, 1, 100),
    Workload("many", "1,000 rows read, gone when the view returns", "GET", 200, 0, 5),
    Workload("held", "1,000 rows read, alive until the end", "GET", 200, 0, 5),
    Workload("conflict", "one row, then 409", "POST", 409, 0, 100),
)


class Visitor:
    """Sends one kind of request to a WSGI application, as a server would.

    :param app: The application, which answers at ``/NAME``.
    :param workload: What to ask for.
    """

    def __init__(self, app: WSGIApp, workload: Workload) -> None:
        self._app = app
        self._expected = workload.status
        self._input = io.BytesIO()
        self._environ = {
            "REQUEST_METHOD": workload.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": f"/{workload.name}",
            "QUERY_STRING": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "localhost",
            "CONTENT_LENGTH": "0",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": self._input,
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": False,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        self._status = ""

    def _start_response(self, status: str, headers: Any, exc_info: Any = None) -> None:
        self._status = status

    def __call__(self) -> bytes:
        """Send one request, and return the body of its response.

        :raises RuntimeError: If the status is not the one that was expected.
        """
        body = self._app(self._environ.copy(), self._start_response)
        try:
            content = b"".join(body)
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()
        if int(self._status[:3]) != self._expected:
            raise RuntimeError(f"{self._environ['PATH_INFO']} answered {self._status}: {content!r}")
        return content
