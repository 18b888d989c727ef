"""The contract, rows 21 to 23 and 29 to 34: scripts, units, and contexts beside one another."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, copy_current_request_context, g, has_app_context, request
from sqlalchemy.exc import DBAPIError, IntegrityError

from flask_autosession import DoomedError, NoUnitError, SharedConnectionError

from .world import Database, World, metadata, thing

LOGGER = "flask_autosession"


@pytest.fixture(autouse=True)
def debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger=LOGGER)


def told(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """The messages of our logger at a level and above."""
    return [r.getMessage() for r in caplog.records if r.name == LOGGER and r.levelno >= level]


def visible(world: World) -> list[str]:
    """The names that the current session sees."""
    query = sa.select(world.Thing.name).order_by(world.Thing.id)
    return list(world.db.session.scalars(query))


def hold(world: World, name: str) -> Any:
    """Add a thing that waits for the commit; where others can surely write then, flush it too."""
    one = world.Thing(name=name)
    world.db.session.add(one)
    # SQLite lets one transaction write at a time; MariaDB locks the gaps that deleted rows leave.
    if world.database.kind == "postgresql":
        world.db.session.flush()
    return one


def in_thread(function: Callable[[], Any]) -> Any:
    """Run a function in a thread to its end; return what it returns, raise what it raises."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    ((result, error),) = outcome
    if error is not None:
        raise error
    return result


def enforce_foreign_keys(world: World) -> None:
    """Let SQLite check foreign keys too, as the others do by themselves."""
    with world.app.app_context():
        for engine in world.db.engines.values():
            if engine.dialect.name == "sqlite":

                @sa.event.listens_for(engine, "connect")
                def connect(connection: Any, _: Any) -> None:
                    connection.execute("PRAGMA foreign_keys = ON")


def break_commit(world: World, connection: sa.Connection, table: str = "thing") -> None:
    """See to it that the next COMMIT on a connection fails, as it does in real life."""
    if connection.dialect.name == "mysql":  # it has no deferred constraints
        number = connection.connection.driver_connection.thread_id()  # type: ignore[union-attr]
        with world.database.engine.connect() as admin:
            admin.exec_driver_sql(f"KILL {number}")
    else:
        connection.connection.driver_connection.cursor().execute(  # type: ignore[union-attr]
            f"INSERT INTO {table} (id, name, parent) VALUES (900, 'orphan', 901)"
        )


# Rows 21 and 22: a script's context -----------------------------------------------------------


@pytest.mark.parametrize("pending", [False, True])
def test_row_21_a_context_left_cleanly_is_committed(world: World, pending: bool) -> None:
    """A script needs no commit: leaving its app context cleanly keeps what it did."""
    with world.app.app_context():
        one = world.Thing(name="script")
        world.db.session.add(one) if pending else one.save()
        assert world.database.names == []
    assert world.database.names == ["script"]


@pytest.mark.parametrize("code", [None, 0])
def test_row_21_sys_exit_with_success_is_committed(world: World, code: int | None) -> None:
    """sys.exit() and sys.exit(0) are clean ways to leave."""
    with pytest.raises(SystemExit), world.app.app_context():
        world.Thing(name="script").save()
        sys.exit(code)
    assert world.database.names == ["script"]


def test_row_21_a_context_pushed_and_popped_by_hand(world: World) -> None:
    """push() and pop() count as entering and leaving."""
    context = world.app.app_context()
    context.push()
    world.Thing(name="script").save()
    context.pop()
    assert world.database.names == ["script"]


def test_row_21_an_exception_already_in_flight_does_not_count(world: World) -> None:
    """Work that an except block does in a context of its own is committed."""
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        with world.app.app_context():
            world.Thing(name="with").save()
        context = world.app.app_context()
        context.push()
        world.Thing(name="push").save()
        context.pop()
    assert world.database.names == ["with", "push"]


def test_row_21_a_failing_flush_raises(world: World) -> None:
    """A pending change that fails when the context is left raises there; nothing is kept."""
    world.database.insert("same")
    with pytest.raises(IntegrityError), world.app.app_context():
        world.Thing(name="other").save()
        world.db.session.add(world.Thing(name="same"))
    assert world.database.names == ["same"]


def test_row_21_a_failing_commit_raises(world: World) -> None:
    """A COMMIT that fails when the context is left raises there; nothing is kept."""
    enforce_foreign_keys(world)
    with pytest.raises(DBAPIError), world.app.app_context():
        world.Thing(name="script").save()
        break_commit(world, world.db.session.connection())
    assert world.database.names == []


def test_row_21_a_swallowed_failure_raises(world: World) -> None:
    """A script that swallows a failed save is told so when it ends; nothing is kept."""
    with pytest.raises(DoomedError), world.app.app_context():
        world.Thing(name="same").save()
        with pytest.raises(IntegrityError):
            world.Thing(name="same").save()
    assert world.database.names == []


def test_row_21_a_context_used_again_is_a_new_unit(world: World) -> None:
    """A context that is pushed again after it was left works as a new one."""
    context = world.app.app_context()
    for name in ("one", "two"):
        with context:
            world.Thing(name=name).save()
    assert world.database.names == ["one", "two"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit(3)])
def test_row_22_an_exception_rolls_back(world: World, error: Any) -> None:
    """A context that any other exception leaves is rolled back, and the exception goes on."""
    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind), world.app.app_context():
        world.Thing(name="script").save()
        raise error
    assert world.database.names == []


@pytest.mark.parametrize("value", [False, "no", "0"])
def test_row_21_commit_contexts_can_be_switched_off(database: Database, value: Any) -> None:
    """With AUTOSESSION_COMMIT_CONTEXTS off, a script keeps only what it commits itself."""
    world = World(database, AUTOSESSION_COMMIT_CONTEXTS=value)

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="request").save()
        return "done"

    with world.app.app_context():
        world.Thing(name="committed").save()
        world.db.session.commit()
        world.Thing(name="left").save()
    with world.auto.unit():
        world.Thing(name="unit").save()
    world.app.test_client().get("/")
    assert world.database.names == ["committed", "unit", "request"]
    world.close()


