"""Sends requests to both applications, in turns, and prints a table.

Each is served by gunicorn, one worker of 16 threads whose pool has 4 connections, to 16 clients.
"""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import ExitStack

from benchmarks.isolation import SERVERS, database
from benchmarks.load import report
from benchmarks.load.app import DATABASE, POOL, SUBJECT, VIEWS, WHO
from benchmarks.load.client import Round, send
from benchmarks.load.server import Address, serve

Found = dict[tuple[str, str], list[Round]]


def measure(addresses: dict[str, Address], given: argparse.Namespace) -> Found:
    """Send the rounds, in turns, so that what else the machine does falls on each alike."""
    found: Found = {(view, who): [] for view in given.views for who in WHO}
    for view in given.views:
        for address in addresses.values():
            send(address, view, given.requests // 4 or 1, given.threads)  # to warm up
        for number in range(given.rounds):
            # Whoever was second is the first of the next round.
            for who in WHO if number % 2 else reversed(WHO):
                one = send(addresses[who], view, given.requests, given.threads)
                found[view, who].append(one)
    return found


def run(given: argparse.Namespace) -> Found:
    """Make a database and a server for each application; remove them whatever happens."""
    with ExitStack() as stack:
        addresses = {}
        for who in WHO:
            uri = stack.enter_context(database(given.database))
            environment = {SUBJECT: who, DATABASE: uri, POOL: str(given.pool)}
            addresses[who] = stack.enter_context(serve(given.threads, environment))
        return measure(addresses, given)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.load", description=__doc__)
    parser.add_argument("views", nargs="*", choices=[[], *VIEWS], help="all by default")
    parser.add_argument("--database", default="postgresql", choices=["sqlite", *SERVERS])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1600, help="in each round")
    parser.add_argument("--threads", type=int, default=16, help="of the server; as many clients")
    parser.add_argument("--pool", type=int, default=4, help="connections in the server's pool")
    parser.add_argument("--quick", action="store_true", help="a few requests, to try it out")
    given = parser.parse_args(arguments)
    if given.quick:
        given.rounds, given.requests = 2, 2 * given.threads
    given.views = given.views or list(VIEWS)
    return given


def main(arguments: list[str]) -> int:
    """Measure, and print a table."""
    given = _parse(arguments)
    print(report.table(run(given)))
    for view in given.views:
        print(f"\n{view}: {VIEWS[view]}.", end="")
    print()
    return 0


if __name__ == "__main__":
    # A measurement that is told to end leaves no server and no database behind, either.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main(sys.argv[1:]))
