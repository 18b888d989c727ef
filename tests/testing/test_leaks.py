"""What a test leaves behind is named, taken away, and does not reach the next test."""

from __future__ import annotations

import contextvars
import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, has_app_context, has_request_context
from sqlalchemy.orm import Session

from flask_autosession.testing import IsolationError, isolate
from flask_autosession.testing.leaks import pop_contexts

from ..world import World, thing

on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def engine_of(world: World) -> sa.Engine:
    with world.app.app_context():
        return world.db.engine


def left_behind(world: World, test: Callable[[], object]) -> str:
    """Run a test that leaves something, and return the sentence that says what."""
    behind = "The test has left behind: "
    with pytest.raises(IsolationError, match=behind) as told, isolate(world.app):
        test()
    assert not has_app_context()
    assert world.database.names == []
    # Nothing of it is in the way of the next one.
    with isolate(world.app), world.auto.unit(world.app):
        world.Thing(name="next").save()
    return str(told.value)


def place(function: Callable[..., object], line: int) -> str:
    """The place of a line of a function, as messages say it."""
    code = function.__code__  # type: ignore[attr-defined]
    return f"{code.co_filename}:{code.co_firstlineno + line}"


# Contexts


def test_an_app_context_that_was_left_pushed(world: World) -> None:
    """An app context is named by its application, and popped."""

    def test() -> None:
        world.app.app_context().push()
        world.Thing(name="mine").save()

    assert "an app context of 'world'" in left_behind(world, test)


@on_sqlite
def test_several_app_contexts(world: World) -> None:
    """Each of them is named, those of other applications too."""
    other = Flask("other")

    def test() -> None:
        world.app.app_context().push()
        other.app_context().push()

    told = left_behind(world, test)
    assert "an app context of 'other'; an app context of 'world'" in told


def test_a_request_context_that_was_left_pushed(world: World) -> None:
    """A request context is named by its request, and popped with its app context."""

    def test() -> None:
        world.app.test_request_context("/orders", method="POST").push()
        world.Thing(name="mine").save()

    told = left_behind(world, test)
    assert "a request context (POST /orders)" in told
    assert "an app context" not in told
    assert not has_request_context()


@on_sqlite
def test_a_request_context_in_a_context_from_before(world: World) -> None:
    """Of contexts in each other only those that the test has pushed are popped."""
    with world.app.app_context():
        mine = r"a request context \(GET /mine\)"
        with pytest.raises(IsolationError, match=mine), isolate(world.app):
            world.app.test_request_context("/mine").push()
        assert has_app_context()
        assert not has_request_context()
        world.Thing(name="kept").save()
    assert world.database.names == ["kept"]


@on_sqlite
def test_a_context_whose_teardown_fails(world: World) -> None:
    """A teardown function that raises does not keep the rest from being taken away."""

    failing = [False]

    @world.app.teardown_appcontext
    def fail(_: object) -> None:
        if failing[0]:
            raise ZeroDivisionError

    both = r"'world'; an app context of 'world'\."
    with pytest.raises(IsolationError, match=both), isolate(world.app):
        world.app.app_context().push()
        world.app.app_context().push()
        failing[0] = True
    assert not has_app_context()
    failing[0] = False


@on_sqlite
def test_a_context_from_before_that_the_test_has_popped(world: World) -> None:
    """A test that pops what it has not pushed is not taken for one that left something."""
    context = world.app.app_context()
    context.push()
    with isolate(world.app):
        context.pop()
    assert not has_app_context()


@on_sqlite
def test_a_context_that_cannot_be_popped(world: World) -> None:
    """A context that was pushed elsewhere, in an async fixture for example, is named at least."""

    def test() -> None:
        block = ExitStack()
        block.enter_context(isolate(world.app))
        world.app.app_context().push()
        with pytest.raises(IsolationError, match="an app context of 'world'"):
            contextvars.copy_context().run(block.close)

    contextvars.copy_context().run(test)


@on_sqlite
def test_a_client_that_keeps_its_context_open(world: World) -> None:
    """A test client used in a 'with' block ends its context with that, and leaves nothing."""
    world.app.add_url_rule("/", view_func=lambda: str(world.Thing(name="mine").save().id))
    with isolate(world.app), world.app.test_client() as client:
        assert client.get("/").status_code == 200
        assert has_request_context()
        assert world.Thing.query.count() == 1
        # The plugin looks behind the test's body, when such a block may go on.
        assert pop_contexts((None, None), clients=False) == []


# Sessions


def test_a_session_that_was_left_open(world: World) -> None:
    """A session of the test's own is named by where it began its transaction, and closed."""
    engine, sessions = engine_of(world), list[Session]()

    def test() -> None:
        session = Session(engine)
        sessions.append(session)
        session.execute(sa.insert(thing).values(name="mine"))

    assert f"a session that began a transaction at {place(test, 3)}" in left_behind(world, test)
    assert not sessions[0].in_transaction()


