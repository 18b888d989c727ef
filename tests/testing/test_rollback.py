"""The strategy ``rollback``: all goes as in production, and nothing of it remains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import sqlalchemy as sa
from celery import _state
from flask import Flask, abort, redirect, stream_with_context
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.exc import IntegrityError

from flask_autosession import AutoSession, DoomedError
from flask_autosession.celery import celery_init_app
from flask_autosession.testing import IsolationError, isolate, schema
from flask_autosession.testing.binds import engines_of

from ..world import Database, World, metadata, thing

Caplog = pytest.LogCaptureFixture


def serve(world: World, view: Callable[[], Any]) -> Any:
    """Serve one request with a view of its own, and return the response."""
    if "view" not in world.app.view_functions:
        world.app.add_url_rule("/", "view", methods=["POST"])
    world.app.view_functions["view"] = view
    return world.app.test_client().post("/")


def save(world: World, name: str, *answer: Any) -> Callable[[], Any]:
    """Return a view that saves a thing and answers."""

    def view() -> Any:
        world.Thing(name=name).save()
        return answer or "saved"

    return view


def names(world: World) -> list[str]:
    """The names of all things that the application itself sees now."""

    def view() -> list[str]:
        return [thing.name for thing in world.Thing.query.order_by(world.Thing.id)]

    return serve(world, view).json


@pytest.fixture
def isolated(world: World) -> Iterator[World]:
    """A world in the block of isolate(); whatever the test has done in it must not remain."""
    with isolate(world.app):
        yield world
    assert world.database.names == []


# Requests


def test_what_a_view_commits_is_seen_by_the_next_request_and_gone_after_the_block(
    world: World,
) -> None:
    """A request is committed for those that follow in the test, and for nobody else."""
    with isolate(world.app):
        assert serve(world, save(world, "kept")).status_code == 200
        assert names(world) == ["kept"]
        assert world.database.names == []
    assert world.database.names == []
    assert names(world) == []


def test_blocks_follow_each_other(world: World) -> None:
    """Each block begins with what was there before the first, and may write the same again."""
    world.database.insert("old")
    for _ in range(3):
        with isolate(world.app):
            assert serve(world, save(world, "new")).status_code == 200
            assert names(world) == ["old", "new"]
    assert world.database.names == ["old"]


def test_the_block_is_undone_when_it_raises(world: World) -> None:
    """A test that fails leaves as little behind as one that passes, and its error is its own."""
    with pytest.raises(ZeroDivisionError), isolate(world.app):
        serve(world, save(world, "gone"))
        raise ZeroDivisionError
    assert world.database.names == []


def test_a_row_that_was_there_comes_back_as_it_was(world: World) -> None:
    """Changes and deletions of older rows are undone, not only new rows."""
    world.database.insert("changed")
    world.database.insert("deleted")

    def view() -> str:
        changed, deleted = world.Thing.query.order_by(world.Thing.id)
        changed.update(name="other")
        deleted.delete()
        return "done"

    with isolate(world.app):
        assert serve(world, view).status_code == 200
        assert names(world) == ["other"]
    assert world.database.names == ["changed", "deleted"]


@pytest.mark.parametrize("ending", [400, 500, "raise"])
def test_a_request_that_fails_takes_back_its_own_work_only(isolated: World, ending: Any) -> None:
    """What earlier requests have committed stays when a later one fails."""

    def fail() -> Any:
        isolated.Thing(name="failed").save()
        if ending == "raise":
            raise ZeroDivisionError
        return "no", ending

    assert serve(isolated, save(isolated, "kept")).status_code == 200
    assert serve(isolated, fail).status_code == (500 if ending == "raise" else ending)
    assert names(isolated) == ["kept"]
    assert serve(isolated, save(isolated, "failed")).status_code == 200
    assert names(isolated) == ["kept", "failed"]


def test_abort_with_a_redirect_commits(isolated: World) -> None:
    """A redirect that is raised is control flow, in a test as well."""

    def view() -> Any:
        isolated.Thing(name="kept").save()
        abort(redirect("/elsewhere"))

    assert serve(isolated, view).status_code == 302
    assert names(isolated) == ["kept"]


def test_a_violated_constraint_fails_the_request(isolated: World) -> None:
    """The database refuses in a test what it refuses in production, and the test goes on."""
    assert serve(isolated, save(isolated, "same")).status_code == 200
    assert serve(isolated, save(isolated, "same")).status_code == 500
    assert serve(isolated, save(isolated, "other")).status_code == 200
    assert names(isolated) == ["same", "other"]


def test_a_swallowed_error_dooms_the_request(isolated: World, caplog: Caplog) -> None:
    """A view that swallows a database error keeps nothing, and is warned of, as in production."""

    def view() -> str:
        isolated.Thing(name="first").save()
        with pytest.raises(IntegrityError):
            isolated.Thing(name="old").save()
        with pytest.raises(DoomedError):
            isolated.Thing(name="second").save()
        return "fine"

    serve(isolated, save(isolated, "old"))
    assert serve(isolated, view).status_code == 200
    assert names(isolated) == ["old"]
    assert "work was thrown away: IntegrityError" in caplog.text


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_a_deferred_constraint_is_checked_when_the_request_ends(database: Database) -> None:
    """A foreign key that COMMIT checks fails the request, though no COMMIT is sent."""
    world = World(database)
    with world.app.app_context():
        _foreign_keys(world.db.engine)

    def orphan() -> str:
        world.Thing(id=1, name="orphan", parent=2).save()
        return "saved"

    def family() -> str:
        world.Thing(id=1, name="child", parent=2).save()
        world.Thing(id=2, name="parent").save()
        return "saved"

    world.app.register_error_handler(IntegrityError, lambda _: ("conflict", 409))
    with isolate(world.app):
        assert serve(world, orphan).status_code == 409
        assert serve(world, family).status_code == 200
        assert names(world) == ["child", "parent"]
    assert database.names == []
    world.close()


def _foreign_keys(engine: sa.Engine) -> None:
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def connected(connection: Any, _: object) -> None:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = OFF")


# Callbacks


def test_callbacks_run_when_their_unit_ends(isolated: World) -> None:
    """on_commit and on_rollback functions do not wait for the end of the test."""
    history: list[Any] = []

    def view(status: int) -> Any:
        isolated.auto.on_commit(lambda: history.append(("committed", status)))
        isolated.auto.on_rollback(lambda: history.append(("rolled back", status)))
        isolated.Thing(name=str(status)).save()
        return "", status

    history.append(serve(isolated, lambda: view(201)).status_code)
    history.append(serve(isolated, lambda: view(400)).status_code)
    assert history == [("committed", 201), 201, ("rolled back", 400), 400]


def test_what_callbacks_write_is_committed_behind_their_unit(isolated: World) -> None:
    """Callbacks are units of their own: one that fails takes back its own work only."""

    def fail() -> None:
        isolated.Thing(name="failed").save()
        raise ZeroDivisionError

    def view(status: int) -> Any:
        isolated.auto.on_commit(fail)
        isolated.auto.on_commit(save(isolated, f"committed {status}"))
        isolated.auto.on_rollback(save(isolated, f"rolled back {status}"))
        isolated.Thing(name=str(status)).save()
        return "", status

    assert serve(isolated, lambda: view(200)).status_code == 200
    assert serve(isolated, lambda: view(400)).status_code == 400
    assert names(isolated) == ["200", "committed 200", "rolled back 400"]


# The session


@pytest.mark.parametrize("policy", ["allow", "flush"])
def test_explicit_commits_of_a_view_go_by_the_configuration(
    database: Database, policy: str
) -> None:
    """db.session.commit() in a view keeps what was done so far, or only flushes it."""
    world = World(database, AUTOSESSION_EXPLICIT_COMMIT=policy)

    def view() -> Any:
        world.Thing(name="before").save()
        world.db.session.commit()
        world.Thing(name="behind").save()
        return "no", 400

    with isolate(world.app):
        assert serve(world, view).status_code == 400
        assert names(world) == (["before"] if policy == "allow" else [])
    assert database.names == []
    world.close()


def test_explicit_commit_and_rollback_in_the_test_itself(isolated: World) -> None:
    """db.session.rollback() takes back what came behind the last db.session.commit()."""
    with isolated.app.app_context():
        isolated.db.session.add(isolated.Thing(name="committed"))
        isolated.db.session.commit()
        isolated.db.session.add(isolated.Thing(name="dropped"))
        isolated.db.session.flush()
        isolated.db.session.rollback()
        assert [one.name for one in isolated.Thing.query] == ["committed"]
        isolated.Thing(name="kept").save()
        isolated.auto.commit()
        isolated.Thing(name="closed").save()
        isolated.db.session.close()
    assert names(isolated) == ["committed", "kept"]


def test_auto_savepoint_takes_back_its_own_block(isolated: World) -> None:
    """A part of a request that fails in auto.savepoint() is undone, the rest is committed."""

    def view() -> str:
        isolated.Thing(name="before").save()
        with pytest.raises(IntegrityError), isolated.auto.savepoint():
            isolated.Thing(name="inside").save()
            isolated.Thing(name="before").save()
        with isolated.auto.savepoint():
            isolated.Thing(name="kept").save()
            with pytest.raises(ZeroDivisionError), isolated.auto.savepoint():
                isolated.Thing(name="deep").save()
                raise ZeroDivisionError
        isolated.Thing(name="behind").save()
        return "done"

    assert serve(isolated, view).status_code == 200
    assert names(isolated) == ["before", "kept", "behind"]


def test_begin_nested_of_the_session(isolated: World) -> None:
    """Savepoints that are set by hand can be released and rolled back in any order."""
    session = isolated.db.session

    def view() -> str:
        isolated.Thing(name="a").save()
        outer = session.begin_nested()
        isolated.Thing(name="b").save()
        inner = session.begin_nested()
        isolated.Thing(name="c").save()
        inner.rollback()
        isolated.Thing(name="d").save()
        outer.commit()
        lost = session.begin_nested()
        isolated.Thing(name="e").save()
        session.begin_nested().commit()
        isolated.Thing(name="f").save()
        lost.rollback()
        return "done"

    assert serve(isolated, view).status_code == 200
    assert names(isolated) == ["a", "b", "d"]


def test_a_released_savepoint_goes_with_its_request(isolated: World) -> None:
    """What was released in a request that then fails is taken back with the rest of it."""

    def view() -> Any:
        with isolated.auto.savepoint():
            isolated.Thing(name="released").save()
        with isolated.db.session.begin_nested():
            isolated.Thing(name="too").save()
        return "no", 400

    serve(isolated, save(isolated, "kept"))
    assert serve(isolated, view).status_code == 400
    assert names(isolated) == ["kept"]


def test_a_second_session_of_the_applications_own(isolated: World) -> None:
    """A Session made by hand commits and rolls back beside the one of the context."""
    with isolated.app.app_context():
        engine = isolated.db.engine
        with sa.orm.Session(engine) as session, session.begin():
            session.add(isolated.Thing(name="committed"))
        with sa.orm.Session(engine) as session:
            session.add(isolated.Thing(name="closed"))
            session.flush()
    assert names(isolated) == ["committed"]


# Contexts


def test_a_request_sees_what_the_test_has_flushed(isolated: World) -> None:
    """Rows that a test saves in an app context are there for the requests it makes in it."""
    with isolated.app.app_context():
        mine = isolated.Thing(name="mine").save()
        assert names(isolated) == ["mine"]
        mine.name = "changed"
        assert names(isolated) == ["changed"]
        assert serve(isolated, save(isolated, "failed", "no", 400)).status_code == 400
        assert serve(isolated, save(isolated, "mine")).status_code == 200
        assert (mine.name, [one.name for one in isolated.Thing.query]) == (
            "changed",
            ["changed", "mine"],
        )
        isolated.Thing(name="later").save()
        assert names(isolated) == ["changed", "mine", "later"]


def test_a_request_that_raises_does_not_take_the_tests_rows(isolated: World) -> None:
    """The test's own rows survive a request that raises, and one that the database refuses."""

    def fail() -> None:
        isolated.Thing.query.filter_by(name="mine").one().update(name="taken")
        raise ZeroDivisionError

    with isolated.app.app_context():
        mine = isolated.Thing(name="mine").save()
        assert serve(isolated, fail).status_code == 500
        assert mine.name == "mine"
        assert serve(isolated, save(isolated, "mine")).status_code == 500
        assert mine.update(name="still mine").id
        assert names(isolated) == ["still mine"]


