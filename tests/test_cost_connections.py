"""What a request costs the pool: its connection is back before the response is sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextvars import Context
from typing import Any

import pytest
from flask import Response, abort, stream_with_context
from sqlalchemy.pool import Pool
from werkzeug.test import EnvironBuilder

from .world import Database, World

ONE = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 1}
"""A pool with nothing for a second request, which it soon says."""


class Shop(World):
    """An application whose pool has one connection, and what its views saw of that pool."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, SQLALCHEMY_ENGINE_OPTIONS=ONE)
        self.in_view: list[int] = []
        with self.app.app_context():
            self.pool: Pool = self.db.engine.pool

    @property
    def out(self) -> int:
        """How many connections are checked out of the pool."""
        count: int = self.pool.checkedout()  # type: ignore[attr-defined]
        return count

    def write(self, name: str = "a") -> None:
        self.Thing(name=name).save()
        self.in_view.append(self.out)

    def read(self) -> int:
        count: int = self.Thing.query.count()
        self.in_view.append(self.out)
        return count


class Exchange:
    """One request, carried out as a server does it, and no further than it is asked to.

    As in a server's thread, what is current in it is not current in another one: Flask 3.0 keeps a
    stream's context pushed while that is sent.

    ``out`` lists how many connections are checked out whenever the server gets something that it
    could send: at ``start_response()``, and with each chunk.
    """

    def __init__(self, shop: Shop, path: str = "/") -> None:
        self.status = ""
        self.out: list[int] = []
        self._shop = shop
        self._context = Context()
        environ = EnvironBuilder(path).get_environ()
        self._body: Iterable[bytes] = self._context.run(
            shop.app.wsgi_app, environ, self._start_response
        )
        self._chunks = iter(self._body)

    def _start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        self.status = status
        self.out.append(self._shop.out)

    def next_chunk(self) -> bytes | None:
        """Take one chunk, or None at the end, with which the body is closed."""
        chunk = self._context.run(next, self._chunks, None)
        self.out.append(self._shop.out)
        if chunk is None:
            self._context.run(self._body.close)  # type: ignore[attr-defined]
        return chunk

    def finish(self) -> tuple[str, list[int]]:
        """Take all that is left; return the status, and what was checked out all the while."""
        while self.next_chunk() is not None:
            pass
        return self.status, self.out


@pytest.fixture
def shop(database: Database) -> Iterator[Shop]:
    shop = Shop(database)
    yield shop
    shop.close()


def answer(shop: Shop) -> tuple[str, set[int]]:
    """Carry a request out; its view must have held the connection, or nothing is shown."""
    status, out = Exchange(shop).finish()
    assert shop.in_view == [1]
    assert len(out) >= 2  # at start_response() and at the body's end, at least
    return status[:3], set(out)


def test_the_connection_of_a_view_that_wrote_is_back_before_the_first_byte(shop: Shop) -> None:
    """The client of a view that wrote is not sent anything while the view's connection is out."""

    @shop.app.get("/")
    def view() -> Any:
        shop.write()
        return "done", 201

    assert answer(shop) == ("201", {0})
    assert shop.database.names == ["a"]


def test_the_connection_of_a_view_that_only_read_is_back_before_the_first_byte(shop: Shop) -> None:
    """A view that only read does not keep its connection while the response is sent, either."""

    @shop.app.get("/")
    def view() -> Any:
        return str(shop.read())

    assert answer(shop) == ("200", {0})


def test_the_connection_of_a_refusal_is_back_before_the_first_byte(shop: Shop) -> None:
    """A 409 is sent when what the view wrote is rolled back, and its connection is back."""

    @shop.app.get("/")
    def view() -> Any:
        shop.write()
        return "taken", 409

    assert answer(shop) == ("409", {0})
    assert shop.database.names == []


def test_the_connection_of_an_abort_is_back_before_the_first_byte(shop: Shop) -> None:
    """So it is with abort(409), which Flask turns into a response by itself."""

    @shop.app.get("/")
    def view() -> Any:
        shop.write()
        abort(409)

    assert answer(shop) == ("409", {0})


def test_the_connection_of_a_view_that_raised_is_back_before_the_first_byte(shop: Shop) -> None:
    """The 500 of a view that raised is sent when its connection is back."""

    @shop.app.get("/")
    def view() -> Any:
        shop.write()
        raise ZeroDivisionError

    assert answer(shop) == ("500", {0})
    assert shop.database.names == []


def test_the_connection_of_an_error_handler_is_back_before_the_first_byte(shop: Shop) -> None:
    """What a handler reads or writes for its page is over too before the page is sent."""

    @shop.app.get("/")
    def view() -> Any:
        raise ZeroDivisionError

    @shop.app.errorhandler(ZeroDivisionError)
    def handle(error: ZeroDivisionError) -> Any:
        shop.write()
        return "rendered", 200

    assert answer(shop) == ("200", {0})
    assert shop.database.names == ["a"]


def test_the_connection_of_a_callback_is_back_before_the_first_byte(shop: Shop) -> None:
    """A function that runs after the commit gives its connection back as the view does."""

    @shop.app.get("/")
    def view() -> Any:
        shop.auto.on_commit(shop.write)
        return "done"

    assert answer(shop) == ("200", {0})
    assert shop.database.names == ["a"]


def test_the_connection_of_an_after_request_function_is_back_before_the_first_byte(
    shop: Shop,
) -> None:
    """What an after_request function reads once a refusal is rolled back is over as well."""

    @shop.app.get("/")
    def view() -> Any:
        return "refused", 400

    @shop.app.after_request
    def look(response: Response) -> Response:
        shop.read()
        return response

    assert answer(shop) == ("400", {0})


@pytest.mark.parametrize(
    ("status", "wrap"),
    [(200, iter), (409, iter), (200, stream_with_context)],
    ids=["committed", "rolled back", "with context"],
)
def test_one_connection_serves_the_next_request_while_a_response_is_sent(
    shop: Shop, status: int, wrap: Any
) -> None:
    """With a pool of one, a slow client does not keep the next request from the database."""

    @shop.app.get("/<name>")
    def view(name: str) -> Any:
        shop.write(name)
        return Response(wrap(chunk for chunk in ["some", "more"]), status)

    slow = Exchange(shop, "/slow")
    assert slow.next_chunk() == b"some"
    second = Exchange(shop, "/quick").finish()
    assert slow.next_chunk() == b"more"
    for got, out in (second, slow.finish()):
        assert (got[:3], set(out)) == (str(status), {0})
    assert shop.in_view == [1, 1]
    assert shop.database.names == (["slow", "quick"] if status == 200 else [])
