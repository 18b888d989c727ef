"""Sends requests over connections that stay open, and notes how long each has taken."""

from __future__ import annotations

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from threading import Barrier

from benchmarks.load.server import Address

TIMEOUT = 60.0
"""How long, in seconds, one response may take."""


@dataclass
class Round:
    """What one round of requests has shown, in seconds.

    :param seconds: How long all of it has taken.
    :param latencies: How long each request has taken.
    :param held: How long each request has held a connection.
    """

    seconds: float
    latencies: list[float] = field(repr=False)
    held: list[float] = field(repr=False)

    @property
    def throughput(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds


def send(address: Address, view: str, requests: int, clients: int) -> Round:
    """Send that many requests from as many clients at once, each on a connection of its own.

    :raises RuntimeError: If one is answered with an error.
    """
    _held(address)
    ready = Barrier(clients + 1, timeout=TIMEOUT)
    counts = [requests // clients + (number < requests % clients) for number in range(clients)]
    with ThreadPoolExecutor(clients) as pool:
        working = [pool.submit(_client, address, view, count, ready) for count in counts]
        ready.wait()
        start = time.perf_counter()
        latencies = [latency for one in working for latency in one.result()]
        seconds = time.perf_counter() - start
    held = _held(address)
    if len(held) < requests:
        raise RuntimeError(f"the server has seen {len(held)} requests of {requests}")
    return Round(seconds, latencies, held[-requests:])


def _client(address: Address, view: str, requests: int, ready: Barrier) -> list[float]:
    method, latencies = "GET" if view == "read" else "POST", []
    with closing(http.client.HTTPConnection(*address, timeout=TIMEOUT)) as connection:
        connection.connect()
        ready.wait()
        for _ in range(requests):
            start = time.perf_counter()
            connection.request(method, f"/{view}")
            response = connection.getresponse()
            content = response.read()
            latencies.append(time.perf_counter() - start)
            if response.status >= 400:
                raise RuntimeError(f"{view} answered {response.status}: {content[:200]!r}")
    return latencies


def _held(address: Address) -> list[float]:
    with closing(http.client.HTTPConnection(*address, timeout=TIMEOUT)) as connection:
        connection.request("GET", "/held")
        held: list[float] = json.loads(connection.getresponse().read())
        return held