# Row 23: auto.unit() --------------------------------------------------------------------------


def test_row_23_a_unit_left_cleanly_is_committed(world: World) -> None:
    """A unit is durable as soon as its block is left, and opens its own app context."""
    with world.auto.unit():
        assert has_app_context()
        world.Thing(name="unit").save()
        assert world.database.names == []
    assert not has_app_context()
    assert world.database.names == ["unit"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit(3)])
def test_row_23_an_exception_rolls_the_unit_back(world: World, error: Any) -> None:
    """A unit that an exception leaves is rolled back, and the exception goes on."""
    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind), world.auto.unit():
        world.Thing(name="unit").save()
        raise error
    assert world.database.names == []


def test_row_23_a_failing_commit_raises(world: World) -> None:
    """A unit whose COMMIT fails raises on leaving, and runs its on_rollback functions."""
    enforce_foreign_keys(world)
    history: list[str] = []
    with pytest.raises(DBAPIError), world.auto.unit():
        world.Thing(name="unit").save()
        world.auto.on_commit(lambda: history.append("committed"))
        world.auto.on_rollback(lambda: history.append("rolled back"))
        break_commit(world, world.db.session.connection())
    assert history == ["rolled back"]
    assert world.database.names == []


def test_row_23_a_swallowed_failure_raises(world: World) -> None:
    """A unit that swallows a failed save raises DoomedError on leaving; nothing is kept."""
    with pytest.raises(DoomedError) as info, world.auto.unit():
        world.Thing(name="same").save()
        with pytest.raises(IntegrityError):
            world.Thing(name="same").save()
    assert isinstance(info.value.first_failure, IntegrityError)
    assert world.database.names == []


@pytest.mark.parametrize("fails", [False, True])
def test_row_23_a_unit_inside_a_request_is_its_own(world: World, fails: bool) -> None:
    """A unit inside a request has its own session, and neither's end touches the other's."""
    seen: list[Any] = []

    @world.app.get("/")
    def view() -> tuple[str, int]:
        held = hold(world, "request")
        outer = world.db.session()
        with pytest.raises(ZeroDivisionError) if fails else nullcontext(), world.auto.unit():
            seen.append(world.db.session() is outer)
            seen.append(visible(world))
            world.Thing(name="unit").save()
            if fails:
                raise ZeroDivisionError
        seen.append(world.db.session() is outer)
        seen.append(held in world.db.session)
        seen.append(world.database.names)
        return "done", 200 if fails else 400

    world.app.test_client().get("/")
    assert seen == [False, [], True, True, [] if fails else ["unit"]]
    assert world.database.names == (["request"] if fails else ["unit"])


def test_row_23_a_unit_inside_a_unit_and_a_script(world: World) -> None:
    """Units nest: the inner one's fate is its own, and so is the outer one's."""
    for outer in (world.auto.unit, world.app.app_context):
        with pytest.raises(ZeroDivisionError), outer():
            hold(world, f"outer {outer.__name__}")
            with world.auto.unit():
                world.Thing(name=f"inner {outer.__name__}").save()
            raise ZeroDivisionError
    assert world.database.names == ["inner unit", "inner app_context"]


def test_row_23_a_worker_loop(world: World) -> None:
    """A loop that opens a unit per job keeps the good jobs and loses the bad ones."""
    for number in range(6):
        try:
            with world.auto.unit():
                world.Thing(name=f"job {number}").save()
                if number % 2:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            continue
    assert world.database.names == ["job 0", "job 2", "job 4"]


def test_row_23_in_a_thread(world: World) -> None:
    """A thread that has no context gets one from auto.unit()."""

    def work() -> None:
        with world.auto.unit():
            world.Thing(name="thread").save()

    in_thread(work)
    assert world.database.names == ["thread"]


def test_row_23_in_a_socket_handler(world: World) -> None:
    """In a request context that never dispatches, as socket handlers have, a unit commits."""
    with world.app.test_request_context("/socket"), world.auto.unit():
        world.Thing(name="message").save()
    assert world.database.names == ["message"]


def test_row_23_commits_in_a_request_are_those_of_a_script(database: Database) -> None:
    """Inside a unit db.session.commit() always commits, also in a request that forbids it."""
    world = World(database, AUTOSESSION_EXPLICIT_COMMIT="forbid")

    @world.app.get("/")
    def view() -> tuple[str, int]:
        with world.auto.unit():
            world.Thing(name="unit").save()
            world.db.session.commit()
        return "done", 400

    assert world.app.test_client().get("/").status_code == 400
    assert world.database.names == ["unit"]
    world.close()


def test_row_23_with_two_apps_the_app_must_be_named(database: Database) -> None:
    """Outside of any context auto.unit() takes the only app there is, or the one it is given."""
    world = World(database)
    first = world.app
    second = world.make_app()
    world.auto.init_app(second)
    with pytest.raises(NoUnitError), world.auto.unit():
        pass
    for app in (first, second):
        with world.auto.unit(app):
            world.Thing(name=f"unit of {'first' if g and app is first else 'second'}").save()
    with first.app_context(), world.auto.unit():
        world.Thing(name="unit of the current app").save()
    assert world.database.names == ["unit of first", "unit of second", "unit of the current app"]
    for world.app in (first, second):
        world.close()


# Row 29: a teardown function that fails -------------------------------------------------------


def failing_teardown(app: Flask) -> None:
    """What a careless extension does: its teardown function raises."""

    @app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        raise LookupError("from another extension")


def failing_world(database: Database, first: bool) -> World:
    """A world whose app has a failing teardown function, registered first or last."""

    class Other(World):
        def make_app(self, **config: Any) -> Flask:
            app = super().make_app(**config)
            if first:
                failing_teardown(app)
            return app

    world = Other(database)
    if not first:
        failing_teardown(world.app)
    return world


FIRST = pytest.mark.parametrize("first", [True, False], ids=["registered first", "last"])