def test_a_test_request_context(isolated: World) -> None:
    """A request context without a dispatch sees what is there, and keeps what is committed."""
    serve(isolated, save(isolated, "old"))
    with isolated.app.test_request_context():
        isolated.Thing(name="mine").save()
        isolated.db.session.commit()
        assert names(isolated) == ["old", "mine"]


def test_app_contexts_do_not_commit_by_themselves(isolated: World) -> None:
    """What a bare app context wrote is dropped when it is left, unless it was committed."""
    with isolated.app.app_context():
        with isolated.app.app_context():
            isolated.Thing(name="inner").save()
            isolated.db.session.commit()
        isolated.Thing(name="dropped").save()
    with isolated.auto.unit(isolated.app):
        isolated.Thing(name="unit").save()
    with pytest.raises(ZeroDivisionError), isolated.auto.unit(isolated.app):
        isolated.Thing(name="failed").save()
        raise ZeroDivisionError
    assert names(isolated) == ["inner", "unit"]


def test_app_contexts_commit_again_after_the_block(world: World) -> None:
    """That bare app contexts do not commit ends with the block, and with the outermost one."""
    with isolate(world.app):
        with isolate(world.app), world.app.app_context():
            world.Thing(name="inner").save()
        with world.app.app_context():
            world.Thing(name="outer").save()
    with world.app.app_context():
        world.Thing(name="kept").save()
    assert world.database.names == ["kept"]


