"""The contract, row 17: responses whose body is made while it is sent."""

from __future__ import annotations

import contextvars
import gc
import inspect
import io
import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from importlib.metadata import version
from types import TracebackType
from typing import Any

import pytest
import sqlalchemy as sa
from flask import (
    Response,
    abort,
    g,
    has_app_context,
    request,
    send_file,
    stream_template_string,
    stream_with_context,
)
from sqlalchemy.exc import IntegrityError
from werkzeug.test import create_environ

from flask_autosession import DoomedError, ExplicitCommitError, unit_committed, unit_rolled_back

from .conftest import live_sessions
from .streams_server.server import END, Server, eventually, read, serve
from .world import Database, World, thing

LOGGER = "flask_autosession"
Items = Iterator[str]
MakeWorld = Callable[..., World]


# Until then stream_with_context() pushed the context while the view was still running: an async
# view's thread could not pop it, and a stream that was never sent kept it.
OLD_STREAMS = tuple(map(int, version("flask").split(".")[:3])) < (3, 1, 2)


class Planned(Exception):
    """Raised on purpose."""


@pytest.fixture(params=[False, True], ids=["alone", "inside"])
def make_world(request: pytest.FixtureRequest, database: Database) -> Iterator[MakeWorld]:
    """Make worlds; each test runs by itself, and inside of an app context as tests often are."""
    with ExitStack() as worlds:
        contexts = worlds.enter_context(ExitStack())

        def make(**config: Any) -> World:
            world = World(database, **config)
            contexts.callback(world.close)
            if request.param:
                contexts.enter_context(world.app.app_context())
            return world

        yield make
        kept = database.names
        contexts.close()
        assert database.names == kept, "leaving the context around a request has changed something"


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world()


@pytest.fixture(autouse=True)
def debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger=LOGGER)