@FIRST
@pytest.mark.parametrize(("status", "names"), [(200, ["view"]), (400, [])])
def test_row_29_the_request_ends_and_its_session_is_removed(
    database: Database, first: bool, status: int, names: list[str]
) -> None:
    """A teardown function that raises changes neither the request's fate nor the session's end."""
    world = failing_world(database, first)
    sessions: list[Any] = []

    @world.app.get("/")
    def view() -> tuple[str, int]:
        sessions.append(world.db.session())
        world.Thing(name="view").save()
        return "done", status

    with pytest.raises(LookupError):
        world.app.test_client().get("/")
    (session,) = sessions
    assert not session.in_transaction()
    assert list(session) == []
    assert world.database.names == names
    with pytest.raises(LookupError):
        world.close()


@FIRST
def test_row_29_a_script_is_committed_all_the_same(database: Database, first: bool) -> None:
    """A script whose context cannot be torn down without error has its work committed."""
    world = failing_world(database, first)
    sessions: list[Any] = []
    with pytest.raises(LookupError), world.app.app_context():
        sessions.append(world.db.session())
        world.Thing(name="script").save()
    assert not sessions[0].in_transaction()
    assert world.database.names == ["script"]
    with pytest.raises(LookupError):
        world.close()


@FIRST
@pytest.mark.parametrize("kind", ["request", "app_context"])
def test_row_29_no_later_context_inherits_the_session(
    database: Database, first: bool, kind: str
) -> None:
    """Over 200 contexts at reused addresses, none finds another's session or commits its rows."""
    world = failing_world(database, first)
    addresses: list[int] = []
    sessions: set[Any] = set()
    dirty: list[int] = []

    def work(number: int) -> None:
        addresses.append(id(g._get_current_object()))
        session = world.db.session()
        if session.in_transaction() or session.new or session in sessions:
            dirty.append(number)
        sessions.add(session)
        world.db.session.add(world.Thing(name=f"leak {number}"))
        if not number % 20:
            world.db.session.flush()

    @world.app.get("/<int:number>")
    def view(number: int) -> tuple[str, int]:
        work(number)
        return "no", 400

    client = world.app.test_client()
    for number in range(4000):
        if kind == "request":
            with pytest.raises(LookupError):
                client.get(f"/{number}")
        else:
            with pytest.raises(LookupError), world.app.app_context():
                work(number)
                raise ZeroDivisionError
        if number >= 199 and len(set(addresses)) < len(addresses):
            break  # usually long since; some interpreters take their time to use one again
    assert dirty == []
    assert len(set(addresses)) < len(addresses), (
        "no address was used again: this run has shown nothing"
    )
    assert world.database.names == []
    with pytest.raises(LookupError):
        world.close()