def test_app_contexts_commit_where_the_application_says_so(database: Database) -> None:
    """AUTOSESSION_COMMIT_CONTEXTS that is set by the application holds in tests as well."""
    world = World(database, AUTOSESSION_COMMIT_CONTEXTS=True)
    with isolate(world.app):
        with world.app.app_context():
            world.Thing(name="kept").save()
        assert names(world) == ["kept"]
    assert database.names == []
    world.close()


def test_a_nested_context_sees_what_was_flushed_and_has_a_session_of_its_own(
    isolated: World,
) -> None:
    """An inner app context that is rolled back leaves the outer one's work alone."""
    with isolated.app.app_context():
        mine = isolated.Thing(name="mine").save()
        with isolated.app.app_context():
            other = isolated.Thing.query.one()
            assert other is not mine
            other.update(name="other")
            isolated.db.session.rollback()
        assert isolated.Thing.query.one() is mine
        isolated.db.session.commit()
        assert mine.name == "mine"


def test_a_unit_inside_of_a_view_that_then_fails(isolated: World) -> None:
    """What auto.unit() has committed stays when the view around it fails."""

    def view() -> Any:
        with isolated.auto.unit():
            isolated.Thing(name="audit").save()
        isolated.Thing(name="failed").save()
        return "no", 400

    assert serve(isolated, view).status_code == 400
    assert names(isolated) == ["audit"]


