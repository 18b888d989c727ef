"""How units of work are tied to Flask: whatever its version, subclass or extension does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import click
import pytest
from flask import Flask, Response
from flask.globals import request_ctx
from sqlalchemy.exc import OperationalError

from .world import Database, World


class ContextFirstFlask(Flask):
    """Flask as its next release will call these methods: with the context in front."""

    def request_context(self, environ: Any) -> Any:
        context: Any = super().request_context(environ)
        context.g = self.app_ctx_globals_class()
        return context

    def full_dispatch_request(self, ctx: object) -> Response:  # type: ignore[override]
        try:
            rv = self.preprocess_request(ctx)
            if rv is None:
                rv = self.dispatch_request(ctx)
        except Exception as error:
            rv = self.handle_user_exception(ctx, error)
        return self.finalize_request(ctx, rv)

    def preprocess_request(self, ctx: object) -> Any:  # type: ignore[override]
        return super().preprocess_request()

    def dispatch_request(self, ctx: object) -> Any:  # type: ignore[override]
        return super().dispatch_request()

    def handle_user_exception(self, ctx: object, error: Exception) -> Any:  # type: ignore[override]
        return super().handle_user_exception(error)

    def finalize_request(  # type: ignore[override]
        self, ctx: object, rv: Any, from_error_handler: bool = False
    ) -> Response:
        return self.process_response(ctx, self.make_response(rv))

    def process_response(self, ctx: object, response: Response) -> Response:  # type: ignore[override]
        return super().process_response(response)

    def wsgi_app(self, environ: Any, start_response: Any) -> Any:
        context = self.request_context(environ)
        error = None
        try:
            context.push()
            try:
                response = self.full_dispatch_request(context)
            except Exception as raised:
                error = raised
                response = super().handle_exception(raised)
            return response(environ, start_response)
        finally:
            context.pop(error)


class FutureWorld(World):
    def make_app(self, **config: Any) -> Flask:
        self.app = ContextFirstFlask("future")
        self.app.config.update(SQLALCHEMY_DATABASE_URI=self.database.uri, **config)
        return self.app


def test_the_context_may_come_first(database: Database) -> None:
    """The methods of Flask that are wrapped take whatever arguments Flask passes."""
    world = FutureWorld(database)

    @world.app.before_request
    def before() -> None:
        world.Thing.query.count()

    @world.app.get("/<name>/<int:status>")
    def view(name: str, status: int) -> Any:
        world.Thing(name=name).save()
        if status == 500:
            raise LookupError(name)
        return "", status

    @world.app.errorhandler(LookupError)
    def handler(error: LookupError) -> Any:
        world.Thing(name="handled").save()
        return "", 200

    client = world.app.test_client()
    told = [client.get(path).status_code for path in ("/a/200", "/b/400", "/c/500")]
    world.close()
    assert told == [200, 400, 200]
    assert database.names == ["a", "handled"]


def test_a_subclass_that_reads_the_response_is_served(database: Database) -> None:
    """An application class may turn what its views return into responses in its own way."""

    class Kept:
        status = 201

    class Refused:
        status = 422

    class App(Flask):
        def make_response(self, rv: Any) -> Response:
            if isinstance(rv, Kept | Refused):
                rv = ("", rv.status)
            return super().make_response(rv)

    class AppWorld(World):
        def make_app(self, **config: Any) -> Flask:
            self.app = App("app")
            self.app.config.update(SQLALCHEMY_DATABASE_URI=self.database.uri, **config)
            return self.app

    world = AppWorld(database)
    database.insert("old")

    @world.app.get("/<kind>")
    def view(kind: str) -> Any:
        thing = world.Thing.query.one()
        thing.name = "new" if kind == "kept" else None
        return Kept() if kind == "kept" else Refused()

    client = world.app.test_client()
    assert client.get("/refused").status_code == 422
    assert database.names == ["old"]
    assert client.get("/kept").status_code == 201
    assert database.names == ["new"]
    world.close()


def test_a_deadlock_in_a_savepoint_is_told_as_a_deadlock(world: World) -> None:
    """The error is the deadlock itself, and the unit, which the database gave up, keeps nothing."""
    if world.database.kind == "sqlite":
        pytest.skip("SQLite has one writer at a time, and so no deadlocks")
    world.database.insert("a")
    world.database.insert("b")
    barrier = threading.Barrier(2)
    errors: list[Exception] = []

    def rename(first: str, second: str) -> None:
        try:
            with world.auto.unit(world.app), world.auto.savepoint():
                world.Thing.query.filter_by(name=first).one().update(name=f"{first}{second}")
                barrier.wait(10)
                world.Thing.query.filter_by(name=second).with_for_update().one()
        except OperationalError as error:
            errors.append(error)

    threads = [threading.Thread(target=rename, args=pair) for pair in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    (error,) = errors
    assert "deadlock" in str(error).lower()
    assert world.database.names in (["ab", "b"], ["a", "ba"])


@pytest.mark.parametrize(("status", "durable"), [(200, ["outer", "inner"]), (409, ["inner"])])
def test_a_request_made_by_a_view_is_a_unit_of_its_own(
    world: World, status: int, durable: list[str]
) -> None:
    """A view that serves other requests, as batch endpoints do, keeps its own work whole."""
    if world.database.kind == "sqlite":
        pytest.skip("SQLite has one writer at a time: the inner request would wait for the outer")

    @world.app.get("/inner/<int:told>")
    def inner(told: int) -> Any:
        world.Thing(name="inner" if told == 200 else "gone").save()
        return "", told

    @world.app.get("/outer")
    def outer() -> Any:
        world.Thing(name="outer").save()
        client = world.app.test_client()
        assert [client.get(f"/inner/{told}").status_code for told in (200, 400)] == [200, 400]
        assert world.Thing.query.filter_by(name="outer").count() == 1
        return "", status

    assert world.app.test_client().get("/outer").status_code == status
    assert sorted(world.database.names) == sorted(durable)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("block", [False, True])
def test_a_command_that_fails_keeps_nothing(world: World, fails: bool, block: bool) -> None:
    """Whether click passes the exception on to the app context, as it does from 8.3 on, or not."""

    @world.app.cli.command("work")
    def work() -> None:
        with world.auto.unit() if block else nullcontext():
            world.Thing(name="kept").save()
            if fails:
                raise ValueError

    result = world.app.test_cli_runner().invoke(args=["work"])
    assert result.exit_code == int(fails)
    assert world.database.names == ([] if fails else ["kept"])


def test_a_command_that_exits_inside_a_unit_keeps_nothing(world: World) -> None:
    """click closes the contexts around the block first, but only the block's end commits."""

    @world.app.cli.command("work")
    @click.pass_context
    def work(context: click.Context) -> None:
        with world.auto.unit():
            world.Thing(name="gone").save()
            context.exit(3)

    result = world.app.test_cli_runner().invoke(args=["work"])
    assert result.exit_code != 0
    assert world.database.names == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_request_whose_stream_keeps_its_context_is_a_unit_of_its_own(
    world: World, fails: bool
) -> None:
    """Inside a unit, too, where Flask 3.0 keeps the request's context until its stream is read."""

    def keep_context(items: Iterator[bytes]) -> Iterator[bytes]:
        with request_ctx._get_current_object():
            yield b""
            yield from items

    def generate() -> Iterator[bytes]:
        world.Thing(name="streamed").save()
        yield b"done"
        if fails:
            raise LookupError

    @world.app.get("/")
    def view() -> Response:
        stream = keep_context(generate())
        next(stream)
        return Response(stream)

    def read() -> None:
        with pytest.raises(LookupError) if fails else nullcontext():
            assert world.app.test_client().get("/").data == b"done"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), world.auto.unit(world.app):
        read()
    assert world.database.names == ([] if fails else ["streamed"])


def test_a_body_that_cannot_be_closed(world: World) -> None:
    """A view may return any iterator."""

    @world.app.get("/")
    def view() -> Response:
        world.Thing(name="view").save()
        return Response(iter(["a", "b"]))

    with world.app.test_client().get("/") as response:
        assert response.text == "ab"
    assert world.database.names == ["view"]
