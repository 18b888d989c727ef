"""The clients of the load test: what they may rely on, and what each of them was told."""

from __future__ import annotations

import http.client
import json
import random
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

Address = tuple[str, int]
TAKEN = "taken"
"""The name of a row that is there before the first request."""


@dataclass(frozen=True)
class Promise:
    """What one kind of request promises.

    :param status: The status that its clients are told.
    :param rows: The parts of it that are in the database once it was carried out.
    :param warned: Whether work is thrown away though the status says success, so that the log
        has to say so.
    """

    status: int
    rows: str = ""
    warned: bool = False


KINDS = {
    "saved": Promise(201, "a"),
    "several": Promise(201, "abc"),
    "pending": Promise(201, "ab"),
    "core": Promise(201, "ab"),
    "changed": Promise(200, "b"),
    "family": Promise(201, "ab"),
    "redirected": Promise(302, "a"),
    "before": Promise(201, "ab"),
    "looked_back": Promise(201, "a"),
    "refused": Promise(422),
    "aborted": Promise(409),
    "raised": Promise(500),
    "before_refused": Promise(400),
    "vetoed": Promise(503),
    "rejected": Promise(409),
    "late": Promise(409),
    "orphan": Promise(409),
    # The handler's own row: an answer of 200 is about that, not about what the view did.
    "rendered": Promise(200, "c", warned=True),
    "swallowed": Promise(200, warned=True),
    "swallowed_core": Promise(200, warned=True),
    "doomed": Promise(200, warned=True),
    "undone": Promise(200, "b", warned=True),
    "savepoint": Promise(201, "ac"),
    "savepoint_refused": Promise(400),
    "explicit": Promise(201, "ab"),
    # Told "failed", but for what was committed explicitly.
    "explicit_refused": Promise(400, "a"),
    "own_unit": Promise(400, "a"),
    "audited": Promise(201, "ab"),
    "audited_refused": Promise(403, "c"),
    "audited_raised": Promise(500, "c"),
    "read": Promise(200),
    "unused": Promise(204),
}

LEAVES = ("half sent", "at once", "unread")
"""How a client goes away: before its request is whole, right behind it, when the answer comes."""


@dataclass
class Request:
    """One request, and what its client was told: a status, or nothing."""

    kind: str
    marker: str
    leaves: str | None = None
    told: int | None = None

    @property
    def path(self) -> str:
        return f"/{self.kind}/{self.marker}"

    @property
    def promise(self) -> Promise:
        return KINDS[self.kind]


def plan(count: int, kinds: list[str]) -> list[Request]:
    """Make up requests of these kinds, some of whose clients go away; in a mixed order."""
    ways = len(LEAVES)
    requests = [
        Request(
            kinds[number % len(kinds)],
            f"m{number:06}",
            LEAVES[number // 11 % ways] if number % 11 == 0 else None,
        )
        for number in range(count)
    ]
    random.Random(2).shuffle(requests)
    return requests


def send(address: Address, requests: list[Request], *, clients: int, seconds: float) -> None:
    """Send requests from many clients at once, and note in each what its client was told.

    :raises TimeoutError: If it takes longer than that many seconds.
    """
    waiting = deque(requests)
    deadline = time.monotonic() + seconds

    def client(_: int) -> None:
        with closing(http.client.HTTPConnection(*address, timeout=60)) as connection:
            while waiting:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{len(waiting)} requests are left after {seconds} s")
                try:
                    request = waiting.popleft()
                except IndexError:
                    return
                if request.leaves is None:
                    request.told = _ask(connection, request)
                else:
                    _leave(address, request)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))


def _ask(connection: http.client.HTTPConnection, request: Request) -> int | None:
    try:
        connection.request("POST", request.path)
        response = connection.getresponse()
        response.read()
        return response.status
    except (ConnectionError, http.client.HTTPException):
        connection.close()  # told nothing; the next request opens it again
        return None


def _leave(address: Address, request: Request) -> None:
    message = f"POST {request.path} HTTP/1.1\r\nHost: load\r\nContent-Length: 0\r\n\r\n".encode()
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(message[:-2] if request.leaves == "half sent" else message)
        if request.leaves == "unread":
            select.select([connection], [], [], 60)
            # No polite goodbye either: the server's next word meets a reset connection.
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def ask_state(address: Address) -> dict[str, Any]:
    """Ask one of the server's processes, whichever answers, what it holds."""
    with closing(http.client.HTTPConnection(*address, timeout=60)) as connection:
        connection.request("GET", "/state")
        state: dict[str, Any] = json.loads(connection.getresponse().read())
        return state


def ask_every_process(address: Address, processes: int) -> list[dict[str, Any]]:
    """Ask all of the server's processes what they hold.

    :raises TimeoutError: If one of them does not answer within a minute.
    """
    found: dict[int, dict[str, Any]] = {}
    deadline = time.monotonic() + 60
    with ThreadPoolExecutor(8) as pool:
        while len(found) < processes:
            if time.monotonic() > deadline:
                raise TimeoutError(f"only {len(found)} of {processes} processes answer")
            states = pool.map(ask_state, [address] * 8)
            found.update((state["pid"], state) for state in states)
    return list(found.values())


def differences(requests: list[Request], names: list[str]) -> Iterator[str]:
    """Compare what clients were told with what the database holds.

    :param requests: All requests that were sent.
    :param names: The names of all rows.
    """
    held: dict[str, list[str]] = {request.marker: [] for request in requests}
    for name in names:
        marker, _, part = name.partition(":")
        if name != TAKEN:
            held.setdefault(marker, []).append(part)
    for request in requests:
        rows = "".join(sorted(held.pop(request.marker)))
        promised = request.promise
        if request.told is None:
            good = rows in ("", promised.rows)
        else:
            good = (request.told, rows) == (promised.status, promised.rows)
        if not good:
            yield f"{request}: {promised}, but the database holds {rows!r}"
    for marker, parts in held.items():
        yield f"{parts} of {marker}, that nobody has sent"