def test_a_request_made_by_a_view(isolated: World) -> None:
    """A view that makes a request to its own application is committed apart from it."""
    isolated.app.add_url_rule("/in", "inner", save(isolated, "inner"), methods=["POST"])

    def view() -> Any:
        assert isolated.app.test_client().post("/in").status_code == 200
        isolated.Thing(name="outer").save()
        return "no", 400

    assert serve(isolated, view).status_code == 400
    assert names(isolated) == ["inner"]


def test_a_manual_view(isolated: World) -> None:
    """A view that commits by itself keeps what it commits, and no more."""

    @isolated.auto.manual
    def view() -> str:
        isolated.Thing(name="committed").save()
        isolated.db.session.commit()
        isolated.Thing(name="left").save()
        return "done"

    assert serve(isolated, view).status_code == 200
    assert names(isolated) == ["committed"]


# What is not a plain request


def test_async_views(isolated: World) -> None:
    """Async views run in another thread, and are the test's own all the same."""

    async def good() -> str:
        isolated.Thing(name="view").save()
        with isolated.auto.unit():
            assert isolated.Thing.query.count() == 1
        return "done"

    async def bad() -> Any:
        with isolated.auto.unit():
            isolated.Thing(name="unit").save()
        isolated.Thing(name="failed").save()
        return "no", 400

    assert serve(isolated, good).status_code == 200
    assert serve(isolated, bad).status_code == 400
    with isolated.app.app_context():
        assert serve(isolated, bad).status_code == 500  # its name is there already
        assert [one.name for one in isolated.Thing.query.order_by("id")] == ["view", "unit"]


@pytest.fixture
def celery_globals() -> Iterator[None]:
    """Forget which Celery application is the default one."""
    default, finalizers = _state.default_app, set(_state._on_app_finalizers)
    current = _state._tls.current_app
    yield
    _state.set_default_app(default)
    _state._tls.current_app = current
    _state._on_app_finalizers.intersection_update(finalizers)


@pytest.mark.usefixtures("celery_globals")
def test_eager_celery_tasks(database: Database) -> None:
    """Tasks that run in place are units of their own, sent behind the commit of their request."""
    config = {"broker_url": "memory://", "task_always_eager": True}
    world = World(database, CELERY=config)
    celery = celery_init_app(world.app)

    @celery.task
    def task(name: str, fail: bool = False) -> str:
        world.Thing(name=name).save()
        if fail:
            raise ZeroDivisionError
        return name

    def view() -> str:
        task.delay("at once")
        task.delay_on_commit("on commit")
        task.delay_on_commit("failed", fail=True)
        assert world.Thing.query.count() == 1
        world.Thing(name="view").save()
        return "done"

    with isolate(world.app):
        assert serve(world, view).status_code == 200
        assert task.delay("outside").get() == "outside"
        assert names(world) == ["at once", "view", "on commit", "outside"]
    assert database.names == []
    world.close()
    celery.close()


