"""Handlers of Flask-SocketIO and flask-sock, and threads: row 23, and what happens without it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import werkzeug.serving
from sqlalchemy.exc import IntegrityError

from flask_autosession import DoomedError
from tests.world import World

LOGGER = "flask_autosession"


@pytest.fixture(autouse=True)
def debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger=LOGGER)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of our logger, and whatever is worse."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == LOGGER and record.levelno >= logging.WARNING
    ]


def checked_out(world: World) -> int:
    """How many connections are not in the pool."""
    with world.app.app_context():
        return int(world.db.engine.pool.checkedout())


# Threads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["unit", "app_context"])
def test_rows_21_to_23_threads(world: World, block: str) -> None:
    """Each thread's context is a unit of its own: committed if it is left cleanly, else not."""
    enter = world.auto.unit if block == "unit" else world.app.app_context

    def work(number: int) -> bool:
        try:
            with enter():
                world.db.session.add(world.Thing(name=str(number)))
                if number % 3 == 0:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            return False
        return str(number) in world.database.names

    with ThreadPoolExecutor(4) as pool:
        kept = list(pool.map(work, range(12)))
    assert kept == [number % 3 != 0 for number in range(12)]
    assert sorted(map(int, world.database.names)) == [n for n in range(12) if n % 3]
    assert checked_out(world) == 0


# Flask-SocketIO ---------------------------------------------------------------------------------


@pytest.fixture
def socketio(world: World) -> Any:
    """A socket server with handlers that use a unit, and one that forgot it."""
    package = pytest.importorskip("flask_socketio", reason="Flask-SocketIO is not installed")
    world.app.config["SECRET_KEY"] = "of the tests"
    server = package.SocketIO(world.app, async_mode="threading")
    Thing, auto = world.Thing, world.auto

    @server.on("unit")
    def unit(name: str, fails: bool) -> list[str]:
        with auto.unit():
            Thing(name=name).save()
            if fails:
                raise ZeroDivisionError
        return world.database.names

    @server.on("bare")
    def bare(name: str) -> str:
        Thing(name=name).save()
        return "done"

    @server.on("bare commit")
    def bare_commit(name: str) -> None:
        Thing(name=name).save()
        auto.commit()

    @server.on("read")
    def read() -> int:
        return int(Thing.query.count())

    @server.on("swallow")
    def swallow(name: str) -> None:
        with auto.unit():
            Thing(name=name).save()
            with suppress(IntegrityError):
                Thing(name=name).save()

    return server


@pytest.fixture
def client(world: World, socketio: Any) -> Iterator[Any]:
    client = socketio.test_client(world.app)
    yield client
    client.disconnect()


