"""Mixed requests to real servers; what the clients were told is what the database holds."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.world import Database

from .app import DATABASE
from .client import (
    KINDS,
    TAKEN,
    Address,
    Request,
    ask_every_process,
    ask_state,
    differences,
    plan,
    send,
)

pytestmark = pytest.mark.load


@dataclass(frozen=True)
class Server:
    """A database, a kind of gunicorn's workers, and how many of them."""

    database: str
    worker: str
    processes: int

    @property
    def kinds(self) -> list[str]:
        """The kinds of requests; MariaDB knows no foreign keys that are deferred to the COMMIT."""
        return [kind for kind in KINDS if (self.database, kind) != ("mariadb", "orphan")]

    def __str__(self) -> str:
        return f"{self.database}-{self.worker}"


SERVERS = [
    Server("postgresql", "gthread", 2),
    Server("postgresql", "gevent", 1),
    Server("sqlite", "gthread", 2),
    Server("mariadb", "gthread", 1),
]
REQUESTS = int(os.environ.get("AUTOSESSION_LOAD_REQUESTS", "800"))
CLIENTS = 16
ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """What came of the requests to one server."""

    requests: list[Request]
    names: list[str]
    states: list[dict[str, Any]]
    log: str

    def refuse(self, problems: list[str]) -> None:
        """Fail, with the server's log, if there is a problem."""
        if problems:
            shown = "\n".join(problems[:20])
            pytest.fail(
                f"{len(problems)} problems:\n{shown}\nThe server's log:\n{self.log[-9000:]}"
            )


@pytest.fixture(scope="module", params=SERVERS, ids=str)
def outcome(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Outcome]:
    """Serve the application, send it its share of the requests, and look at what is left."""
    server: Server = request.param
    folder = tmp_path_factory.mktemp("load")
    if server.database == "sqlite":
        uri = f"sqlite:///{folder / 'load.db'}"
    else:
        uri = request.getfixturevalue(f"{server.database}_uri")
    database = Database(server.database, uri)
    database.create()
    try:
        database.insert(TAKEN)
        requests = plan(-(-REQUESTS // len(SERVERS)), server.kinds)
        with serve(server, uri, folder) as address:
            send(address, requests, clients=CLIENTS, seconds=60 + len(requests) / 20)
            whole = sum(sent.leaves != "half sent" for sent in requests)
            states = idle(address, server.processes, whole)
        yield Outcome(requests, database.names, states, (folder / "server.log").read_text())
    finally:
        database.drop()


@contextmanager
def serve(server: Server, uri: str, folder: Path) -> Iterator[Address]:
    """Run gunicorn on a free port; show its log if anything fails, and end it in any case."""
    log = folder / "server.log"
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener, log.open("wb") as output:
        address = listener.getsockname()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "tests.load.app:create_app()"),
                *(f"--bind=fd://{listener.fileno()}", f"--worker-class={server.worker}"),
                *(f"--workers={server.processes}", "--threads=8", "--keep-alive=60"),
                "--graceful-timeout=5",
            ],
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
        yield address
    except BaseException:
        print(f"The server's log:\n{log.read_text()[-9000:]}")
        raise
    finally:
        end(process)


def wait_until_ready(process: subprocess.Popen[bytes], address: Address) -> None:
    """Wait for the server's first answer, for at most a minute."""
    deadline = time.monotonic() + 60
    while True:
        try:
            ask_state(address)
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server does not answer") from error
            time.sleep(0.05)


def end(process: subprocess.Popen[bytes]) -> None:
    """End the server and every process that it has started."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def idle(address: Address, processes: int, sent: int) -> list[dict[str, Any]]:
    """Wait, for at most a minute, until every request that was sent has been carried out."""
    deadline = time.monotonic() + 60
    while True:
        states = ask_every_process(address, processes)
        served = sum(state["served"] for state in states)
        if served == sent and not any(state["in_flight"] for state in states):
            return states
        if time.monotonic() > deadline:
            raise TimeoutError(f"{sent} requests were sent, but this is what happened: {states}")


def test_what_clients_were_told_is_what_the_database_holds(outcome: Outcome) -> None:
    """Told done, all of it is there; told failed, none; told nothing, all or none, never half."""
    outcome.refuse(list(differences(outcome.requests, outcome.names)))


def test_every_client_that_waits_is_answered(outcome: Outcome) -> None:
    """Only clients that go away are told nothing."""
    mute = [sent for sent in outcome.requests if sent.told is None]
    outcome.refuse([f"{sent} got no answer" for sent in mute if sent.leaves is None])


def test_work_lost_behind_a_success_is_in_the_log(outcome: Outcome) -> None:
    """A request that says success but throws work away is warned of, and no other request is."""
    warned = set(
        re.findall(r"^WARNING flask_autosession POST (/\w+/\w+)", outcome.log, re.MULTILINE)
    )
    problems = [
        f"{sent}: {'warned' if sent.path in warned else 'not warned'} of"
        for sent in outcome.requests
        if sent.leaves != "half sent" and (sent.path in warned) != sent.promise.warned
    ]
    outcome.refuse(problems)


def test_nothing_is_left_in_the_server(outcome: Outcome) -> None:
    """When all is answered, no session is alive and no connection is checked out, nor ever was."""
    held = ("sessions", "checked_out", "kept")
    outcome.refuse([f"{state}" for state in outcome.states if any(state[key] for key in held)])