def test_streams(isolated: World, caplog: Caplog) -> None:
    """What a generator writes is committed when it is exhausted, and dropped if nobody reads on."""

    def view(name: str) -> Any:
        def body() -> Iterator[str]:
            yield "first"
            isolated.Thing(name=f"{name} body").save()
            yield "second"

        isolated.Thing(name=name).save()
        return isolated.app.response_class(stream_with_context(body()))

    assert serve(isolated, lambda: view("read")).text == "firstsecond"
    isolated.app.view_functions["view"] = lambda: view("left")
    with isolated.app.test_client().post("/", buffered=False) as response:
        stream = response.iter_encoded()
        assert [next(stream), next(stream)] == [b"first", b"second"]
        response.close()
    assert names(isolated) == ["read", "read body", "left"]


@pytest.mark.parametrize("outer", [False, True], ids=["alone", "inside"])
def test_commands(isolated: World, caplog: Caplog, outer: bool) -> None:
    """A command commits if it succeeds, and takes back its own work only if it does not."""

    @isolated.app.cli.command()
    @click.argument("name")
    @click.argument("code", type=int)
    def create(name: str, code: int) -> None:
        isolated.Thing(name=name).save()
        click.get_current_context().exit(code)

    def invoke(*args: str) -> int:
        return isolated.app.test_cli_runner().invoke(args=["create", *args]).exit_code

    def all_three() -> None:
        assert invoke("kept", "0") == 0
        assert invoke("failed", "3") == 3
        assert invoke("kept", "0") == 1

    if outer:
        with isolated.app.app_context():
            isolated.Thing(name="mine").save()
            all_three()
            isolated.db.session.commit()
    else:
        all_three()
    assert names(isolated) == [*["mine"] * outer, "kept"]


# Several databases, several applications


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Database]:
    """Another database, a file."""
    other = Database("sqlite", f"sqlite:///{tmp_path / 'other.db'}")
    other.create()
    yield other
    other.engine.dispose()


def test_two_binds(database: Database, other: Database) -> None:
    """A unit on two databases commits and fails on both, and nothing of it remains on either."""
    world = World(database, SQLALCHEMY_BINDS={"other": other.uri})

    class Other(world.db.Model):  # type: ignore[name-defined,misc]
        __bind_key__ = "other"
        __tablename__ = "thing"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50))

    def view(name: str, status: int) -> Any:
        world.Thing(name=name).save()
        Other(name=name).save()
        return "", status

    with isolate(world.app):
        assert serve(world, lambda: view("kept", 201)).status_code == 201
        assert serve(world, lambda: view("failed", 400)).status_code == 400
        assert names(world) == ["kept"]
        assert serve(world, lambda: [one.name for one in Other.query]).json == ["kept"]
        assert other.names == []
    assert database.names == other.names == []
    schema.forget(drop=False)
    world.close()


def test_two_binds_on_one_database(database: Database) -> None:
    """Binds with the same URL see each other's work as soon as it is flushed."""
    world = World(database, SQLALCHEMY_BINDS={"other": database.uri})
    with isolate(world.app), world.app.app_context():
        world.Thing(name="mine").save()
        with world.db.engines["other"].begin() as connection:
            assert connection.scalar(sa.select(thing.c.name)) == "mine"
            connection.execute(sa.insert(thing).values(name="other"))
        world.db.session.commit()
        assert names(world) == ["mine", "other"]
    assert database.names == []
    world.close()


def test_a_bind_that_comes_second_knows_its_database(database: Database) -> None:
    """What SQLAlchemy asks a server when it first connects, it asks for every engine."""
    for _ in range(2):
        world = World(database, SQLALCHEMY_BINDS={"other": database.uri})
        with isolate(world.app), world.app.app_context():
            first, second = world.db.engine, world.db.engines["other"]
            first.connect().close()
            assert sa.inspect(second).has_table("thing")
            with second.begin() as connection:
                insert = sa.insert(thing).returning(thing.c.name)
                rows = [{"name": "one"}, {"name": "two"}]
                assert connection.scalars(insert, rows).all() == ["one", "two"]
            assert names(world) == ["one", "two"]
            for what in ("server_version_info", "default_schema_name", "default_isolation_level"):
                assert getattr(first.dialect, what) == getattr(second.dialect, what) is not None
        assert database.names == []
        world.close()