@FIRST
def test_row_29_what_a_failing_teardown_function_wrote_is_nobodys(
    database: Database, first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that a teardown function writes before it raises are dropped, and the log says so."""

    paths: list[str] = []

    class Other(World):
        def make_app(self, **config: Any) -> Flask:
            app = super().make_app(**config)
            if first:
                app.teardown_appcontext(self.teardown)
            return app

        def teardown(self, error: BaseException | None) -> None:
            if paths == ["/first"]:
                self.Thing(name="teardown").save()
                raise LookupError

    world = Other(database)
    if not first:
        world.app.teardown_appcontext(world.teardown)

    @world.app.get("/first")
    @world.app.get("/second")
    def view() -> str:
        paths.append(request.path)
        world.Thing(name=request.path).save()
        return "done"

    client = world.app.test_client()
    with pytest.raises(LookupError):
        client.get("/first")
    assert len(told(caplog)) == 1
    client.get("/second")
    assert world.database.names == ["/first", "/second"]
    world.close()


def test_row_29_a_failing_teardown_request_function(world: World) -> None:
    """A teardown_request function that raises leaves the session to nobody either."""
    sessions: list[Any] = []

    @world.app.get("/<int:number>")
    def view(number: int) -> tuple[str, int]:
        assert not world.db.session().in_transaction()
        sessions.append(world.db.session())
        world.db.session.add(world.Thing(name=f"leak {number}"))
        return "no", 400

    @world.app.teardown_request
    def teardown(error: BaseException | None) -> None:
        world.db.session.execute(sa.insert(thing).values(name="teardown"))
        raise LookupError

    client = world.app.test_client()
    for number in range(10):
        with pytest.raises(LookupError):
            client.get(f"/{number}")
    assert len(set(sessions)) == 10
    assert world.database.names == []


# Row 30: async views, threads, greenlets ------------------------------------------------------


@pytest.mark.parametrize(("status", "names"), [(200, ["async"]), (400, []), (500, [])])
def test_row_30_an_async_view_is_a_unit(world: World, status: int, names: list[str]) -> None:
    """An async view is committed or rolled back as any other, an exception included."""
    pytest.importorskip("asgiref")

    @world.app.get("/")
    async def view() -> tuple[str, int]:
        await asyncio.sleep(0)
        world.Thing(name="async").save()
        await asyncio.sleep(0)
        if status == 500:
            raise ZeroDivisionError
        return "done", status

    assert world.app.test_client().get("/").status_code == status
    assert world.database.names == names


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_row_30_requests_side_by_side_are_units_of_their_own(world: World, kind: str) -> None:
    """Requests in threads at the same time share no session, and each keeps to its status."""
    if kind == "async":
        pytest.importorskip("asgiref")
    together = threading.Barrier(3, timeout=30)
    sessions: list[Any] = []
    new: list[list[str]] = []

    def work(status: int) -> tuple[str, int]:
        sessions.append(world.db.session())
        world.db.session.add(world.Thing(name=f"{kind} {status}"))
        together.wait()
        new.append([one.name for one in world.db.session.new])
        together.wait()
        return "done", status

    if kind == "sync":
        world.app.add_url_rule("/<int:status>", "view", work)
    else:

        @world.app.get("/<int:status>")
        async def view(status: int) -> tuple[str, int]:
            await asyncio.sleep(0)
            return work(status)

    def visit(status: int) -> None:
        assert world.app.test_client().get(f"/{status}").status_code == status

    threads = [threading.Thread(target=visit, args=(status,)) for status in (200, 201, 400)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(set(sessions)) == 3
    assert sorted(new) == [[f"{kind} 200"], [f"{kind} 201"], [f"{kind} 400"]]
    assert sorted(world.database.names) == [f"{kind} 200", f"{kind} 201"]


@pytest.mark.parametrize("fails", [False, True])
def test_row_30_a_thread_with_its_own_context_inside_a_request(world: World, fails: bool) -> None:
    """A thread that a view starts sees nothing of the view's unit, nor ends it."""
    seen: list[Any] = []

    def work() -> None:
        with world.app.app_context():
            seen.append(visible(world))
            world.Thing(name="thread").save()
            if fails:
                raise ZeroDivisionError

    @world.app.get("/")
    def view() -> tuple[str, int]:
        held = hold(world, "view")
        with pytest.raises(ZeroDivisionError) if fails else nullcontext():
            in_thread(work)
        seen.append(held in world.db.session)
        seen.append(world.database.names)
        return "done", 200 if fails else 400

    world.app.test_client().get("/")
    assert seen == [[], True, [] if fails else ["thread"]]
    assert world.database.names == (["view"] if fails else ["thread"])


def test_row_30_greenlets_with_contexts_of_their_own(world: World) -> None:
    """Greenlets that take turns in one thread have a unit each."""
    greenlet = pytest.importorskip("greenlet")
    main = greenlet.getcurrent()
    seen: list[list[str]] = []

    def work(name: str, fails: bool) -> None:
        try:
            with world.app.app_context():
                world.db.session.add(world.Thing(name=name))
                main.switch()
                seen.append([one.name for one in world.db.session.new])
                main.switch()
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass

    one, two = greenlet.greenlet(work), greenlet.greenlet(work)
    one.switch("one", False)
    two.switch("two", True)
    for _ in range(2):
        one.switch()
        two.switch()
    assert one.dead
    assert two.dead
    assert seen == [["one"], ["two"]]
    assert world.database.names == ["one"]


@pytest.mark.parametrize(("status", "names"), [(200, ["view", "to_thread"]), (400, [])])
def test_row_30_to_thread_shares_the_unit(world: World, status: int, names: list[str]) -> None:
    """What asyncio.to_thread runs belongs to the request's unit, and ends with it."""
    pytest.importorskip("asgiref")
    seen: list[Any] = []

    @world.app.get("/")
    async def view() -> tuple[str, int]:
        world.Thing(name="view").save()
        session = world.db.session()

        def work() -> None:
            seen.append(world.db.session() is session)
            seen.append(visible(world))
            world.Thing(name="to_thread").save()

        await asyncio.to_thread(work)
        seen.append(world.database.names)
        return "done", status

    assert world.app.test_client().get("/").status_code == status
    assert seen == [True, ["view"], []]
    assert world.database.names == names


def test_row_30_a_copied_request_context_is_a_unit_of_its_own(world: World) -> None:
    """copy_current_request_context gives a thread the request, not the request's unit."""
    seen: list[Any] = []

    @world.app.get("/here")
    def view() -> tuple[str, int]:
        hold(world, "view")
        session = world.db.session()

        @copy_current_request_context
        def work() -> None:
            seen.append(request.path)
            seen.append(world.db.session() is session)
            seen.append(visible(world))

        in_thread(work)
        seen.append(world.db.session() is session)
        return "done", 200

    world.app.test_client().get("/here")
    assert seen == ["/here", False, [], True]
    assert world.database.names == ["view"]


# Row 31: a request inside an outer app context ------------------------------------------------


@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.parametrize("status", [200, 400])
def test_row_31_the_outer_work_is_committed_on_entering(
    world: World, caplog: pytest.LogCaptureFixture, pending: bool, status: int
) -> None:
    """A request sees what the outer context did before, which is committed then, and logged."""
    seen: list[Any] = []

    @world.app.get("/")
    def view() -> tuple[str, int]:
        seen.append((visible(world), world.database.names))
        seen.append([m for m in told(caplog, logging.DEBUG) if "committed" in m] != [])
        return "done", status

    with world.app.app_context():
        one = world.Thing(name="outer")
        world.db.session.add(one) if pending else one.save()
        assert world.app.test_client().get("/").status_code == status
    assert seen == [(["outer"], ["outer"]), True]
    assert world.database.names == ["outer"]


@pytest.mark.parametrize("how", ["status", "exception", "doom", "swallowed"])
def test_row_31_a_failing_request_takes_back_its_own_work_only(world: World, how: str) -> None:
    """A request that fails inside an outer context undoes neither what came before nor after."""

    @world.app.get("/")
    def view() -> tuple[str, int]:
        world.Thing(name="request").save()
        if how == "exception":
            raise ZeroDivisionError
        if how == "doom":
            world.auto.doom()
        if how == "swallowed":
            with pytest.raises(IntegrityError):
                world.Thing(name="request").save()
        return "done", 400 if how == "status" else 200

    with world.app.app_context():
        world.Thing(name="before").save()
        world.app.test_client().get("/")
        assert world.database.names == ["before"]
        world.Thing(name="after").save()
    assert world.database.names == ["before", "after"]


@pytest.mark.parametrize("status", [200, 400])
def test_row_31_the_outer_session_lives_on(world: World, status: int) -> None:
    """After a request the outer context has its session still, with its objects in it."""

    @world.app.get("/")
    def view() -> tuple[str, int]:
        world.Thing(name="request").save()
        return "done", status

    with world.app.app_context():
        session = world.db.session()
        one = world.Thing(name="outer").save()
        for _ in range(2 if status == 400 else 1):
            world.app.test_client().get("/")
        assert world.db.session() is session
        assert one in world.db.session
        assert one.name == "outer"
        one.update(name="outer, changed")
    assert world.database.names == ["outer, changed", *(["request"] if status == 200 else [])]


@pytest.mark.parametrize("how", ["success", "status", "exception"])
def test_row_31_outer_objects_are_fresh(world: World, how: str) -> None:
    """An object of the outer context shows what the request has made of its row, if it was kept."""

    @world.app.get("/<int:ident>")
    def view(ident: int) -> tuple[str, int]:
        one = world.Thing.get(ident)
        assert one is not None
        one.update(name="changed")
        if how == "exception":
            raise ZeroDivisionError
        return "done", 200 if how == "success" else 400

    with world.app.app_context():
        one = world.Thing(name="as it was").save()
        assert one.name == "as it was"
        world.app.test_client().get(f"/{one.id}")
        expected = "changed" if how == "success" else "as it was"
        assert one.name == expected
        assert world.Thing.query.one() is one
    assert world.database.names == [expected]


def test_row_31_outer_objects_see_what_others_committed(world: World) -> None:
    """After a request that only read, the outer context sees what was committed meanwhile."""
    seen: list[list[str]] = []

    @world.app.get("/")
    def view() -> str:
        world.database.insert("from elsewhere")
        seen.append(visible(world))
        return "done"

    with world.app.app_context():
        assert visible(world) == []
        world.app.test_client().get("/")
        seen.append(visible(world))
    assert seen == [["from elsewhere"], ["from elsewhere"]]


def test_row_31_an_exception_in_the_outer_context_keeps_the_requests(world: World) -> None:
    """What was committed before and by the request stays when the outer context fails later."""

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="request").save()
        return "done"

    with pytest.raises(ZeroDivisionError), world.app.app_context():
        world.Thing(name="before").save()
        world.app.test_client().get("/")
        world.Thing(name="after").save()
        raise ZeroDivisionError
    assert world.database.names == ["before", "request"]