def test_sessions_that_were_closed_are_not_named(world: World) -> None:
    """Sessions that are closed, committed, or were never used, leave nothing."""
    engine = engine_of(world)
    unused = Session(engine)
    with isolate(world.app):
        with Session(engine) as session:
            session.execute(sa.insert(thing).values(name="closed"))
        session = Session(engine)
        session.execute(sa.insert(thing).values(name="committed"))
        session.commit()
    assert not unused.in_transaction()
    assert world.database.names == []


@on_sqlite
def test_a_session_on_another_database_is_not_ours(world: World) -> None:
    """What a test does with databases that the application does not know is its own business."""
    engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
    session = Session(engine)
    with isolate(world.app):
        session.execute(sa.text("SELECT 1"))
    assert session.in_transaction()
    session.close()
    engine.dispose()


@on_sqlite
def test_the_session_of_a_context_from_before_is_not_named(world: World) -> None:
    """What an outer context's session has open at the end is rolled back without a word."""
    with world.app.app_context():
        with isolate(world.app):
            world.Thing(name="mine").save()
        assert not world.db.session().in_transaction()
        assert world.Thing.query.all() == []


@on_sqlite
def test_objects_that_the_test_has_loaded_leave_the_session_of_an_outer_context(
    world: World,
) -> None:
    """What a test has loaded into an outer context's session does not stay in it."""
    world.database.insert("old")
    with world.app.app_context():
        with isolate(world.app):
            loaded = world.Thing.query.one()
        assert loaded not in world.db.session
        assert world.Thing.query.one() is not loaded


@on_sqlite
def test_objects_that_the_test_has_deleted_come_back(world: World) -> None:
    """An object of an outer block that a test deletes or detaches is as usable as its row."""
    with isolate(world.app), world.app.app_context():
        deleted = world.Thing(name="deleted").save()
        detached = world.Thing(name="detached").save()
        for _ in range(2):
            with isolate(world.app):
                deleted.delete()
                world.db.session.commit()
                world.db.session.expunge(detached)
            assert (deleted.name, detached.name) == ("deleted", "detached")
            assert {deleted, detached} == set(world.Thing.query)


@on_sqlite
def test_a_session_of_an_outer_block_is_not_the_inner_ones(world: World) -> None:
    """A session that a fixture has open is named by the fixture's block, not by each test."""
    session = Session(engine_of(world))
    with pytest.raises(IsolationError, match="a session that began") as told, isolate(world.app):
        session.execute(sa.insert(thing).values(name="outer"))
        with isolate(world.app):
            session.execute(sa.insert(thing).values(name="inner"))
        assert session.scalars(sa.select(thing.c.name)).all() == ["outer"]
    assert str(told.value).count("a session") == 1


# Connections


def test_a_connection_that_was_left_open(world: World) -> None:
    """A connection is named by where it was taken, and given back."""
    engine, taken = engine_of(world), list[sa.Connection]()

    def test() -> None:
        taken.append(engine.connect())
        taken[0].execute(sa.insert(thing).values(name="mine"))

    assert f"a connection that was taken at {place(test, 1)}" in left_behind(world, test)
    taken[0].invalidate()


@on_sqlite
def test_a_raw_connection_that_was_left_open(world: World) -> None:
    """The same holds for the driver's connections, and for each of several."""
    engine, taken = engine_of(world), list[Any]()

    def test() -> None:
        taken.append(engine.raw_connection())
        taken.append(engine.raw_connection())

    told = left_behind(world, test)
    for line in (1, 2):
        assert f"a connection that was taken at {place(test, line)}" in told
    assert not any(one.is_valid for one in taken)


# The test's own error


@pytest.mark.parametrize("left", ["context", "session", "connection"])
def test_nothing_is_said_of_what_a_failing_test_leaves(world: World, left: str) -> None:
    """A test that raises is told only that; what it has left is taken away all the same."""
    engine = engine_of(world)
    leave: dict[str, Callable[[], Any]] = {
        "context": lambda: world.app.app_context().push(),
        "session": lambda: Session(engine),
        "connection": engine.connect,
    }
    with pytest.raises(ZeroDivisionError) as raised, isolate(world.app):
        kept = leave[left]() or world.db.session
        kept.execute(sa.insert(thing).values(name="mine"))
        raise ZeroDivisionError
    assert raised.value.__context__ is None
    assert not has_app_context()
    assert world.database.names == []


@on_sqlite
def test_several_leaks_are_told_in_one_sentence(world: World) -> None:
    """Whatever is left is told at once, with what to do."""
    engine = engine_of(world)
    kept: list[Any] = []

    def test() -> None:
        world.app.app_context().push()
        session = Session(engine)
        session.execute(sa.text("SELECT 1"))
        kept.extend((session, engine.connect()))

    told = left_behind(world, test)
    parts = ("an app context of 'world'", "a session that began", "a connection that was taken")
    assert re.search(r".*; ".join(map(re.escape, parts)), told)
    assert told.count("The test has left behind") == 1