def test_a_bind_that_comes_second_is_asked_once(database: Database) -> None:
    """However many tests there are, they cost no more than with one bind."""
    world = World(database, SQLALCHEMY_BINDS={"other": database.uri})
    first, second = engines_of(world.app).values()
    sent: list[str] = []

    @sa.event.listens_for(second, "before_cursor_execute")
    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        sent.append(statement)

    for _ in range(3):
        with isolate(world.app):
            first.connect().close()
            sent.clear()
            for _ in range(2):
                with second.connect() as connection:
                    connection.exec_driver_sql("SELECT 1")
    assert sent == ["SELECT 1", "SELECT 1"]
    world.close()


def test_two_applications_on_one_database(database: Database) -> None:
    """Applications with the same URL see what the other one has committed, and all of it goes."""
    one, two = World(database), World(database)
    with isolate(one.app), isolate(two.app):
        assert serve(one, save(one, "one")).status_code == 200
        assert serve(two, save(two, "two")).status_code == 200
        assert serve(two, save(two, "failed", "no", 400)).status_code == 400
        assert names(one) == names(two) == ["one", "two"]
    assert database.names == []
    with isolate(one.app):
        with isolate(two.app):
            serve(two, save(two, "two"))
        assert names(one) == []
        serve(one, save(one, "one"))
    assert database.names == []
    one.close()
    two.close()


def test_two_applications_on_two_databases(database: Database, other: Database) -> None:
    """Applications with different URLs do not see each other, and both are undone."""
    one, two = World(database), World(other)
    with isolate(one.app), isolate(two.app):
        with one.app.app_context():
            one.Thing(name="one").save()
            assert serve(two, save(two, "two")).status_code == 200
            one.db.session.commit()
        assert (names(one), names(two)) == (["one"], ["two"])
    assert database.names == other.names == []
    one.close()
    two.close()


def test_an_app_that_serves_as_a_second_one_of_the_same_auto(database: Database) -> None:
    """Two applications of one AutoSession are isolated each by itself."""
    world = World(database)
    first, second = world.app, world.make_app()
    world.auto.init_app(second)
    with isolate(first), isolate(second):
        for app, name in ((first, "first"), (second, "second")):
            with app.app_context():
                world.Thing(name=name).save()
                world.db.session.commit()
        assert names(world) == ["first", "second"]
    assert database.names == []
    for world.app in (first, second):
        world.close()


def test_sqlite_in_memory() -> None:
    """A database in memory, where all contexts share one connection anyhow, is put back too."""
    world = World(SimpleNamespace(uri="sqlite://"))  # type: ignore[arg-type]
    with world.app.app_context():
        metadata.create_all(world.db.engine)
        world.Thing(name="old").save()
    for _ in range(2):
        with isolate(world.app), world.app.app_context():
            world.Thing(name="mine").save()
            assert serve(world, save(world, "request")).status_code == 200
            assert serve(world, save(world, "failed", "no", 400)).status_code == 400
            with world.auto.unit():
                world.Thing(name="unit").save()
            assert names(world) == ["old", "mine", "request", "unit"]
        assert names(world) == ["old"]
    world.close()


# Blocks in blocks


def test_inner_blocks_begin_with_what_the_outer_one_has_made(world: World) -> None:
    """Data of a class is there in each of its tests, however the test before has changed it."""
    with isolate(world.app):
        with world.app.app_context():
            first = world.Thing(name="first").save()
            second = world.Thing(name="second").save()
            for _ in range(2):
                with isolate(world.app):
                    assert names(world) == ["first", "second"]
                    first.update(name="changed")
                    second.delete()
                    world.Thing(name="new").save()
                    world.db.session.commit()
                    assert names(world) == ["changed", "new"]
                assert (first.name, second.name) == ("first", "second")
                assert [one.name for one in world.Thing.query] == ["first", "second"]
            first.update(name="for all")
            with isolate(world.app):
                assert first.name == "for all"
                assert names(world) == ["for all", "second"]
            assert names(world) == ["for all", "second"]
        assert world.database.names == []
    assert world.database.names == []


def test_three_blocks_in_each_other(world: World) -> None:
    """Data of a module, of a class in it, and of a test come and go one by one."""
    with isolate(world.app):
        serve(world, save(world, "module"))
        for _ in range(2):
            with isolate(world.app):
                serve(world, save(world, "class"))
                for _ in range(2):
                    with isolate(world.app):
                        serve(world, save(world, "test"))
                        assert names(world) == ["module", "class", "test"]
                assert names(world) == ["module", "class"]
        assert names(world) == ["module"]
    assert world.database.names == []


def test_an_inner_block_whose_outer_one_has_done_nothing_yet(world: World) -> None:
    """An outer block that did not use the database is not in the way of those inside of it."""
    with isolate(world.app):
        for _ in range(2):
            with isolate(world.app):
                serve(world, save(world, "inner"))
                assert names(world) == ["inner"]
            assert names(world) == []
    assert world.database.names == []


