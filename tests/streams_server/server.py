"""Starts the application on a real server, and talks to it over bare sockets."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.load.client import Address, ask_state
from tests.load.test_load import end, wait_until_ready

from .app import DATABASE

ROOT = Path(__file__).parents[2]
END = b"0\r\n\r\n"
"""The chunk that tells the client that it has seen the whole body."""
SERVERS: dict[str, Callable[[int], list[str]]] = {
    "gunicorn": lambda fd: [
        *("gunicorn", "tests.streams_server.app:create_app()", f"--bind=fd://{fd}"),
        *("--worker-class=gthread", "--threads=4", "--graceful-timeout=1"),
    ],
    "werkzeug": lambda fd: ["tests.streams_server.app", str(fd)],
}


@dataclass
class Server:
    """A server that runs."""

    address: Address
    _log: Path

    def warnings(self, marker: str) -> list[str]:
        """What our logger has warned of in the requests with a marker."""
        lines = self._log.read_text().splitlines()
        return [
            line
            for line in lines
            if line.startswith("WARNING flask_autosession") and f"/{marker} " in line
        ]

    def state(self) -> dict[str, Any]:
        return ask_state(self.address)

    @contextmanager
    def get(self, path: str) -> Iterator[socket.socket]:
        """Ask for a page; when the block is left the client goes away without a goodbye."""
        with socket.create_connection(self.address, timeout=30) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: streams\r\n\r\n".encode())
            yield client
            linger = struct.pack("ii", 1, 0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def read(client: socket.socket, until: bytes | None = None) -> bytes:
    """Read until something has come, or until the server has closed the connection."""
    received = b""
    while until is None or until not in received:
        data = client.recv(65536)
        if not data:
            break
        received += data
    return received


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait, for at most 20 seconds, until something is true; return whether it is."""
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@contextmanager
def serve(kind: str, uri: str, folder: Path) -> Iterator[Server]:
    """Run a server on a free port; show its log if anything fails, and end it in any case."""
    log = folder / "server.log"
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("wb") as output:
        address = listener.getsockname()
        process = subprocess.Popen(
            [sys.executable, "-m", *SERVERS[kind](listener.fileno())],
            cwd=ROOT,
            # XDG_RUNTIME_DIR is where newer releases of gunicorn put a socket for its control.
            env=os.environ
            | {DATABASE: uri, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(folder)},
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until_ready(process, address)
        yield Server(address, log)
    except BaseException:
        print(f"The server's log:\n{log.read_text()[-9000:]}")
        raise
    finally:
        end(process)