def told(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """The messages of our logger at a level and above."""
    return [r.getMessage() for r in caplog.records if r.name == LOGGER and r.levelno >= level]


def next_line() -> str:
    """The place one line below the caller, as the log names it."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return f"{__file__}:{frame.f_back.f_lineno + 1}"


def visible(world: World) -> list[str]:
    """The names that the current session sees."""
    query = sa.select(world.Thing.name).order_by(world.Thing.id)
    return list(world.db.session.scalars(query))


def checked_out(world: World) -> int:
    """How many connections are not in the pool."""
    with world.app.app_context():
        count: int = world.db.engine.pool.checkedout()  # type: ignore[attr-defined]
        return count


def is_idle(world: World) -> bool:
    """Whether no request holds a connection or a session."""
    return not checked_out(world) and not live_sessions()


class Body:
    """A response that is read as servers do it: item by item, and closed at the end."""

    def __init__(self, world: World, path: str = "/", method: str = "GET") -> None:
        self.world = world
        self.status = 0
        self._wsgi: Any = world.app(create_environ(path, method=method), self._start)
        self._items: Iterator[bytes] = iter(self._wsgi)

    def _start(self, status: str, *_: Any) -> Callable[[bytes], Any]:
        self.status = int(status.split(maxsplit=1)[0])
        return io.BytesIO().write

    def read(self, count: int | None = None) -> str:
        """Read a number of items, or all that are left."""
        items: Iterable[bytes] = self._items
        if count is not None:
            items = (next(self._items) for _ in range(count))
        return b"".join(items).decode()

    def close(self) -> None:
        """End the response, as a server does however that went."""
        self._wsgi.close()

    def __enter__(self) -> Body:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
        assert is_idle(self.world)


def add_stream(
    world: World, generate: Callable[[], Iterable[Any]], status: int = 200, path: str = "/"
) -> None:
    """Add a view that saves a thing and returns a stream."""

    def view() -> Response:
        world.Thing(name="view").save()
        return Response(stream_with_context(generate()), status)

    world.app.add_url_rule(path, path, view)


def saving(world: World, *names: str) -> Callable[[], Items]:
    """Return a generator function that saves things, and tells of each when it has done so."""

    def generate() -> Items:
        for name in names:
            world.Thing(name=name).save()
            yield f"{name};"

    return generate


# The generator's end decides -------------------------------------------------------------------


@pytest.mark.parametrize("decorated", [True, False])
def test_row_17_the_work_of_a_stream_is_committed_at_its_end(
    world: World, caplog: pytest.LogCaptureFixture, decorated: bool
) -> None:
    """The view's work is durable before the first item, the generator's when it is exhausted."""
    generate = saving(world, "one", "two")

    @world.app.get("/")
    def view() -> Response:
        world.Thing(name="view").save()
        made = stream_with_context(generate)() if decorated else stream_with_context(generate())
        return Response(made)

    with Body(world) as body:
        assert body.status == 200
        assert world.database.names == ["view"]
        assert is_idle(world)
        assert body.read(1) == "one;"
        assert world.database.names == ["view"]
        assert body.read() == "two;"
        # Before close(): a server sends the end of the body as soon as there are no more items.
        assert world.database.names == ["view", "one", "two"]
        assert is_idle(world)
    assert told(caplog) == []


def test_row_17_what_is_pending_at_the_end_is_committed(world: World) -> None:
    """Changes that were never saved, and Core's, belong to the generator's work too."""

    def generate() -> Items:
        world.Thing.query.filter_by(name="view").one().name = "changed"
        yield "1"
        world.db.session.execute(sa.insert(thing).values(name="core"))
        yield "2"
        world.db.session.add(world.Thing(name="pending"))

    add_stream(world, generate)
    with Body(world) as body:
        assert body.read() == "12"
        assert world.database.names == ["changed", "core", "pending"]


def test_row_17_the_generator_is_one_unit_that_sees_its_own_work(world: World) -> None:
    """From item to item the generator has one session, which sees the view's work and its own."""
    seen: list[Any] = []

    def generate() -> Items:
        seen.append(visible(world))
        session = world.db.session()
        world.Thing(name="one").save()
        yield "1"
        seen.extend([visible(world), session is world.db.session()])

    add_stream(world, generate)
    with Body(world) as body:
        body.read()
    assert seen == [["view"], ["view", "one"], True]


def test_row_17_a_generator_that_raises_is_rolled_back(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The exception leaves the iterator, the generator's work is undone, and the log says where."""

    def generate() -> Items:
        world.Thing(name="one").save()
        yield "1"
        raise Planned

    where = f"{__file__}:{inspect.getsourcelines(generate)[1] + 3}"
    add_stream(world, generate)
    with Body(world) as body:
        assert body.read(1) == "1"
        with pytest.raises(Planned):
            body.read()
        assert world.database.names == ["view"]
    assert world.database.names == ["view"]
    (message,) = told(caplog)
    assert "GET / 200" in message
    assert f"Planned at {where}" in message


@pytest.mark.parametrize("count", [1, 2])
def test_row_17_a_client_that_goes_away_takes_the_generators_work_back(
    world: World, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    """A response closed before its end keeps nothing of the generator, and the log says so."""
    add_stream(world, saving(world, "one", "two"))
    with Body(world) as body:
        body.read(count)
    assert world.database.names == ["view"]
    (message,) = told(caplog)
    assert "GET / 200" in message
    assert "the client went away" in message


def test_row_17_a_reader_that_goes_away_is_not_warned_of(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the generator has only read, nothing is lost when the client goes away."""

    def generate() -> Items:
        yield from visible(world)
        yield "more"

    add_stream(world, generate)
    with Body(world) as body:
        assert body.read(1) == "view"
    assert told(caplog) == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_row_17_a_stream_that_is_never_read(
    world: World, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """A generator that never ran has done nothing, and the view's work stands."""
    add_stream(world, saving(world, "one"))
    with Body(world, method=method):
        pass
    assert world.database.names == ["view"]
    assert told(caplog) == []


def test_row_17_a_stream_that_nobody_closes(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A half-read response that is just forgotten is rolled back when it is collected."""
    add_stream(world, saving(world, "one", "two"))
    body = Body(world)
    body.read(1)
    del body
    gc.collect()
    assert is_idle(world)
    assert world.database.names == ["view"]
    assert len(told(caplog)) == 1


def test_row_17_cleaning_up_after_a_client_that_went_away_is_not_kept(world: World) -> None:
    """What a generator writes in its finally clause shares the fate of the rest."""

    def generate() -> Items:
        try:
            yield "1"
            yield "2"
        finally:
            world.Thing(name="finally").save()

    add_stream(world, generate)
    with Body(world) as body:
        body.read(1)
    assert world.database.names == ["view"]
    with world.database.engine.begin() as connection:
        connection.execute(sa.delete(thing))
    with Body(world) as body:
        body.read()
    assert world.database.names == ["view", "finally"]


# Failures --------------------------------------------------------------------------------------


def test_row_17_a_commit_that_fails_at_the_end_cuts_the_body(world: World) -> None:
    """Where the last flush fails, the client does not see the end of the body."""

    def generate() -> Items:
        world.Thing(name="one").save()
        yield "1"
        world.db.session.add(world.Thing(name="view"))

    add_stream(world, generate)
    with Body(world) as body:
        assert body.read(1) == "1"
        with pytest.raises(IntegrityError):
            body.read()
    assert world.database.names == ["view"]


@pytest.mark.parametrize("how", ["flush", "statement"])
def test_row_17_a_swallowed_failure_cuts_the_body(world: World, how: str) -> None:
    """A generator that goes on after a database error cannot be told from a success but by that."""

    def generate() -> Items:
        world.Thing(name="one").save()
        try:
            if how == "flush":
                world.Thing(name="view").save()
            else:
                world.db.session.execute(sa.insert(thing).values(name="view"))
        except IntegrityError:
            yield "caught;"
        yield "end"

    add_stream(world, generate)
    with Body(world) as body:
        assert body.read(2) == "caught;end"
        with pytest.raises(DoomedError, match="IntegrityError"):
            body.read()
    assert world.database.names == ["view"]


def test_row_17_a_write_after_a_failure_is_refused(world: World) -> None:
    """Rows 9 and 11 hold in a generator: reads go on, the next write says what failed first."""
    seen: list[Any] = []

    def generate() -> Items:
        with pytest.raises(IntegrityError):
            world.Thing(name="view").save()
        seen.append(visible(world))
        yield "1"
        world.Thing(name="more").save()

    add_stream(world, generate)
    with Body(world) as body:
        body.read(1)
        with pytest.raises(DoomedError, match="IntegrityError"):
            body.read()
    assert seen == [["view"]]
    assert world.database.names == ["view"]


def test_row_17_a_savepoint_saves_the_rest(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A failure inside of a savepoint costs just the savepoint, also from item to item."""

    def generate() -> Items:
        for name in ("one", "view", "two"):
            try:
                with world.auto.savepoint():
                    world.Thing(name=f"log of {name}").save()
                    world.Thing(name=name).save()
            except IntegrityError:
                yield "-"
            else:
                yield "+"

    add_stream(world, generate)
    with Body(world) as body:
        assert body.read() == "+-+"
    assert world.database.names == ["view", "log of one", "one", "log of two", "two"]
    assert told(caplog) == []


def test_row_17_a_savepoint_may_be_open_while_an_item_is_sent(world: World) -> None:
    """A savepoint around a yield is rolled back with the rest when the client goes away."""

    def generate() -> Items:
        with world.auto.savepoint():
            world.Thing(name="one").save()
            yield "1"
            yield "2"

    add_stream(world, generate)
    with Body(world) as body:
        body.read(1)
    assert world.database.names == ["view"]
    with world.database.engine.begin() as connection:
        connection.execute(sa.delete(thing))
    with Body(world) as body:
        body.read()
    assert world.database.names == ["view", "one"]


def test_row_17_the_next_request_is_not_touched_by_a_failed_stream(world: World) -> None:
    """Nothing of a stream that was cut is left for the requests that follow it."""

    def generate() -> Items:
        world.Thing(name="one").save()
        world.auto.on_commit(lambda: world.Thing(name="callback").save())
        yield "1"
        raise Planned

    add_stream(world, generate)
    world.app.add_url_rule("/next", "next", lambda: world.Thing(name="next").save().name)
    with Body(world) as body, pytest.raises(Planned):
        body.read()
    with Body(world, "/next") as body:
        assert body.read() == "next"
    assert world.database.names == ["view", "next"]


# The response decides --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 399, 400, 500])
def test_row_17_the_status_decides_for_the_generator_too(
    world: World, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """Behind a status that says failure, the generator's work is dropped, with a warning."""
    add_stream(world, saving(world, "one"), status)
    with Body(world) as body:
        assert (body.status, body.read()) == (status, "one;")
    if status < 400:
        assert world.database.names == ["view", "one"]
        assert told(caplog) == []
    else:
        assert world.database.names == []
        (message,) = told(caplog)
        assert f"GET / {status}" in message


def test_row_17_an_after_request_function_can_still_refuse(world: World) -> None:
    """A later after_request function that makes it a failure refuses the generator's work too."""
    add_stream(world, saving(world, "one"))

    @world.app.after_request
    def refuse(response: Response) -> Response:
        response.status_code = 503
        return response

    with Body(world) as body:
        assert (body.status, body.read()) == (503, "one;")
    assert world.database.names == []


@pytest.mark.parametrize(("status", "kept"), [(200, []), (404, ["view", "one"])])
def test_row_17_the_rule_of_commit_when_decides_for_the_generator_too(
    world: World, caplog: pytest.LogCaptureFixture, status: int, kept: list[str]
) -> None:
    """The application's own rule takes the place of the status, also for streams."""
    world.auto.commit_when(lambda response: response.status_code == 404)
    add_stream(world, saving(world, "one"), status)
    with Body(world) as body:
        assert body.read() == "one;"
    assert world.database.names == kept
    assert len(told(caplog)) == (0 if kept else 1)


def test_row_17_doom_in_the_view_holds_for_the_generator(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """After auto.doom() in the view nothing is kept, whatever follows, and the body is whole."""

    @world.app.get("/")
    def view() -> Response:
        world.Thing(name="view").save()
        world.auto.doom()
        return Response(stream_with_context(saving(world, "one")()))

    with Body(world) as body:
        assert body.read() == "one;"
    assert world.database.names == []
    assert "auto.doom() was called" in told(caplog)[0]


def test_row_17_doom_in_the_generator(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """After auto.doom() the generator's work is dropped, and the log says who wanted it."""

    def generate() -> Items:
        world.Thing(name="one").save()
        yield "1"
        world.auto.doom()
        world.Thing(name="two").save()
        yield "2"

    add_stream(world, generate)
    with Body(world) as body:
        assert body.read() == "12"
    assert world.database.names == ["view"]
    (message,) = told(caplog)
    assert "GET / 200" in message
    assert "auto.doom() was called" in message


def test_row_17_a_raised_response_that_streams(world: World) -> None:
    """abort() with a streamed response below 400 is control flow, as in row 5."""

    @world.app.get("/")
    def view() -> None:
        world.Thing(name="view").save()
        abort(Response(stream_with_context(saving(world, "one")()), 202))

    with Body(world) as body:
        assert (body.status, body.read()) == (202, "one;")
    assert world.database.names == ["view", "one"]


def test_row_17_a_before_request_function_that_answers_with_a_stream(world: World) -> None:
    """A stream from a before_request function is judged like one from a view."""

    @world.app.before_request
    def answer() -> Response:
        world.Thing(name="before").save()
        return Response(stream_with_context(saving(world, "one")()))

    with Body(world) as body:
        assert body.read() == "one;"
    assert world.database.names == ["before", "one"]


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("error", [Planned, Exception])
def test_row_17_an_error_handler_that_answers_with_a_stream(
    world: World, status: int, error: type[Exception]
) -> None:
    """The view's work stays rolled back; the handler's own stream is judged by its own status."""

    @world.app.errorhandler(error)
    def handle(_: Exception) -> Response:
        world.Thing(name="handler").save()
        return Response(stream_with_context(saving(world, "one")()), status)

    @world.app.get("/")
    def view() -> None:
        world.Thing(name="view").save()
        raise Planned

    with Body(world) as body:
        assert (body.status, body.read()) == (status, "one;")
    assert world.database.names == (["handler", "one"] if status == 200 else [])


def test_row_17_a_handler_for_500_that_answers_with_a_stream(world: World) -> None:
    """The handler for 500 may answer 200 with a stream, too: it is a unit of its own."""

    @world.app.errorhandler(500)
    def handle(_: Exception) -> Response:
        return Response(stream_with_context(saving(world, "one")()), 200)

    @world.app.get("/")
    def view() -> None:
        world.Thing(name="view").save()
        raise Planned

    with Body(world) as body:
        assert (body.status, body.read()) == (200, "one;")
    assert world.database.names == ["one"]


def test_row_17_a_view_that_fails_after_it_has_made_a_stream(world: World) -> None:
    """A stream that is never sent does nothing, and the view's work is rolled back."""

    @world.app.get("/")
    def view() -> Response:
        world.Thing(name="view").save()
        made = Response(stream_with_context(saving(world, "one")()))
        if made.is_streamed:
            raise Planned
        return made

    # Handled, for what the log keeps of an exception would keep the stream as well.
    world.app.register_error_handler(Planned, lambda _: ("planned", 500))
    with Body(world) as body:
        assert (body.status, body.read()) == (500, "planned")
    assert world.database.names == []


def test_row_17_a_commit_that_fails_behind_a_stream_in_the_making(world: World) -> None:
    """Where the view's own work cannot be committed, its stream is never sent."""

    @world.app.get("/")
    def view() -> Response:
        world.Thing(name="twin").save()
        world.db.session.add(world.Thing(name="twin"))
        return Response(stream_with_context(saving(world, "one")()))

    world.app.register_error_handler(IntegrityError, lambda _: ("conflict", 409))
    with Body(world) as body:
        assert (body.status, body.read()) == (409, "conflict")
    assert world.database.names == []


def test_row_17_a_stream_in_whose_place_another_response_is_sent(world: World) -> None:
    """A stream that an after_request function replaces never runs; the view's work is kept."""
    add_stream(world, saving(world, "one"))
    world.app.after_request(lambda _: Response("replaced"))
    with Body(world) as body:
        assert body.read() == "replaced"
    assert world.database.names == ["view"]


# What the generator decides itself -------------------------------------------------------------


def test_row_19_callbacks_of_a_stream_follow_its_end(world: World) -> None:
    """What is registered in the generator runs after its commit, in order, in a unit of its own."""
    history: list[Any] = []

    def committed() -> None:
        history.append(("on_commit", world.database.names, request.path))
        world.Thing(name="callback").save()

    def generate() -> Items:
        world.auto.on_commit(committed)
        world.auto.on_rollback(lambda: history.append("on_rollback"))
        world.Thing(name="one").save()
        yield "1"
        world.auto.on_commit(lambda: history.append("second"))
        history.append("last item")
        yield "2"

    add_stream(world, generate)
    with Body(world) as body:
        body.read()
        assert history == ["last item", ("on_commit", ["view", "one"], "/"), "second"]
        assert world.database.names == ["view", "one", "callback"]


@pytest.mark.parametrize("how", ["raises", "closed"])
def test_row_19_callbacks_of_a_stream_that_is_cut(world: World, how: str) -> None:
    """on_commit is dropped with the generator's work; what on_rollback writes is kept."""
    history: list[str] = []

    def generate() -> Items:
        world.auto.on_commit(lambda: history.append("on_commit"))
        world.auto.on_rollback(lambda: world.Thing(name="audit").save())
        world.Thing(name="one").save()
        yield "1"
        raise Planned

    add_stream(world, generate)
    with Body(world) as body:
        body.read(1)
        if how == "raises":
            with pytest.raises(Planned):
                body.read()
    assert history == []
    assert world.database.names == ["view", "audit"]


def test_row_19_callbacks_of_a_stream_behind_a_failure(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind a status of 400 the generator's on_commit is dropped with a warning."""
    history: list[str] = []

    def generate() -> Items:
        world.auto.on_commit(lambda: history.append("on_commit"))
        world.auto.on_rollback(lambda: history.append("on_rollback"))
        yield "1"

    add_stream(world, generate, 400)
    with Body(world) as body:
        body.read()
    assert history == ["on_rollback"]
    assert len(told(caplog)) == 1


def test_row_19_callbacks_of_the_view_run_before_the_stream(world: World) -> None:
    """The view's callbacks follow the view's commit, before the first item."""
    history: list[str] = []

    @world.app.get("/")
    def view() -> Response:
        world.auto.on_commit(lambda: history.append("on_commit"))

        def generate() -> Items:
            history.append("first item")
            yield "1"

        return Response(stream_with_context(generate()))

    with Body(world) as body:
        body.read()
    assert history == ["on_commit", "first item"]


def test_row_17_a_stream_that_never_touches_the_database_sends_no_signal(world: World) -> None:
    """Signals tell of the view's unit and of the generator's, and of none that was not used."""
    history: list[Any] = []
    world.app.add_url_rule("/plain", "plain", lambda: Response(stream_with_context(iter("ab"))))
    add_stream(world, saving(world, "one"))

    def committed(sender: Any) -> None:
        history.append("committed")

    def rolled_back(sender: Any, reason: str) -> None:
        history.append(reason)

    with (
        unit_committed.connected_to(committed, world.app),
        unit_rolled_back.connected_to(rolled_back, world.app),
    ):
        with Body(world, "/plain") as body:
            assert body.read() == "ab"
        assert history == []
        with Body(world) as body:
            body.read()
        assert history == ["committed", "committed"]


@pytest.mark.parametrize("policy", ["warn", "allow"])
@pytest.mark.parametrize("whole", [True, False])
def test_row_15_an_explicit_commit_in_a_stream(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture, policy: str, whole: bool
) -> None:
    """warn and allow commit what the generator has done so far, however it ends."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT=policy)
    where = []

    def generate() -> Items:
        world.Thing(name="one").save()
        where.append(next_line())
        world.db.session.commit()
        yield "1"
        world.Thing(name="two").save()
        yield "2"

    add_stream(world, generate)
    with Body(world) as body:
        body.read(1)
        assert world.database.names == ["view", "one"]
        body.read() if whole else body.read(1)
    assert world.database.names == ["view", "one", "two"] if whole else ["view", "one"]
    warnings = [message for message in told(caplog) if "went away" not in message]
    assert len(warnings) == (policy == "warn")
    assert all(where[0] in warning for warning in warnings)


@pytest.mark.parametrize("whole", [True, False])
def test_row_15_an_explicit_commit_in_a_stream_can_be_just_a_flush(
    make_world: MakeWorld, whole: bool
) -> None:
    """Under flush the generator's work stays one unit, which its end decides about."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT="flush")

    def generate() -> Items:
        world.db.session.add(world.Thing(name="one"))
        world.db.session.commit()
        yield "1"
        world.Thing(name="two").save()
        yield "2"

    add_stream(world, generate)
    with Body(world) as body:
        body.read(1)
        assert world.database.names == ["view"]
        body.read() if whole else body.read(1)
    assert world.database.names == (["view", "one", "two"] if whole else ["view"])


def test_row_15_an_explicit_commit_in_a_stream_can_be_forbidden(make_world: MakeWorld) -> None:
    """Under forbid the generator gets an ExplicitCommitError, and its work is rolled back."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT="forbid")

    def generate() -> Items:
        world.Thing(name="one").save()
        yield "1"
        world.db.session.commit()

    add_stream(world, generate)
    with Body(world) as body:
        body.read(1)
        with pytest.raises(ExplicitCommitError):
            body.read()
    assert world.database.names == ["view"]


@pytest.mark.parametrize("policy", ["warn", "allow", "flush", "forbid"])
def test_row_15_auto_commit_in_a_stream_always_commits(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    """auto.commit() keeps batch after batch, also of a stream that is cut later."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT=policy)

    def generate() -> Items:
        for name in ("one", "two"):
            world.Thing(name=name).save()
            world.auto.commit()
            yield name

    add_stream(world, generate)
    with Body(world) as body:
        body.read(1)
        assert world.database.names == ["view", "one"]
        assert is_idle(world)
    assert world.database.names == ["view", "one"]
    assert told(caplog) == []


@pytest.mark.parametrize("how", ["rollback", "close", "remove"])
def test_row_16_an_explicit_rollback_in_a_stream(
    world: World, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """What was done so far is dropped by choice, the log says where, and what follows is kept."""
    where = []

    def generate() -> Items:
        world.Thing(name="one").save()
        where.append(next_line())
        getattr(world.db.session, how)()
        yield "1"
        world.Thing(name="two").save()
        yield "2"

    add_stream(world, generate)
    with Body(world) as body:
        assert body.read() == "12"
    assert world.database.names == ["view", "two"]
    (message,) = told(caplog)
    assert where[0] in message


def test_row_16_a_rollback_lifts_the_doom_of_a_stream(world: World) -> None:
    """After a failure and a rollback() the generator can go on, and its later work is kept."""

    def generate() -> Items:
        world.Thing(name="one").save()
        try:
            world.Thing(name="view").save()
        except IntegrityError:
            world.db.session.rollback()
        world.Thing(name="two").save()
        yield "2"

    add_stream(world, generate)
    with Body(world) as body:
        assert body.read() == "2"
    assert world.database.names == ["view", "two"]


@pytest.mark.parametrize("policy", ["warn", "forbid"])
def test_row_18_the_stream_of_a_manual_view(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    """In a manual view's generator explicit commits stand, and the rest is dropped and told of."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT=policy)

    def generate() -> Items:
        world.Thing(name="one").save()
        world.db.session.commit()
        yield "1"
        world.Thing(name="two").save()
        yield "2"

    @world.app.get("/")
    @world.auto.manual
    def view() -> Response:
        world.Thing(name="view").save()
        world.db.session.commit()
        return Response(stream_with_context(generate()))

    with Body(world) as body:
        assert body.read() == "12"
    assert world.database.names == ["view", "one"]
    (message,) = told(caplog)
    assert "uncommitted work was dropped" in message


# Beside the generator --------------------------------------------------------------------------


def test_row_17_objects_of_the_view_can_be_read_in_the_generator(world: World) -> None:
    """What the view has loaded or saved stays readable after its commit."""

    @world.app.get("/")
    def view() -> Response:
        one = world.Thing(name="one").save()
        g.two = world.Thing(name="two").save()

        def generate() -> Items:
            yield f"{one.id and one.name};"
            yield f"{g.two.id and g.two.name};"

        return Response(stream_with_context(generate()))

    with Body(world) as body:
        assert body.read() == "one;two;"


def test_row_17_objects_of_the_view_can_be_changed_in_the_generator(world: World) -> None:
    """An object of the view that is taken into the generator's session is kept as changed there."""

    @world.app.get("/")
    def view() -> Response:
        one = world.Thing(name="one").save()

        def generate() -> Items:
            yield "1"
            world.db.session.merge(one).name = "changed"

        return Response(stream_with_context(generate()))

    with Body(world) as body:
        body.read()
    assert world.database.names == ["changed"]


def test_row_17_a_stream_holds_no_connection_until_it_asks_for_one(world: World) -> None:
    """While the generator works without the database, the pool has all connections."""
    held: list[int] = []

    def generate() -> Items:
        held.append(checked_out(world))
        yield "1"
        held.append(checked_out(world))
        visible(world)
        held.append(checked_out(world))
        yield "2"

    add_stream(world, generate)
    with Body(world) as body:
        held.append(checked_out(world))
        body.read()
    assert held == [0, 0, 0, 1]


@pytest.mark.parametrize("whole", [True, False])
def test_row_17_a_streamed_template_queries_while_it_is_sent(world: World, whole: bool) -> None:
    """A template that is streamed can query, and its connection goes back at its end."""

    @world.app.get("/")
    def view() -> Response:
        world.Thing(name="one").save()
        world.Thing(name="two").save()
        source = "{% for one in Thing.query.order_by('id') %}{{ one.name }};{% endfor %}"
        return Response(stream_template_string(source, Thing=world.Thing))

    with Body(world) as body:
        assert is_idle(world)
        assert (body.read() if whole else body.read(1)).startswith("one")


def test_row_17_a_query_made_by_the_view_and_run_by_the_generator(world: World) -> None:
    """A query that the view has made gives its connection back when the response is closed."""

    @world.app.get("/")
    def view() -> Response:
        world.Thing(name="one").save()
        query = world.Thing.query
        return Response(stream_with_context(f"{one.name};" for one in query))

    with Body(world) as body:
        assert body.read() == "one;"


def test_row_17_a_session_that_the_view_hands_to_the_generator(world: World) -> None:
    """What the generator does with the view's session object is kept, like with db.session."""

    @world.app.get("/")
    def view() -> Response:
        session = world.db.session()
        session.add(world.Thing(name="view"))

        def generate() -> Items:
            session.add(world.Thing(name="one"))
            yield "1"

        return Response(stream_with_context(generate()))

    with Body(world) as body:
        assert body.read() == "1"
    assert world.database.names == ["view", "one"]


@pytest.mark.parametrize("whole", [True, False])
def test_row_20_a_teardown_function_that_raises_after_a_stream(world: World, whole: bool) -> None:
    """A teardown function that fails neither undoes the generator's work nor keeps a session."""
    history: list[str] = []

    @world.app.teardown_request
    def teardown(_: BaseException | None) -> None:
        if history:  # Flask 3.1 calls it before the first item as well
            history.append("torn down")
            raise Planned

    def generate() -> Items:
        history.append("streams")
        yield from saving(world, "one", "two")()

    add_stream(world, generate)
    body = Body(world)
    assert body.read(1) == "one;"
    with pytest.raises(Planned):
        body.read() if whole else body.close()
    body.close()
    assert history == ["streams", "torn down"]
    assert is_idle(world)
    assert world.database.names == (["view", "one", "two"] if whole else ["view"])


def test_row_20_what_a_teardown_function_writes_after_a_stream_is_dropped(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """After the end of the generator everything is decided: later work is dropped and told of."""
    late: list[str] = []

    @world.app.teardown_request
    def teardown(_: BaseException | None) -> None:
        while late:
            world.Thing(name=late.pop()).save()

    def generate() -> Items:
        late.append("late")
        yield from saving(world, "one")()

    add_stream(world, generate)
    with Body(world) as body:
        body.read()
    assert late == []
    assert world.database.names == ["view", "one"]
    (message,) = told(caplog)
    assert "after the response was decided" in message


def in_turns(world: World, paths: tuple[str, str], *, whole: bool) -> list[str]:
    """Read two streams in turns, each in a context of its own as in a thread or greenlet."""
    turns = [contextvars.Context() for _ in paths]
    bodies = [turn.run(Body, world, path) for turn, path in zip(turns, paths, strict=True)]
    read = [turn.run(body.read, 1) for turn, body in zip(turns, bodies, strict=True)]
    for turn, body in zip(turns, bodies, strict=True):
        if whole or body is bodies[1]:
            read.append(turn.run(body.read))
        turn.run(body.close)
    return read


@pytest.mark.parametrize("whole", [True, False])
def test_row_30_two_streams_read_in_turns(world: World, whole: bool) -> None:
    """Two streams that are read alternately are two units, and one's end is not the other's."""

    def generate(which: str) -> Items:
        world.db.session.add(world.Thing(name=which))
        yield which
        yield f"{which} done"

    world.app.add_url_rule(
        "/<which>", "which", lambda which: Response(stream_with_context(generate(which)))
    )
    read = in_turns(world, ("/a", "/b"), whole=whole)
    assert read == ["a", "b", *(["a done"] if whole else []), "b done"]
    assert world.database.names == (["a", "b"] if whole else ["b"])
    assert is_idle(world)


def test_row_30_streams_in_threads(world: World) -> None:
    """Streams that threads read at the same time each keep their own work, or drop it."""
    count = 8
    begun = threading.Barrier(count)

    @world.app.get("/<int:number>")
    def view(number: int) -> Response:
        def generate() -> Items:
            yield "begin;"
            begun.wait(20)
            world.Thing(name=f"{number}").save()
            if number % 2:
                raise Planned
            yield "end"

        return Response(stream_with_context(generate()))

    read: dict[int, str] = {}

    def client(number: int) -> None:
        with closing(Body(world, f"/{number}")) as body:
            read[number] = body.read(1)
            try:
                read[number] += body.read()
            except Planned:
                read[number] += "cut"

    threads = [threading.Thread(target=client, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert read == {n: "begin;cut" if n % 2 else "begin;end" for n in range(count)}
    assert sorted(world.database.names) == ["0", "2", "4", "6"]
    assert is_idle(world)


def test_row_30_a_request_made_by_a_generator(world: World) -> None:
    """A request that a generator makes is a unit of its own, and leaves the generator's alone."""

    @world.app.get("/inner")
    def inner() -> tuple[str, int]:
        world.Thing(name="inner").save()
        return "inner", 400

    def generate() -> Items:
        world.db.session.add(world.Thing(name="one"))
        yield world.app.test_client().get("/inner").text
        world.Thing(name="two").save()

    add_stream(world, generate)
    with Body(world) as body:
        assert body.read() == "inner"
    assert world.database.names == ["view", "one", "two"]


@pytest.mark.skipif(OLD_STREAMS, reason="this Flask cannot stream from async views")
@pytest.mark.parametrize("whole", [True, False])
def test_row_30_an_async_view_that_returns_a_stream(world: World, whole: bool) -> None:
    """The stream of an async view is a unit like that of any other."""

    @world.app.get("/")
    async def view() -> Response:
        world.Thing(name="view").save()
        return Response(stream_with_context(saving(world, "one", "two")()))

    with Body(world) as body:
        assert world.database.names == ["view"]
        body.read() if whole else body.read(1)
    assert world.database.names == (["view", "one", "two"] if whole else ["view"])


def test_row_20_what_a_test_writes_in_a_preserved_context_is_dropped(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Inside of "with client:" the request is over: what is written then is never kept silently."""
    inside = has_app_context()
    world.app.add_url_rule("/", "view", lambda: world.Thing(name="view").save().name)
    with world.app.test_client() as client:
        assert client.get("/").text == "view"
        assert request.path == "/"
        assert visible(world) == ["view"]
        world.Thing(name="test").save()
        assert world.database.names == ["view"]
    assert world.database.names == ["view"]
    if inside:
        # Flask had the request share the context around it, whose own work this is.
        assert visible(world) == ["view", "test"]
        world.db.session.rollback()
    else:
        (message,) = told(caplog)
        assert "uncommitted work was dropped" in message


@pytest.mark.parametrize("whole", [True, False])
def test_row_17_a_stream_in_a_preserved_context(world: World, whole: bool) -> None:
    """A client that preserves the context reads a stream like any other."""
    add_stream(world, saving(world, "one", "two"))
    with world.app.test_client() as client:
        response = client.get("/", buffered=False)
        if whole:
            assert response.text == "one;two;"
        else:
            assert next(response.iter_encoded()) == b"one;"
        response.close()
    assert is_idle(world)
    assert world.database.names == (["view", "one", "two"] if whole else ["view"])


def test_row_23_a_unit_when_the_response_is_closed(world: World) -> None:
    """What call_on_close runs behind the response has no request: auto.unit() gives it a unit."""

    @world.app.get("/")
    def view() -> Response:
        world.Thing(name="view").save()
        response = Response("done")

        @response.call_on_close
        def closed() -> None:
            with world.auto.unit():
                world.Thing(name="closed").save()

        return response

    with Body(world) as body:
        assert body.read() == "done"
        assert world.database.names == ["view"]
    assert world.database.names == ["view", "closed"]


@pytest.mark.parametrize("whole", [True, False])
def test_row_23_a_unit_for_each_item(world: World, whole: bool) -> None:
    """A generator without a context uses auto.unit() for each item, which is kept at once."""

    def generate() -> Items:
        for name in ("one", "two"):
            with world.auto.unit():
                world.Thing(name=name).save()
            yield f"{name};"

    @world.app.get("/")
    def view() -> Response:
        world.Thing(name="view").save()
        return Response(generate())

    with Body(world) as body:
        assert body.read(1) == "one;"
        assert is_idle(world)
        assert world.database.names == ["view", "one"]
        if whole:
            assert body.read() == "two;"
    assert world.database.names == ["view", "one", *(["two"] if whole else [])]


@pytest.mark.parametrize("whole", [True, False])
def test_row_23_a_unit_in_a_stream_is_its_own(world: World, whole: bool) -> None:
    """auto.unit() in a generator with a context is kept, whatever becomes of the generator."""

    def generate() -> Items:
        with world.auto.unit():
            world.Thing(name="unit").save()
        world.Thing(name="one").save()
        yield "1"
        yield "2"

    add_stream(world, generate)
    with Body(world) as body:
        body.read() if whole else body.read(1)
    assert world.database.names == ["view", "unit", *(["one"] if whole else [])]


@pytest.mark.parametrize("status", [200, 404])
def test_row_17_a_file_is_sent(world: World, caplog: pytest.LogCaptureFixture, status: int) -> None:
    """send_file() streams without code of the application; the status decides as ever."""

    @world.app.get("/")
    def view() -> tuple[Response, int]:
        world.Thing(name="view").save()
        return send_file(io.BytesIO(b"content"), mimetype="text/plain"), status

    with Body(world) as body:
        assert world.database.names == (["view"] if status == 200 else [])
        assert is_idle(world)
        assert body.read() == "content"
    assert told(caplog) == []


# Real servers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gunicorn", "werkzeug"])
def server(
    request: pytest.FixtureRequest, postgresql: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with serve(request.param, postgresql.uri, tmp_path_factory.mktemp("streams")) as server:
        yield server


@pytest.fixture
def marker(postgresql: Database) -> Iterator[str]:
    """Name the rows of one test, and remove them."""
    yield uuid.uuid4().hex[:12]
    postgresql.empty()


def kept(database: Database, marker: str) -> list[str]:
    """The parts of one test that are durable."""
    return [part for name, _, part in (n.partition(":") for n in database.names) if name == marker]


def is_calm(server: Server) -> bool:
    """Whether the server holds no connection and no session."""
    return server.state() == {"checked_out": 0, "sessions": 0}


def test_row_17_server_sent_events_that_are_read_to_the_end(
    server: Server, postgresql: Database, marker: str
) -> None:
    """A client that has seen the end of the body can rely on the generator's work."""
    with server.get(f"/whole/{marker}") as client:
        body = read(client, END)
        assert kept(postgresql, marker) == ["view", "0", "1"]
    assert b"data: 1" in body
    assert body.endswith(END)
    assert eventually(lambda: is_calm(server))
    assert server.warnings(marker) == []


def test_row_17_a_client_of_server_sent_events_that_goes_away(
    server: Server, postgresql: Database, marker: str
) -> None:
    """When the client goes away, the generator's work is undone and its connection given back."""
    with server.get(f"/endless/{marker}") as client:
        assert END not in read(client, b"data: 1")
        assert kept(postgresql, marker) == ["view"]
        assert server.state() == {"checked_out": 1, "sessions": 1}
    assert eventually(lambda: is_calm(server))
    assert eventually(lambda: bool(server.warnings(marker)))
    (warning,) = server.warnings(marker)
    assert "the client went away" in warning
    assert kept(postgresql, marker) == ["view"]


@pytest.mark.parametrize("kind", ["raises", "refused"])
def test_row_17_server_sent_events_that_fail(
    server: Server, postgresql: Database, marker: str, kind: str
) -> None:
    """Where the generator or its commit fails, the client does not get the last chunk."""
    with server.get(f"/{kind}/{marker}") as client:
        body = read(client)
    assert b"data: 1" in body
    assert not body.endswith(END)
    assert eventually(lambda: is_calm(server))
    assert kept(postgresql, marker) == ["view"]