def test_objects_of_an_outer_block_can_be_used_in_every_inner_one(world: World) -> None:
    """An object of a fixture can be changed, expired and read anew in each test."""
    with isolate(world.app), world.app.app_context():
        shared = world.Thing(name="shared").save()
        for number in range(2):
            with isolate(world.app):
                shared.name = f"test {number}"
                assert names(world) == [f"test {number}"]
                world.db.session.refresh(shared)
                assert shared.name == f"test {number}"
                world.db.session.rollback()
        assert shared.name == "shared"
        assert shared in world.db.session


def test_a_connection_of_an_outer_block_lives_on(world: World) -> None:
    """A connection that a fixture holds open can be used in each test, and behind them."""
    in_order = sa.select(thing.c.name).order_by(thing.c.id)
    with isolate(world.app), world.app.app_context(), world.db.engine.connect() as connection:
        connection.execute(sa.insert(thing).values(name="outer"))
        for _ in range(2):
            with isolate(world.app):
                connection.execute(sa.insert(thing).values(name="inner"))
                assert connection.scalars(in_order).all() == ["outer", "inner"]
        assert connection.scalars(in_order).all() == ["outer"]
        connection.commit()
        assert names(world) == ["outer"]
    assert world.database.names == []


def test_an_outer_connection_that_an_inner_block_rolls_back(world: World) -> None:
    """A test that takes away what a fixture has made is told, and the next one is not harmed."""
    with isolate(world.app), world.app.app_context(), world.db.engine.connect() as connection:
        connection.execute(sa.insert(thing).values(name="outer"))
        taken = "took back what the fixture around the test"
        with pytest.raises(IsolationError, match=taken), isolate(world.app):
            connection.rollback()
            serve(world, save(world, "inner"))
        with isolate(world.app):
            assert names(world) == []
    assert world.database.names == []


# A context that was there before


def test_a_context_with_unsaved_work_from_before_is_refused(world: World) -> None:
    """isolate() says so where a context already holds work that it could not undo."""
    with world.app.app_context():
        world.Thing(name="mine").save()
        with pytest.raises(IsolationError, match=r"pushed before the test began has written"):
            isolate(world.app).__enter__()
        world.db.session.rollback()
        with isolate(world.app):
            world.Thing(name="fine").save()
    assert world.database.names == []


def test_a_context_from_before_sees_the_database_as_it_is(world: World) -> None:
    """A context that was pushed before the block, and has only read, sees what the block does."""
    world.database.insert("old")
    with world.app.app_context():
        old = world.Thing.query.one()
        with isolate(world.app):
            serve(world, save(world, "new"))
            assert [one.name for one in world.Thing.query] == ["old", "new"]
            old.update(name="changed")
            assert names(world) == ["changed", "new"]
        assert old.name == "old"
        assert [one.name for one in world.Thing.query] == ["old"]
    assert world.database.names == ["old"]


def test_a_context_from_before_is_left_as_clean_as_it_was(world: World, caplog: Caplog) -> None:
    """What a block dooms and leaves pending in an outer context does not reach the next block."""
    with world.app.app_context():
        for _ in range(2):
            with isolate(world.app):
                world.Thing(name="flushed").save()
                world.db.session.add(world.Thing(name="pending"))
                world.auto.doom()
        assert world.db.session.query(world.Thing).all() == []
        world.Thing(name="kept").save()
    assert world.database.names == ["kept"]
    assert [one.message for one in caplog.records if one.levelno > logging.INFO] == []


def test_a_savepoint_left_open_does_not_reach_the_next_block(world: World) -> None:
    """A block that is left inside of auto.savepoint() does not spoil the context for the next."""
    with world.app.app_context():
        with pytest.raises(ZeroDivisionError), isolate(world.app):
            world.auto.savepoint().__enter__()
            raise ZeroDivisionError
        with isolate(world.app):
            with world.auto.savepoint():
                world.Thing(name="inside").save()
            assert names(world) == ["inside"]
    assert world.database.names == []


def test_a_context_of_another_app_from_before(database: Database) -> None:
    """A context of some other application around the block is left alone."""
    one, two = World(database), World(database)
    with one.app.app_context():
        with isolate(two.app):
            assert serve(two, save(two, "two")).status_code == 200
        one.Thing(name="kept").save()
    assert database.names == ["kept"]
    one.close()
    two.close()


# What cannot be isolated, or need not be