def test_row_23_a_handler_with_a_unit(
    world: World, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Its work is durable before the client gets its answer, and rolled back if it raises."""
    assert client.emit("unit", "a", False, callback=True) == ["a"]
    with pytest.raises(ZeroDivisionError):
        client.emit("unit", "b", True)
    assert client.emit("unit", "c", False, callback=True) == ["a", "c"]
    assert client.emit("read", callback=True) == 2
    assert (world.database.names, checked_out(world)) == (["a", "c"], 0)
    assert warnings(caplog) == []


def test_row_23_a_handler_that_swallows_a_failure(world: World, client: Any) -> None:
    """A unit whose failure the handler swallowed raises, and keeps nothing."""
    with pytest.raises(DoomedError):
        client.emit("swallow", "a")
    assert (world.database.names, checked_out(world)) == ([], 0)


def test_row_33_a_handler_without_a_unit(
    world: World, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Its work is dropped, with a warning that names auto.unit(); the next handler is not hurt."""
    assert client.emit("bare", "a", callback=True) == "done"
    (message,) = warnings(caplog)
    assert "uncommitted work was dropped" in message
    assert "auto.unit()" in message
    assert (world.database.names, checked_out(world)) == ([], 0)
    client.emit("unit", "b", False)
    client.emit("bare commit", "c")
    assert (world.database.names, checked_out(world)) == (["b", "c"], 0)
    assert len(warnings(caplog)) == 1


def test_row_33_a_handler_inside_an_outer_context(
    world: World, socketio: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """In a test that holds an app context, units in handlers are their own all the same."""
    with world.app.app_context():
        client = socketio.test_client(world.app)
        assert client.emit("unit", "a", False, callback=True) == ["a"]
        with pytest.raises(ZeroDivisionError):
            client.emit("unit", "b", True)
        world.Thing(name="outer").save()
        client.disconnect()
    assert (world.database.names, checked_out(world)) == (["a", "outer"], 0)
    assert warnings(caplog) == []


def test_row_23_a_background_task(world: World, socketio: Any) -> None:
    """A task that the socket server runs in a thread has its units too."""

    def work() -> None:
        for name in "abc":
            with suppress(ZeroDivisionError), world.auto.unit():
                world.Thing(name=name).save()
                if name == "b":
                    raise ZeroDivisionError

    socketio.start_background_task(work).join(30)
    assert (world.database.names, checked_out(world)) == (["a", "c"], 0)


# flask-sock, through a real server --------------------------------------------------------------


class Served:
    """An application with socket routes on a server of its own, in a thread."""

    def __init__(self, world: World) -> None:
        package = pytest.importorskip("flask_sock", reason="flask-sock is not installed")
        self.world = world
        self.over = threading.Event()
        self.sock = package.Sock(world.app)
        self.sock.route("/unit")(self.unit)
        self.sock.route("/bare")(self.bare)

    def unit(self, ws: Any) -> None:
        """Keep what the client sends, one unit for each message."""
        try:
            while True:
                name = ws.receive()
                try:
                    with self.world.auto.unit():
                        self.world.Thing(name=name).save()
                        if name.startswith("bad"):
                            raise ZeroDivisionError
                    ws.send("kept")
                except ZeroDivisionError:
                    ws.send("dropped")
        finally:
            self.over.set()

    def bare(self, ws: Any) -> None:
        """Keep what the client sends, without a unit."""
        name = ws.receive()
        self.world.Thing(name=name).save()
        ws.send("written")
        if name.startswith("bad"):
            raise ZeroDivisionError

    @contextmanager
    def running(self) -> Iterator[str]:
        server = werkzeug.serving.make_server("127.0.0.1", 0, self.world.app, threaded=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(30)
            server.server_close()


@pytest.fixture
def address(world: World) -> Iterator[tuple[Served, str]]:
    served = Served(world)
    with served.running() as address:
        yield served, address


def connect(url: str) -> Any:
    return pytest.importorskip("simple_websocket").Client(url)


def wait_until(condition: Any) -> None:
    """Wait until something holds; fail if it does not within ten seconds."""
    pause = threading.Event()
    for _ in range(1000):
        if condition():
            return
        pause.wait(0.01)
    pytest.fail("it did not come true within ten seconds")


def test_row_23_messages_of_a_socket(
    world: World, address: tuple[Served, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Each message is a unit: durable before the client is answered, gone if its handler failed."""
    served, url = address
    socket = connect(f"{url}/unit")
    history: list[Any] = []
    for name in ("a", "bad", "b"):
        socket.send(name)
        history.append((socket.receive(timeout=30), world.database.names, checked_out(world)))
    socket.close()
    assert history == [("kept", ["a"], 0), ("dropped", ["a"], 0), ("kept", ["a", "b"], 0)]
    assert served.over.wait(30)
    wait_until(lambda: checked_out(world) == 0)
    assert warnings(caplog) == []


@pytest.mark.parametrize(("name", "names"), [("good", ["good"]), ("bad", [])])
def test_row_1_a_socket_route_without_a_unit_is_a_view(
    world: World, address: tuple[Served, str], name: str, names: list[str]
) -> None:
    """To Flask the whole connection is one request: kept when its function returns, else not."""
    ended = threading.Event()

    @world.app.teardown_request
    def teardown(error: BaseException | None) -> None:
        ended.set()

    _, url = address
    socket = connect(f"{url}/bare")
    socket.send(name)
    assert socket.receive(timeout=30) == "written"
    assert ended.wait(30)
    with suppress(Exception):  # closed by the server
        socket.close()
    assert world.database.names == names
    wait_until(lambda: checked_out(world) == 0)