def test_row_31_what_a_request_leaves_behind_is_not_the_outer_contexts(world: World) -> None:
    """Rows that a teardown function leaves uncommitted are not committed with the outer work."""

    @world.app.get("/")
    def view() -> str:
        return "done"

    @world.app.teardown_request
    def teardown(error: BaseException | None) -> None:
        world.Thing(name="left").save()

    with world.app.app_context():
        world.app.test_client().get("/")
        world.Thing(name="after").save()
    assert world.database.names == ["after"]


def test_row_31_outer_callbacks_run_with_the_outer_work(world: World) -> None:
    """The outer context's on_commit functions run when a request's start commits its work."""
    history: list[str] = []

    @world.app.get("/")
    def view() -> tuple[str, int]:
        world.auto.on_commit(lambda: history.append("request committed"))
        world.auto.on_rollback(lambda: history.append("request rolled back"))
        history.append("view")
        return "done", 400

    with world.app.app_context():
        world.auto.on_commit(lambda: history.append("outer committed"))
        world.auto.on_rollback(lambda: history.append("outer rolled back"))
        world.app.test_client().get("/")
        world.auto.on_commit(lambda: history.append("rest committed"))
    assert history == ["outer committed", "view", "request rolled back", "rest committed"]


def test_row_31_explicit_commits_mean_what_they_mean_in_a_request(database: Database) -> None:
    """Inside an outer context the view's commits follow the mode, the outer ones do not."""
    world = World(database, AUTOSESSION_EXPLICIT_COMMIT="flush")

    @world.app.get("/")
    def view() -> tuple[str, int]:
        world.Thing(name="request").save()
        world.db.session.commit()
        return "done", 400

    with pytest.raises(ZeroDivisionError), world.app.app_context():
        world.app.test_client().get("/")
        world.Thing(name="outer").save()
        world.db.session.commit()
        raise ZeroDivisionError
    assert world.database.names == ["outer"]
    world.close()


def test_row_31_a_client_that_preserves_its_context(world: World) -> None:
    """Within ``with client:`` each request's work is durable before the context is gone."""

    @world.app.get("/<name>/<int:status>")
    def view(name: str, status: int) -> tuple[str, int]:
        world.Thing(name=name).save()
        return "done", status

    with world.app.test_client() as client:
        client.get("/one/200")
        assert world.database.names == ["one"]
        client.get("/two/400")
        client.get("/three/200")
        assert world.database.names == ["one", "three"]
    assert world.database.names == ["one", "three"]


@pytest.mark.parametrize("fails", [False, True])
def test_row_31_a_context_of_another_app_around_it_is_left_alone(world: World, fails: bool) -> None:
    """A request to one app inside another app's context does not touch that one's unit."""
    other = World(world.database)

    @other.app.get("/")
    def view() -> tuple[str, int]:
        other.Thing(name="request").save()
        return "done", 200

    with pytest.raises(ZeroDivisionError) if fails else nullcontext(), world.app.app_context():
        hold(world, "outer")
        other.app.test_client().get("/")
        assert world.database.names == ["request"]
        if fails:
            raise ZeroDivisionError
    assert sorted(world.database.names) == (["request"] if fails else ["outer", "request"])
    other.close()


# Row 32: several binds ------------------------------------------------------------------------


class TwoBinds(World):
    """A world with a second database, an SQLite file, under the bind key ``other``."""

    def __init__(self, database: Database, path: Path) -> None:
        self.other_uri = f"sqlite:///{path / 'second.db'}"
        super().__init__(database, SQLALCHEMY_BINDS={"other": self.other_uri})
        enforce_foreign_keys(self)
        db = self.db

        class Other(db.Model):  # type: ignore[name-defined,misc]
            __bind_key__ = "other"
            __tablename__ = "other"
            id = sa.Column(sa.Integer, primary_key=True)
            name = sa.Column(sa.String(50), nullable=False, unique=True)
            parent = sa.Column(sa.ForeignKey("other.id", deferrable=True, initially="DEFERRED"))

        self.Other = Other
        with self.app.app_context():
            db.create_all("other")
            self.engines = {"default": db.engine, "other": db.engines["other"]}
        self.second = sa.create_engine(self.other_uri, poolclass=sa.pool.NullPool)

    @property
    def other_names(self) -> list[str]:
        with self.second.connect() as connection:
            return list(connection.execute(sa.text("SELECT name FROM other ORDER BY id")).scalars())

    @property
    def both(self) -> dict[str, list[str]]:
        """What is durable in each database."""
        return {"default": self.database.names, "other": self.other_names}

    def write(self, first: str, name: str) -> None:
        """Write to both, to one of them first."""
        models = {"default": self.Thing, "other": self.Other}
        for key in sorted(models, key=lambda key: key != first):
            models[key](name=name).save()

    def connection(self, key: str) -> sa.Connection:
        return self.db.session.connection(bind_arguments={"bind": self.engines[key]})

    def spoil(self, key: str, connection: sa.Connection | None = None) -> None:
        """Make the COMMIT on one bind fail."""
        table = {"default": "thing", "other": "other"}[key]
        break_commit(self, connection or self.connection(key), table)


