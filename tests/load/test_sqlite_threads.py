"""Many threads write to one SQLite file at the same time, with nothing configured."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy.exc import OperationalError
from werkzeug.serving import make_server

from tests.world import Database, World

THREADS = 8
REQUESTS = 400


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An application on a database file, whose one view reads before it writes."""
    database = Database("sqlite", f"sqlite:///{tmp_path / 'threads.db'}")
    database.create()
    world = World(database)

    @world.app.post("/<name>")
    def read_then_write(name: str) -> str:
        world.Thing.query.filter_by(name=name).count()
        world.Thing(name=name).save()
        return "done"

    @world.app.errorhandler(OperationalError)
    def say_it(error: OperationalError) -> str:
        return str(error.orig)

    yield world
    world.close()
    database.drop()


@contextmanager
def served(app: Flask) -> Iterator[int]:
    """Serve an application from threads of this process; yield the port."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_no_request_of_many_threads_meets_a_locked_database(world: World) -> None:
    """Eight threads of requests that read and then write: not one "database is locked"."""

    def ask(name: str) -> str:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request("POST", f"/{name}")
            return connection.getresponse().read().decode()

    names = [f"n{number:03}" for number in range(REQUESTS)]
    with served(world.app) as port, ThreadPoolExecutor(THREADS) as pool:
        answers = Counter(pool.map(ask, names))
    assert answers == {"done": REQUESTS}
    assert sorted(world.database.names) == names