def test_an_app_that_is_switched_off(database: Database) -> None:
    """With AUTOSESSION_ENABLED False commits are the application's own, and undone as well."""
    world = World(database, AUTOSESSION_ENABLED=False)

    def view(name: str) -> str:
        world.db.session.add(world.Thing(name=name))
        world.db.session.commit()
        world.db.session.add(world.Thing(name="dropped"))
        world.db.session.flush()
        return "done"

    with isolate(world.app):
        assert serve(world, lambda: view("a")).status_code == 200
        assert serve(world, lambda: view("b")).status_code == 200
        assert serve(world, lambda: view("a")).status_code == 500
        assert names(world) == ["a", "b"]
    assert database.names == []
    world.close()


def test_an_app_without_autosession() -> None:
    """An application that was not initialised is refused, with what to do."""
    app = Flask("plain")
    with pytest.raises(IsolationError, match=r"'plain' has no AutoSession\. Call auto\.init_app"):
        isolate(app).__enter__()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_connection_in_the_place_of_an_engine(world: World) -> None:
    """The trick of older recipes, a connection among db.engines, is refused by name."""
    with world.app.app_context():
        engine = world.db.engine
        with engine.connect() as connection:
            world.db.engines[None] = connection  # type: ignore[assignment]
            with pytest.raises(IsolationError, match=r"db\.engines\[None\] .* holds a Connection"):
                isolate(world.app).__enter__()
        world.db.engines[None] = engine
        with isolate(world.app):
            assert names(world) == []


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_session_that_was_replaced_is_refused(world: World) -> None:
    """Another session in the place of db.session, which ends no units of work, is refused."""
    with world.app.app_context():
        own = sa.orm.scoped_session(sa.orm.sessionmaker(world.db.engine))
    before, world.db.session = world.db.session, own
    with pytest.raises(IsolationError, match=r"db\.session of 'world' was replaced"):
        isolate(world.app).__enter__()
    world.db.session = before
    with isolate(world.app):
        assert names(world) == []


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_unknown_strategies_and_schemas(world: World) -> None:
    """A strategy or a schema that is not there is refused, with those that are."""
    with pytest.raises(
        IsolationError, match=r"no strategy 'undo'\. There are: rollback, truncate, recreate\."
    ):
        isolate(world.app, "undo").__enter__()
    with pytest.raises(
        IsolationError, match=r"no schema 'sql'\. There are: create_all, migrate, none\."
    ):
        isolate(world.app, schema="sql").__enter__()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_unknown_databases(world: World) -> None:
    """A database whose savepoints are not known is refused, and works as before afterwards."""
    with world.app.app_context():
        dialect = world.db.engine.dialect
    dialect.name = "oracle"
    with pytest.raises(IsolationError, match=r"does not know the savepoints of oracle\. Use"):
        isolate(world.app).__enter__()
    dialect.name = "sqlite"
    with world.app.app_context():
        world.Thing(name="kept").save()
    assert world.database.names == ["kept"]


def test_tables_are_made_where_they_are_missing(tmp_path: Path) -> None:
    """The tables of an application are made before the first use, and stay for the next block."""
    database = Database("sqlite", f"sqlite:///{tmp_path / 'empty.db'}")
    app, auto, note_class = an_app_with_a_table("note", database)
    for _ in range(2):
        with isolate(app), auto.unit(app):
            assert note_class().save().id == 1
    assert database.rows("SELECT * FROM note") == []
    schema.forget(drop=True)
    assert sa.inspect(database.engine).get_table_names() == []
    with app.app_context():
        auto.db.engine.dispose()


def an_app_with_a_table(name: str, database: Database) -> tuple[Flask, AutoSession, Any]:
    """Make an application whose only table is not made yet."""
    db = SQLAlchemy()
    auto = AutoSession(db=db)
    columns = {"__tablename__": name, "id": sa.Column(sa.Integer, primary_key=True)}
    model = type(name.title(), (db.Model,), columns)
    app = Flask(name)
    app.config["SQLALCHEMY_DATABASE_URI"] = database.uri
    auto.init_app(app)
    return app, auto, model


def test_an_app_that_used_nothing_gets_no_tables(tmp_path: Path) -> None:
    """When its block is over, those who come after it on the same database make their own only."""
    database = Database("sqlite", f"sqlite:///{tmp_path / 'empty.db'}")
    app, auto, note_class = an_app_with_a_table("note", database)
    idle, idle_auto, _ = an_app_with_a_table("idle", database)
    with isolate(app):
        with isolate(idle):
            pass
        with auto.unit(app):
            note_class().save()
    assert sa.inspect(database.engine).get_table_names() == ["note"]
    schema.forget(drop=True)
    for one in (auto, idle_auto):
        with (app if one is auto else idle).app_context():
            one.db.engine.dispose()