KEYS = {"default", "other"}
ORDER = pytest.mark.parametrize("first", sorted(KEYS))


@pytest.fixture
def two(database: Database, tmp_path: Path) -> Iterator[TwoBinds]:
    world = TwoBinds(database, tmp_path)
    yield world
    world.close()


@ORDER
@pytest.mark.parametrize(("status", "names"), [(200, ["both"]), (400, []), (500, [])])
def test_row_32_one_unit_over_two_binds(
    two: TwoBinds, first: str, status: int, names: list[str]
) -> None:
    """A request that writes to two databases is committed on both or rolled back on both."""

    @two.app.get("/")
    def view() -> tuple[str, int]:
        two.write(first, "both")
        if status == 500:
            raise ZeroDivisionError
        return "done", status

    assert two.app.test_client().get("/").status_code == status
    assert two.both == {"default": names, "other": names}


@ORDER
def test_row_32_everything_is_flushed_before_the_first_commit(two: TwoBinds, first: str) -> None:
    """Every INSERT on either database comes before the first COMMIT on any."""
    history: list[str] = []
    for engine in two.engines.values():

        @sa.event.listens_for(engine, "before_cursor_execute")
        def execute(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith("INSERT"):
                history.append("insert")

        @sa.event.listens_for(engine, "commit")
        def commit(conn: Any) -> None:
            history.append("commit")

    @two.app.get("/")
    def view() -> str:
        models = {"default": two.Thing, "other": two.Other}
        for key in sorted(models, key=lambda key: key != first):
            two.db.session.add(models[key](name="both"))
        return "done"

    @two.app.after_request
    def after(response: Any) -> Any:
        two.db.session.add(two.Other(name="late"))
        two.db.session.add(two.Thing(name="late"))
        return response

    assert two.app.test_client().get("/").status_code == 200
    assert history == ["insert"] * 4 + ["commit"] * 2
    assert two.both == {"default": ["both", "late"], "other": ["both", "late"]}


@ORDER
def test_row_32_a_flush_that_fails_on_one_bind_keeps_nothing_on_either(
    two: TwoBinds, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where one database refuses a row, the other one commits nothing, and no ERROR is due."""
    with two.auto.unit():
        two.write("default", "old")
    models = {"default": two.Thing, "other": two.Other}

    @two.app.get("/")
    def view() -> str:
        for key, model in models.items():
            two.db.session.add(model(name="old" if key == first else "new"))
        return "done"

    assert two.app.test_client().get("/").status_code == 500
    assert two.both == {"default": ["old"], "other": ["old"]}
    assert told(caplog, logging.ERROR) == []


@ORDER
@pytest.mark.parametrize("handled", [False, True])
def test_row_32_a_later_commit_that_fails_is_an_error_that_names_both(
    two: TwoBinds, first: str, handled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """If the second COMMIT fails after the first, the client is told, and the log names both."""
    order: list[str] = []
    connections: dict[str, sa.Connection] = {}

    def follow(key: str) -> None:
        @sa.event.listens_for(two.engines[key], "commit")
        def commit(_: sa.Connection) -> None:
            order.append(key)
            if len(order) == 1:
                (later,) = KEYS - {key}
                two.spoil(later, connections[later])

    for key in KEYS:
        follow(key)

    @two.app.get("/")
    def view() -> str:
        two.write(first, "both")
        connections.update({key: two.connection(key) for key in KEYS})
        return "done"

    if handled:

        @two.app.errorhandler(DBAPIError)
        def handler(error: DBAPIError) -> tuple[str, int]:
            return type(error).__name__, 503

    response = two.app.test_client().get("/")
    assert response.status_code == (503 if handled else 500)
    done, failed = order[:2]
    assert two.both == {done: ["both"], failed: []}
    (message,) = told(caplog, logging.ERROR)
    for uri in (two.database.uri, two.other_uri):
        assert str(sa.make_url(uri).database) in message
    names = {"default": two.database.uri, "other": two.other_uri}
    places = [message.index(str(sa.make_url(names[key]).database)) for key in (done, failed)]
    assert places == sorted(places)


@pytest.mark.parametrize("broken", sorted(KEYS))
@ORDER
def test_row_32_a_deferred_failure_in_one_bind(
    two: TwoBinds, first: str, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever bind's COMMIT fails: a 500, and an ERROR exactly if the other had committed."""

    @two.app.get("/")
    def view() -> str:
        two.write(first, "both")
        two.spoil(broken)
        return "done"

    assert two.app.test_client().get("/").status_code == 500
    durable = two.both
    (sound,) = KEYS - {broken}
    assert durable[broken] == []
    assert durable[sound] in ([], ["both"])
    assert len(told(caplog, logging.ERROR)) == len(durable[sound])


def test_row_32_callbacks_of_a_split_unit(two: TwoBinds) -> None:
    """A unit that could not be committed everywhere runs on_rollback, not on_commit."""
    history: list[str] = []

    @two.app.get("/")
    def view() -> str:
        two.write("default", "both")
        two.auto.on_commit(lambda: history.append("committed"))
        two.auto.on_rollback(lambda: history.append("rolled back"))
        two.spoil("other")
        return "done"

    assert two.app.test_client().get("/").status_code == 500
    assert history == ["rolled back"]


def test_row_32_outside_of_a_request_it_raises(
    two: TwoBinds, caplog: pytest.LogCaptureFixture
) -> None:
    """In a script too, a COMMIT that fails on one bind raises and keeps nothing there."""
    with pytest.raises(IntegrityError), two.app.app_context():
        two.write("default", "both")
        two.spoil("other")
    assert two.other_names == []
    assert len(told(caplog, logging.ERROR)) == len(two.database.names)


# Row 33: a context inside a request, and a request without a dispatch -------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_row_33_an_app_context_inside_a_request_is_its_own_unit(world: World, fails: bool) -> None:
    """An app context that a view opens has its own session and unit, and ends it by itself."""
    seen: list[Any] = []

    @world.app.get("/")
    def view() -> tuple[str, int]:
        held = hold(world, "request")
        outer = world.db.session()
        with pytest.raises(ZeroDivisionError) if fails else nullcontext(), world.app.app_context():
            seen.append(world.db.session() is outer)
            seen.append(visible(world))
            world.Thing(name="inner").save()
            if fails:
                raise ZeroDivisionError
        seen.append(world.db.session() is outer)
        seen.append(held in world.db.session)
        seen.append(world.database.names)
        return "done", 200 if fails else 400

    world.app.test_client().get("/")
    assert seen == [False, [], True, True, [] if fails else ["inner"]]
    assert world.database.names == (["request"] if fails else ["inner"])


def test_row_33_commits_in_the_inner_context_are_those_of_a_script(database: Database) -> None:
    """In the inner context db.session.commit() commits, though the request forbids it."""
    world = World(database, AUTOSESSION_EXPLICIT_COMMIT="forbid")

    @world.app.get("/")
    def view() -> tuple[str, int]:
        with pytest.raises(ZeroDivisionError), world.app.app_context():
            world.Thing(name="inner").save()
            world.db.session.commit()
            raise ZeroDivisionError
        return "done", 400

    world.app.test_client().get("/")
    assert world.database.names == ["inner"]
    world.close()


def test_row_33_after_the_inner_context_the_request_decides_as_before(world: World) -> None:
    """A request goes on as a request after an inner context: its failures are its own."""

    @world.app.get("/<int:status>")
    def view(status: int) -> tuple[str, int]:
        with world.app.app_context():
            visible(world)
        world.Thing(name=f"request {status}").save()
        return "done", status

    client = world.app.test_client()
    for status in (200, 400):
        assert client.get(f"/{status}").status_code == status
    assert world.database.names == ["request 200"]


@pytest.mark.parametrize("pending", [False, True])
def test_row_33_a_request_context_that_never_dispatched_is_rolled_back(
    world: World, caplog: pytest.LogCaptureFixture, pending: bool
) -> None:
    """Work in test_request_context() is not kept, and the WARNING names auto.unit()."""
    with world.app.test_request_context("/"):
        one = world.Thing(name="lost")
        world.db.session.add(one) if pending else one.save()
    assert world.database.names == []
    (message,) = told(caplog)
    assert "auto.unit()" in message


def test_row_33_it_is_not_warned_of_if_it_only_read(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A request context that never dispatched and only read leaves no warning."""
    with world.app.test_request_context("/"):
        assert visible(world) == []
    assert told(caplog) == []


def test_row_33_an_exception_rolls_it_back_too(world: World) -> None:
    """A request context without a dispatch that an exception leaves keeps nothing."""
    with pytest.raises(ZeroDivisionError), world.app.test_request_context("/"):
        world.Thing(name="lost").save()
        raise ZeroDivisionError
    assert world.database.names == []


def test_row_33_it_runs_its_on_rollback_functions(world: World) -> None:
    """A request context that never dispatched tells its callbacks of the rollback."""
    history: list[str] = []
    with world.app.test_request_context("/"):
        world.Thing(name="lost").save()
        world.auto.on_commit(lambda: history.append("committed"))
        world.auto.on_rollback(lambda: history.append("rolled back"))
    assert history == ["rolled back"]


def test_row_33_what_it_commits_explicitly_is_kept(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A commit in a request context that never dispatched is a commit; only the rest is lost."""
    world = World(database)
    with world.app.test_request_context("/"):
        world.Thing(name="kept").save()
        world.auto.commit()
        world.Thing(name="lost").save()
    assert world.database.names == ["kept"]
    assert len(told(caplog)) == 1
    world.close()


def test_row_33_preprocess_request_alone_is_no_dispatch(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a test only runs the before_request functions, their work is not kept either."""

    @world.app.before_request
    def before() -> None:
        world.Thing(name="before").save()

    with world.app.test_request_context("/"):
        world.app.preprocess_request()
    assert world.database.names == []
    assert len(told(caplog)) == 1


@pytest.mark.parametrize("status", [200, 400])
def test_row_33_a_thread_with_a_copied_request_context(
    world: World, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """What copy_current_request_context runs in a thread is not kept, unless in auto.unit()."""

    @world.app.get("/")
    def view() -> tuple[str, int]:
        @copy_current_request_context
        def careless() -> None:
            world.Thing(name="lost").save()

        @copy_current_request_context
        def careful() -> None:
            with world.auto.unit():
                world.Thing(name="kept").save()

        in_thread(careless)
        in_thread(careful)
        return "done", status

    assert world.app.test_client().get("/").status_code == status
    assert world.database.names == ["kept"]
    (message,) = told(caplog)
    assert "auto.unit()" in message


# Row 34: SQLite in memory ---------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[World]:
    """A world on a database in memory, whose contexts all share one connection."""
    world = World(Database("sqlite", "sqlite://"))
    with world.app.app_context():
        metadata.create_all(world.db.engine)
    yield world
    world.close()
    world.database.engine.dispose()


def in_memory(world: World) -> list[str]:
    """The names that are left when a transaction that was still open is taken away."""
    with world.app.app_context(), world.db.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        assert not driver.in_transaction, "a transaction is still open"
        return list(connection.scalars(sa.select(thing.c.name).order_by(thing.c.id)))


@pytest.mark.parametrize("outcome", ["committed", "rolled back"])
@pytest.mark.parametrize("inner", ["app_context", "unit"])
@pytest.mark.parametrize("how", ["orm", "core", "savepoint"])
def test_row_34_a_second_writer_gets_a_clear_error(
    memory: World, outcome: str, inner: str, how: str
) -> None:
    """A context that writes inside another that has written is refused; the first one decides."""
    enter: Callable[[], Any] = memory.auto.unit if inner == "unit" else memory.app.app_context

    def write() -> None:
        if how == "orm":
            memory.Thing(name="second").save()
        elif how == "core":
            memory.db.session.execute(sa.insert(thing).values(name="second"))
        else:
            with memory.auto.savepoint():
                memory.Thing(name="second").save()

    failing = outcome == "rolled back"
    with pytest.raises(ZeroDivisionError) if failing else nullcontext(), memory.app.app_context():
        memory.Thing(name="first").save()
        with pytest.raises(SharedConnectionError, match="in-memory"), enter():
            write()
        assert visible(memory) == ["first"]
        memory.Thing(name="first too").save()
        if failing:
            raise ZeroDivisionError
    assert in_memory(memory) == ([] if failing else ["first", "first too"])


@pytest.mark.parametrize("ending", ["clean", "exception", "rollback", "commit", "remove"])
@pytest.mark.parametrize("outcome", ["committed", "rolled back"])
def test_row_34_a_readers_end_does_not_end_the_writers_transaction(
    memory: World, ending: str, outcome: str
) -> None:
    """However a context that only reads ends, the writer's rows are neither kept nor lost by it."""
    failing = outcome == "rolled back"
    with pytest.raises(ZeroDivisionError) if failing else nullcontext(), memory.app.app_context():
        memory.Thing(name="writer").save()
        expected = pytest.raises(LookupError) if ending == "exception" else nullcontext()
        with expected, memory.app.app_context():
            assert memory.Thing.query.count() == 1
            if ending == "exception":
                raise LookupError
            if ending != "clean":
                getattr(memory.db.session, ending)()
        memory.Thing(name="writer too").save()
        if failing:
            raise ZeroDivisionError
    assert in_memory(memory) == ([] if failing else ["writer", "writer too"])


@pytest.mark.parametrize("fails", [False, True])
def test_row_34_a_writer_inside_a_reader(memory: World, fails: bool) -> None:
    """A context that has only read lets one inside it write, whatever becomes of either."""
    with memory.app.app_context():
        assert visible(memory) == []
        with pytest.raises(ZeroDivisionError) if fails else nullcontext(), memory.auto.unit():
            memory.Thing(name="inner").save()
            if fails:
                raise ZeroDivisionError
        assert visible(memory) == ([] if fails else ["inner"])
    assert in_memory(memory) == ([] if fails else ["inner"])


def test_row_34_one_writer_after_the_other(memory: World) -> None:
    """As soon as the first writer has ended, the next one can write, in the outer one too."""
    with memory.app.app_context():
        memory.Thing(name="one").save()
        memory.db.session.commit()
        with memory.app.app_context():
            memory.Thing(name="two").save()
        memory.Thing(name="three").save()
    with memory.auto.unit():
        memory.Thing(name="four").save()
    assert in_memory(memory) == ["one", "two", "three", "four"]


@pytest.mark.parametrize("fails", [False, True])
def test_row_34_a_writer_in_another_thread(memory: World, fails: bool) -> None:
    """A thread that writes while another one has written gets the error; the first one decides."""
    wrote, tried = threading.Event(), threading.Event()
    history: list[str] = []

    def first() -> None:
        with memory.app.app_context():
            memory.Thing(name="first").save()
            wrote.set()
            assert tried.wait(30)
            if fails:
                raise ZeroDivisionError

    def second() -> None:
        assert wrote.wait(30)
        try:
            with memory.app.app_context():
                visible(memory)
                memory.Thing(name="second").save()
        except SharedConnectionError:
            history.append("refused")
        finally:
            tried.set()

    other = threading.Thread(target=second)
    other.start()
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        in_thread(first)
    other.join(30)
    assert history == ["refused"]
    assert in_memory(memory) == ([] if fails else ["first"])


@pytest.mark.parametrize("status", [200, 400])
def test_row_34_requests_in_threads(memory: World, status: int) -> None:
    """A request that comes second is told 500, has nothing kept, and spoils the first one not."""
    wrote, tried = threading.Event(), threading.Event()
    told: dict[str, int] = {}

    @memory.app.get("/first")
    def first() -> tuple[str, int]:
        memory.Thing(name="first").save()
        wrote.set()
        assert tried.wait(30)
        memory.Thing(name="first too").save()
        return "done", status

    @memory.app.get("/second")
    def second() -> str:
        memory.Thing(name="second").save()
        return "done"

    @memory.app.get("/reader")
    def reader() -> list[str]:
        return visible(memory)

    def visit(path: str) -> None:
        told[path] = memory.app.test_client().get(path).status_code

    thread = threading.Thread(target=visit, args=("/first",))
    thread.start()
    try:
        assert wrote.wait(30)
        visit("/second")
        visit("/reader")
    finally:
        tried.set()
        thread.join(30)
    assert told == {"/first": status, "/second": 500, "/reader": 200}
    assert in_memory(memory) == (["first", "first too"] if status == 200 else [])
    visit("/second")
    assert told["/second"] == 200


def test_row_34_a_savepoint_of_the_writer_survives_readers(memory: World) -> None:
    """A writer's savepoint can still be rolled back alone after a reader has come and gone."""
    with memory.app.app_context():
        memory.Thing(name="kept").save()
        with pytest.raises(ZeroDivisionError), memory.auto.savepoint():
            memory.Thing(name="lost").save()
            with memory.app.app_context():
                visible(memory)
            raise ZeroDivisionError
    assert in_memory(memory) == ["kept"]


def test_row_34_two_apps_in_memory_have_nothing_in_common(memory: World) -> None:
    """Each app has a database in memory of its own, with its own writer."""
    other = World(Database("sqlite", "sqlite://"))
    with other.app.app_context():
        metadata.create_all(other.db.engine)
    with pytest.raises(ZeroDivisionError), memory.app.app_context():
        memory.Thing(name="here").save()
        with other.app.app_context():
            other.Thing(name="there").save()
        raise ZeroDivisionError
    assert in_memory(memory) == []
    assert in_memory(other) == ["there"]
    other.close()
    other.database.engine.dispose()
