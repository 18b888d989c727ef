"""The contract, rows 12, 15, 16, 18, 19 and 20: what an application decides for itself."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import (
    Flask,
    after_this_request,
    current_app,
    g,
    request,
    request_finished,
    request_tearing_down,
)
from flask.sessions import SessionInterface, SessionMixin
from sqlalchemy.exc import IntegrityError

from flask_autosession import (
    DoomedError,
    ExplicitCommitError,
    NoUnitError,
    unit_committed,
    unit_rolled_back,
)

from .world import Database, World, thing

LOGGER = "flask_autosession"
MODES = ["warn", "allow", "flush", "forbid"]
STATUSES = [200, 399]
FAILURES = [400, 500]
MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(database: Database) -> Iterator[MakeWorld]:
    """Make worlds with a configuration of their own."""
    made: list[World] = []

    def make(**config: Any) -> World:
        made.append(World(database, **config))
        return made[-1]

    yield make
    for world in made:
        world.close()


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


def enforce_foreign_keys(world: World) -> None:
    """Let SQLite check foreign keys too, as the others do by themselves."""
    if world.database.kind == "sqlite":
        with world.app.app_context():

            @sa.event.listens_for(world.db.engine, "connect")
            def connect(connection: Any, _: Any) -> None:
                connection.execute("PRAGMA foreign_keys = ON")


def make_commit_fail(world: World) -> None:
    """See to it that the COMMIT itself fails, and nothing before it."""
    if world.database.kind == "mariadb":  # it has no deferred constraints
        number = world.db.session.scalar(sa.text("SELECT CONNECTION_ID()"))
        world.database.rows("SELECT 1")
        with world.database.engine.connect() as connection:
            connection.exec_driver_sql(f"KILL {number}")
    else:
        world.db.session.execute(sa.insert(thing).values(id=900, name="orphan", parent=901))


# Row 12: auto.doom() --------------------------------------------------------------------------


def test_row_12_doom_rolls_back_and_leaves_the_response_alone(world: World) -> None:
    """After auto.doom() nothing is kept, and the client gets the response as the view made it."""

    @world.app.get("/")
    def view() -> tuple[str, int, dict[str, str]]:
        world.Thing(name="before").save()
        world.auto.doom()
        return "as it was", 201, {"X-Mine": "kept"}

    response = world.app.test_client().get("/")
    assert (response.status_code, response.text) == (201, "as it was")
    assert response.headers["X-Mine"] == "kept"
    assert world.database.names == []


def test_row_12_doom_counts_what_was_never_flushed(world: World) -> None:
    """A change that is still pending when the doomed view returns is not kept either."""

    @world.app.get("/")
    def view() -> str:
        world.auto.doom()
        world.db.session.add(world.Thing(name="pending"))
        return "done"

    assert world.app.test_client().get("/").status_code == 200
    assert world.database.names == []


def test_row_12_work_goes_on_after_doom_and_is_all_rolled_back(world: World) -> None:
    """After auto.doom() the view can write and read its own writes, as a preview does."""
    seen: list[Any] = []

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="before").save()
        world.auto.doom()
        seen.append(world.Thing(name="orm").save().id is not None)
        world.db.session.execute(sa.insert(thing).values(name="core"))
        with world.auto.savepoint():
            world.Thing(name="nested").save()
        seen.append(visible(world))
        return "preview"

    response = world.app.test_client().get("/")
    assert (response.status_code, response.text) == (200, "preview")
    assert seen == [True, ["before", "orm", "core", "nested"]]
    assert world.database.names == []


@pytest.mark.parametrize("mode", ["warn", "allow", "flush"])
def test_row_12_an_explicit_commit_after_doom_only_flushes(
    make_world: MakeWorld, mode: str
) -> None:
    """db.session.commit() in a doomed request keeps nothing and breaks nothing."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT=mode)

    @world.app.get("/")
    def view() -> tuple[str, int]:
        world.Thing(name="view").save()
        world.auto.doom()
        pending = world.Thing(name="pending")
        world.db.session.add(pending)
        world.db.session.commit()
        assert pending.id is not None

        @after_this_request
        def library(response: Any) -> Any:
            world.Thing(name="library").save()
            world.db.session.commit()
            return response

        return "done", 201

    response = world.app.test_client().get("/")
    assert (response.status_code, response.text) == (201, "done")
    assert world.database.names == []


def test_row_12_auto_commit_after_doom_is_refused(world: World) -> None:
    """auto.commit(), which promises a commit, raises DoomedError instead, and says where."""
    place: list[str] = []
    caught: list[DoomedError] = []

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="view").save()
        place.append(next_line())
        world.auto.doom()
        with pytest.raises(DoomedError) as info:
            world.auto.commit()
        caught.append(info.value)
        return "done"

    assert world.app.test_client().get("/").status_code == 200
    assert [(error.where, error.first_failure) for error in caught] == [(place[0], None)]
    assert world.database.names == []


@pytest.mark.parametrize("how", ["rollback", "close", "remove"])
def test_row_12_nothing_lifts_doom(world: World, how: str) -> None:
    """An explicit rollback(), close() or remove() after auto.doom() does not end the doom."""

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="before").save()
        world.auto.doom()
        getattr(world.db.session, how)()
        world.Thing(name="after").save()
        world.db.session.commit()
        return "done"

    assert world.app.test_client().get("/").status_code == 200
    assert world.database.names == []


def test_row_12_doom_inside_a_savepoint_dooms_the_whole(world: World) -> None:
    """auto.doom() in a savepoint is not taken back with it."""

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="before").save()
        with pytest.raises(ZeroDivisionError), world.auto.savepoint():
            world.auto.doom()
            raise ZeroDivisionError
        return "done"

    assert world.app.test_client().get("/").status_code == 200
    assert world.database.names == []


def test_row_12_reads_go_on_after_doom(world: World) -> None:
    """A doomed request can still read, for the page that it renders."""
    world.database.insert("old")

    @world.app.get("/")
    def view() -> list[str]:
        world.auto.doom()
        return visible(world)

    assert world.app.test_client().get("/").json == ["old"]


def test_row_12_doom_in_a_before_request_function_dooms_the_request(world: World) -> None:
    """auto.doom() holds from before_request to the end, after_request functions included."""

    @world.app.before_request
    def before() -> None:
        world.Thing(name="before").save()
        world.auto.doom()

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="view").save()
        return "done"

    @world.app.after_request
    def after(response: Any) -> Any:
        world.db.session.rollback()
        world.Thing(name="after").save()
        return response

    assert world.app.test_client().get("/").status_code == 200
    assert world.database.names == []


def test_row_12_doom_ends_with_the_request(world: World) -> None:
    """The next request is not doomed by the last one."""

    @world.app.get("/<name>")
    def view(name: str) -> str:
        world.Thing(name=name).save()
        if name == "bad":
            world.auto.doom()
        return "done"

    client = world.app.test_client()
    for name in ("bad", "good"):
        assert client.get(f"/{name}").status_code == 200
    assert world.database.names == ["good"]


def test_row_12_doom_overrules_commit_when(world: World) -> None:
    """A rule of the application's own that says commit does not overrule auto.doom()."""
    world.auto.commit_when(lambda response: True)

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="doomed").save()
        world.auto.doom()
        return "done"

    assert world.app.test_client().get("/").status_code == 200
    assert world.database.names == []


def test_row_12_callbacks_follow_the_doom(world: World) -> None:
    """A doomed unit runs its on_rollback functions and not its on_commit functions."""
    history: list[str] = []

    @world.app.get("/")
    def view() -> str:
        world.auto.on_commit(lambda: history.append("commit"))
        world.auto.on_rollback(lambda: history.append("rollback"))
        world.auto.doom()
        return "done"

    world.app.test_client().get("/")
    assert history == ["rollback"]


def test_row_12_work_thrown_away_behind_a_success_is_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A doomed request that wrote and answers with success leaves one WARNING with the place."""
    place: list[str] = []

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="doomed").save()
        place.append(next_line())
        world.auto.doom()
        return "done"

    world.app.test_client().get("/")
    (message,) = told(caplog)
    assert place[0] in message


def test_row_12_doom_in_a_context_and_in_a_unit(world: World) -> None:
    """auto.doom() rolls back a script's context and an auto.unit() too, which end without error."""
    with world.app.app_context():
        world.Thing(name="script").save()
        world.auto.doom()
    with world.auto.unit():
        world.Thing(name="unit").save()
        world.auto.doom()
    assert world.database.names == []


def test_row_12_doom_in_a_callback_dooms_the_callback_alone(world: World) -> None:
    """auto.doom() in a callback takes back that callback's work, not the next one's."""

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="view").save()

        @world.auto.on_commit
        def first() -> None:
            world.Thing(name="first").save()
            world.auto.doom()

        @world.auto.on_commit
        def second() -> None:
            world.Thing(name="second").save()

        return "done"

    assert world.app.test_client().get("/").status_code == 200
    assert world.database.names == ["view", "second"]


# Row 15: explicit commits ---------------------------------------------------------------------


def commit_in_view(world: World, commit: Callable[[], None], status: int) -> list[str]:
    """Visit a view that writes, commits, writes again; return the history of its callbacks."""
    history: list[str] = []
    auto = world.auto

    @world.app.get("/")
    def view() -> tuple[str, int]:
        world.Thing(name="first").save()
        auto.on_commit(lambda: history.append("first committed"))
        auto.on_rollback(lambda: history.append("first rolled back"))
        commit()
        history.append(f"durable: {world.database.names}")
        world.Thing(name="second").save()
        auto.on_commit(lambda: history.append("second committed"))
        auto.on_rollback(lambda: history.append("second rolled back"))
        return "done", status

    response = world.app.test_client().get("/")
    assert response.status_code == status
    return history


@pytest.mark.parametrize("mode", ["warn", "allow"])
@pytest.mark.parametrize("status", FAILURES)
def test_row_15_a_commit_keeps_what_was_done_so_far(
    make_world: MakeWorld, mode: str, status: int
) -> None:
    """Under warn and allow a commit is a commit; what follows is a new unit, rolled back here."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT=mode)
    history = commit_in_view(world, world.db.session.commit, status)
    assert history == ["first committed", "durable: ['first']", "second rolled back"]
    assert world.database.names == ["first"]


@pytest.mark.parametrize("mode", ["warn", "allow"])
def test_row_15_work_after_a_commit_is_committed_at_the_end(
    make_world: MakeWorld, mode: str
) -> None:
    """Under warn and allow the unit that begins after a commit follows the response's status."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT=mode)
    history = commit_in_view(world, world.db.session.commit, 200)
    assert history == ["first committed", "durable: ['first']", "second committed"]
    assert world.database.names == ["first", "second"]


def test_row_15_warn_is_the_default_and_tells_each_call_site_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a setting, each place that commits is logged once, however often it is passed."""
    places: set[str] = set()

    @world.app.get("/<name>")
    def view(name: str) -> str:
        world.Thing(name=name).save()
        places.add(next_line())
        world.db.session.commit()
        places.add(next_line())
        world.db.session.commit()
        return "done"

    client = world.app.test_client()
    for name in ("one", "two", "three"):
        assert client.get(f"/{name}").status_code == 200
    messages = told(caplog)
    assert len(messages) == 2
    assert sorted(place for place in places for m in messages if place in m) == sorted(places)
    assert [r.levelno for r in caplog.records if r.getMessage() in messages] == [30, 30]


@pytest.mark.parametrize("mode", ["allow", "flush"])
@pytest.mark.parametrize("status", [200, 400])
def test_row_15_allow_and_flush_are_silent(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture, mode: str, status: int
) -> None:
    """Under allow and flush an explicit commit leaves no warning in the log."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT=mode)
    commit_in_view(world, world.db.session.commit, status)
    assert told(caplog) == []


def test_row_15_flush_keeps_the_unit_whole_when_it_fails(make_world: MakeWorld) -> None:
    """Under flush a commit in a view that then answers 400 leaves nothing behind."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT="flush")
    history = commit_in_view(world, world.db.session.commit, 400)
    assert history == ["durable: []", "first rolled back", "second rolled back"]
    assert world.database.names == []


def test_row_15_flush_keeps_the_unit_whole_when_it_succeeds(make_world: MakeWorld) -> None:
    """Under flush all is committed once, at the end, and the callbacks wait for that."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT="flush")
    history = commit_in_view(world, world.db.session.commit, 200)
    assert history == ["durable: []", "first committed", "second committed"]
    assert world.database.names == ["first", "second"]


def test_row_15_flush_does_flush(make_world: MakeWorld) -> None:
    """Under flush an object has its id after the commit, as code written for a commit expects."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT="flush")

    @world.app.get("/")
    def view() -> list[Any]:
        one = world.Thing(name="one")
        world.db.session.add(one)
        world.db.session.commit()
        return [one.id is not None, one in world.db.session, sa.inspect(one).persistent]

    assert world.app.test_client().get("/").json == [True, True, True]


def test_row_15_flush_raises_what_the_commit_would(make_world: MakeWorld) -> None:
    """Under flush a duplicate is refused at the commit, and the unit is doomed by it (row 9)."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT="flush")

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="same").save()
        world.db.session.add(world.Thing(name="same"))
        with pytest.raises(IntegrityError):
            world.db.session.commit()
        with pytest.raises(DoomedError):
            world.db.session.commit()
        return "done"

    assert world.app.test_client().get("/").status_code == 200
    assert world.database.names == []


def test_row_15_forbid_raises_with_the_call_site(make_world: MakeWorld) -> None:
    """Under forbid a commit raises ExplicitCommitError, which says where; nothing is kept."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT="forbid")
    place: list[str] = []
    caught: list[ExplicitCommitError] = []

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="one").save()
        place.append(next_line())
        world.db.session.commit()
        return "done"

    @world.app.errorhandler(ExplicitCommitError)
    def handler(error: ExplicitCommitError) -> tuple[str, int]:
        caught.append(error)
        return "refused", 500

    response = world.app.test_client().get("/")
    assert (response.status_code, response.text) == (500, "refused")
    assert [error.where for error in caught] == place
    assert place[0] in str(caught[0])
    assert world.database.names == []


def test_row_15_forbid_leaves_the_unit_alone(make_world: MakeWorld) -> None:
    """Under forbid the refused commit does no harm: who catches the error goes on."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT="forbid")
    refused: list[str] = []

    def commit() -> None:
        with pytest.raises(ExplicitCommitError):
            world.db.session.commit()
        refused.extend(world.database.names)

    history = commit_in_view(world, commit, 200)
    assert refused == []
    assert history == ["durable: []", "first committed", "second committed"]
    assert world.database.names == ["first", "second"]


def begin_in_view(world: World, status: int) -> list[Any]:
    """Visit a view that writes in ``with db.session.begin():``; return what was seen after it."""
    seen: list[Any] = []

    @world.app.get("/")
    def view() -> tuple[str, int]:
        seen.append(next_line())
        with world.db.session.begin():
            world.db.session.add(world.Thing(name="block"))
            world.auto.on_commit(lambda: seen.append("block committed"))
        seen.append(world.database.names)
        world.Thing(name="later").save()
        return "done", status

    assert world.app.test_client().get("/").status_code == status
    return seen


@pytest.mark.parametrize("mode", ["warn", "allow"])
@pytest.mark.parametrize("status", [200, 400])
def test_row_15_with_begin_commits_under_warn_and_allow(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture, mode: str, status: int
) -> None:
    """Leaving ``with db.session.begin():`` is an explicit commit, told under warn."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT=mode)
    place, *seen = begin_in_view(world, status)
    assert seen == ["block committed", ["block"]]
    assert world.database.names == (["block", "later"] if status == 200 else ["block"])
    if mode == "warn":
        (message,) = told(caplog)
        assert place in message
    else:
        assert told(caplog) == []


@pytest.mark.parametrize("status", [200, 400])
def test_row_15_with_begin_only_flushes_under_flush(make_world: MakeWorld, status: int) -> None:
    """Under flush, leaving ``with db.session.begin():`` keeps the unit whole."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT="flush")
    _, *seen = begin_in_view(world, status)
    assert seen == ([[], "block committed"] if status == 200 else [[]])
    assert world.database.names == (["block", "later"] if status == 200 else [])


def test_row_15_with_begin_is_refused_under_forbid(make_world: MakeWorld) -> None:
    """Under forbid, leaving ``with db.session.begin():`` raises ExplicitCommitError."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT="forbid")
    begin_in_view(world, 500)
    assert world.database.names == []


@pytest.mark.parametrize("mode", MODES)
def test_row_15_with_begin_rolls_back_on_an_exception(make_world: MakeWorld, mode: str) -> None:
    """An exception inside ``with db.session.begin():`` drops the block's work in every mode."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT=mode)

    @world.app.get("/")
    def view() -> str:
        with pytest.raises(ZeroDivisionError), world.db.session.begin():
            world.Thing(name="block").save()
            raise ZeroDivisionError
        world.Thing(name="later").save()
        return "done"

    assert world.app.test_client().get("/").status_code == 200
    assert world.database.names == ["later"]


@pytest.mark.parametrize("mode", MODES)
def test_row_15_auto_commit_always_commits(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    """auto.commit() ends the unit for real in every mode, runs its callbacks, and is not told."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT=mode)
    history = commit_in_view(world, world.auto.commit, 400)
    assert history == ["first committed", "durable: ['first']", "second rolled back"]
    assert world.database.names == ["first"]
    assert told(caplog) == []


@pytest.mark.parametrize("mode", MODES)
def test_row_15_scripts_and_units_commit_in_every_mode(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    """Without a request, db.session.commit() always commits, silently."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT=mode)
    for name, context in (("script", world.app.app_context()), ("unit", world.auto.unit())):
        with pytest.raises(ZeroDivisionError), context:
            world.Thing(name=name).save()
            world.db.session.commit()
            world.Thing(name=f"{name} later").save()
            raise ZeroDivisionError
    assert world.database.names == ["script", "unit"]
    assert [message for message in told(caplog) if "commit()" in message] == []


@pytest.mark.parametrize("mode", MODES)
def test_row_15_commands_commit_in_every_mode(make_world: MakeWorld, mode: str) -> None:
    """In a command, db.session.commit() always commits, there and then."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT=mode)
    seen: list[list[str]] = []

    @world.app.cli.command("work")
    def work() -> None:
        world.Thing(name="command").save()
        world.db.session.commit()
        seen.append(world.database.names)

    assert world.app.test_cli_runner().invoke(args=["work"]).exit_code == 0
    assert seen == [["command"]]


class SavingSessions(SessionInterface):
    """Keeps ``flask.session`` in the same database and commits the shared session for it."""

    def __init__(self, world: World) -> None:
        self.world = world

    def open_session(self, app: Flask, request: Any) -> SessionMixin | None:
        class Mapping(dict, SessionMixin):  # type: ignore[type-arg,misc]
            pass

        return Mapping()

    def save_session(self, app: Flask, session: SessionMixin, response: Any) -> None:
        self.world.db.session.execute(sa.insert(thing).values(name="session"))
        self.world.db.session.commit()


EXPECTED = {
    # mode: what is durable after a 200, and after a 400
    "warn": (["view", "library"], ["view", "library"]),
    "allow": (["view", "library"], ["view", "library"]),
    "flush": (["view", "library"], []),
}


@pytest.mark.parametrize("mode", EXPECTED)
@pytest.mark.parametrize("status", [200, 400])
def test_row_15_a_library_that_commits_after_the_view(
    make_world: MakeWorld, mode: str, status: int
) -> None:
    """A commit in after_this_request means what the mode says; under flush a 400 keeps nothing."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT=mode)

    @world.app.get("/")
    def view() -> tuple[str, int]:
        world.Thing(name="view").save()

        @after_this_request
        def library(response: Any) -> Any:
            world.Thing(name="library").save()
            world.db.session.commit()
            return response

        return "done", status

    assert world.app.test_client().get("/").status_code == status
    assert world.database.names == EXPECTED[mode][status != 200]


@pytest.mark.parametrize("mode", EXPECTED)
@pytest.mark.parametrize("status", [200, 400])
def test_row_15_a_flask_session_in_the_database(
    make_world: MakeWorld, mode: str, status: int
) -> None:
    """A flask.session that commits the shared session does so as the mode says."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT=mode)
    world.app.session_interface = SavingSessions(world)

    @world.app.get("/")
    def view() -> tuple[str, int]:
        world.Thing(name="view").save()
        return "done", status

    assert world.app.test_client().get("/").status_code == status
    expected = [{"library": "session"}.get(name, name) for name in EXPECTED[mode][status != 200]]
    assert world.database.names == expected


@pytest.mark.parametrize("rolls_back", [True, False])
def test_row_15_a_commit_that_fails_dooms_until_it_is_rolled_back(
    world: World, caplog: pytest.LogCaptureFixture, rolls_back: bool
) -> None:
    """A failed explicit commit raises there, keeps nothing, and is told of behind a success."""
    enforce_foreign_keys(world)
    history: list[str] = []
    place: list[str] = []

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="first").save()
        world.auto.on_commit(lambda: history.append("committed"))
        world.auto.on_rollback(lambda: history.append("rolled back"))
        make_commit_fail(world)
        with pytest.raises(sa.exc.DBAPIError):
            place.append(next_line())
            world.db.session.commit()
        history.append("caught")
        if rolls_back:
            world.db.session.rollback()
            world.Thing(name="second").save()
        else:
            with pytest.raises(DoomedError):
                world.Thing(name="second").save()
        return "done"

    assert world.app.test_client().get("/").status_code == 200
    assert history == ["caught", "rolled back"]
    assert world.database.names == (["second"] if rolls_back else [])
    told_once, *drops = told(caplog)
    assert place[0] in told_once
    assert len(drops) == 1
    assert place[0] in drops[0]


@pytest.mark.parametrize("where", ["view", "manual view", "script"])
def test_row_15_with_begin_can_be_tried_again(make_world: MakeWorld, where: str) -> None:
    """After ``with db.session.begin():`` whose commit failed, the next one works as before."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT="allow")
    world.database.insert("taken")

    def retry() -> str:
        for name in ("taken", "free"):
            try:
                with world.db.session.begin():
                    world.db.session.add(world.Thing(name=name))
            except IntegrityError:
                continue
        return "done"

    if where == "script":
        with world.app.app_context():
            retry()
    else:
        world.app.add_url_rule(
            "/", "view", world.auto.manual(retry) if where == "manual view" else retry
        )
        assert world.app.test_client().get("/").status_code == 200
    assert world.database.names == ["taken", "free"]


# Row 16: explicit rollbacks -------------------------------------------------------------------

ENDINGS = ["rollback", "close", "remove"]


def drop_in_view(world: World, how: str, status: int, write: Callable[[], Any]) -> list[str]:
    """Visit a view that writes, drops it, and writes again; return the place and the callbacks."""
    history: list[str] = []
    auto = world.auto

    @world.app.get("/")
    def view() -> tuple[str, int]:
        write()
        auto.on_commit(lambda: history.append("dropped committed"))
        auto.on_rollback(lambda: history.append("dropped rolled back"))
        history.append(next_line())
        getattr(world.db.session, how)()
        world.Thing(name="after").save()
        auto.on_commit(lambda: history.append("after committed"))
        auto.on_rollback(lambda: history.append("after rolled back"))
        return "done", status

    response = world.app.test_client().get("/")
    assert (response.status_code, response.text) == (status, "done")
    return history


@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize("kind", ["saved", "pending", "core", "bulk"])
def test_row_16_what_was_done_is_dropped_and_what_follows_lives(
    world: World, caplog: pytest.LogCaptureFixture, how: str, kind: str
) -> None:
    """rollback(), close() and remove() drop the work so far, doom nothing, and are told of."""
    write: dict[str, Callable[[], Any]] = {
        "saved": lambda: world.Thing(name="before").save(),
        "pending": lambda: world.db.session.add(world.Thing(name="before")),
        "core": lambda: world.db.session.execute(sa.insert(thing).values(name="before")),
        "bulk": lambda: world.db.session.execute(sa.insert(thing), [{"name": "before"}]),
    }
    place, *history = drop_in_view(world, how, 200, write[kind])
    assert history == ["dropped rolled back", "after committed"]
    assert world.database.names == ["after"]
    (message,) = told(caplog)
    assert place in message
    assert how if how != "remove" else "close" in message


@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize("status", FAILURES)
def test_row_16_no_warning_behind_a_failure(
    world: World, caplog: pytest.LogCaptureFixture, how: str, status: int
) -> None:
    """Where the response says failure, work dropped on purpose needs no warning."""
    write = lambda: world.Thing(name="before").save()  # noqa: E731
    _, *history = drop_in_view(world, how, status, write)
    assert history == ["dropped rolled back", "after rolled back"]
    assert world.database.names == []
    assert told(caplog) == []


@pytest.mark.parametrize("how", ENDINGS)
def test_row_16_no_warning_if_nothing_was_written(
    world: World, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Dropping a unit that has only read is not worth a warning."""
    drop_in_view(world, how, 200, lambda: visible(world))
    assert world.database.names == ["after"]
    assert told(caplog) == []


@pytest.mark.parametrize("how", ENDINGS)
def test_row_16_no_warning_behind_an_exception(
    world: World, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """A view that drops its work and then raises has told the client of failure: no warning."""

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="before").save()
        getattr(world.db.session, how)()
        raise ZeroDivisionError

    assert world.app.test_client().get("/").status_code == 500
    assert world.database.names == []
    assert told(caplog) == []


def test_row_16_the_status_may_change_after_the_view(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the status that the client gets that decides about the warning."""

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="before").save()
        world.db.session.rollback()
        return "done"

    @world.app.after_request
    def after(response: Any) -> Any:
        response.status_code = 418
        return response

    assert world.app.test_client().get("/").status_code == 418
    assert told(caplog) == []


@pytest.mark.parametrize("how", ENDINGS)
def test_row_16_ends_the_doom_of_a_failed_save(
    world: World, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """After a failed save, an explicit end lets the view start over; what was lost is told."""

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="same").save()
        with pytest.raises(IntegrityError):
            world.Thing(name="same").save()
        getattr(world.db.session, how)()
        world.Thing(name="after").save()
        return "done"

    assert world.app.test_client().get("/").status_code == 200
    assert world.database.names == ["after"]
    (message,) = told(caplog)
    assert "IntegrityError" in message


def test_row_16_rollback_in_a_savepoint_drops_everything(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """rollback() inside a savepoint drops the whole unit, as in SQLAlchemy, and is told of."""

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="before").save()
        nested = world.db.session.begin_nested()
        world.Thing(name="inside").save()
        world.db.session.rollback()
        assert not nested.is_active
        world.Thing(name="after").save()
        return "done"

    assert world.app.test_client().get("/").status_code == 200
    assert world.database.names == ["after"]
    assert len(told(caplog)) == 1


# Row 18: @auto.manual -------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 400])
def test_row_18_earlier_work_is_committed_when_the_view_starts(world: World, status: int) -> None:
    """What before_request functions wrote is durable when a manual view begins, and stays so."""
    seen: list[list[str]] = []

    @world.app.before_request
    def before() -> None:
        world.Thing(name="before").save()

    @world.app.get("/")
    @world.auto.manual
    def view() -> tuple[str, int]:
        seen.append(world.database.names)
        return "done", status

    assert world.app.test_client().get("/").status_code == status
    assert seen == [["before"]]
    assert world.database.names == ["before"]


@pytest.mark.parametrize("mode", MODES)
def test_row_18_the_view_ends_its_transactions_itself(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    """In a manual view commit() commits and rollback() rolls back, in every mode, untold."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT=mode)

    @world.app.get("/")
    @world.auto.manual
    def view() -> tuple[str, int]:
        world.Thing(name="one").save()
        world.db.session.commit()
        assert world.database.names == ["one"]
        with world.db.session.begin():
            world.Thing(name="two").save()
        assert world.database.names == ["one", "two"]
        return "done", 400

    assert world.app.test_client().get("/").status_code == 400
    assert world.database.names == ["one", "two"]
    assert told(caplog) == []


def test_row_18_a_rollback_in_the_view_drops_what_was_not_committed(world: World) -> None:
    """In a manual view rollback() takes back the work since the last commit, and no more."""

    @world.app.get("/")
    @world.auto.manual
    def view() -> str:
        world.Thing(name="kept").save()
        world.db.session.commit()
        world.Thing(name="dropped").save()
        world.db.session.rollback()
        world.Thing(name="later").save()
        world.db.session.commit()
        return "done"

    assert world.app.test_client().get("/").status_code == 200
    assert world.database.names == ["kept", "later"]


@pytest.mark.parametrize("pending", [False, True])
def test_row_18_leftovers_are_rolled_back_with_a_warning(
    world: World, caplog: pytest.LogCaptureFixture, pending: bool
) -> None:
    """What a manual view leaves uncommitted is dropped at the end, and the log says so."""

    @world.app.get("/left")
    @world.auto.manual
    def view() -> str:
        world.Thing(name="kept").save()
        world.db.session.commit()
        left = world.Thing(name="left")
        world.db.session.add(left) if pending else left.save()
        return "done"

    assert world.app.test_client().get("/left").status_code == 200
    assert world.database.names == ["kept"]
    (message,) = told(caplog)
    assert "/left" in message
    assert "manual" in message


def test_row_18_no_warning_without_leftovers(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A manual view that only reads after its last commit is not warned of."""

    @world.app.get("/")
    @world.auto.manual
    def view() -> list[str]:
        world.Thing(name="kept").save()
        world.db.session.commit()
        return visible(world)

    assert world.app.test_client().get("/").json == ["kept"]
    assert told(caplog) == []


def test_row_18_an_exception_rolls_back_the_rest(world: World) -> None:
    """A manual view that raises keeps what it committed and loses what it did not."""

    @world.app.get("/")
    @world.auto.manual
    def view() -> str:
        world.Thing(name="kept").save()
        world.db.session.commit()
        world.Thing(name="lost").save()
        raise ZeroDivisionError

    assert world.app.test_client().get("/").status_code == 500
    assert world.database.names == ["kept"]


def test_row_18_callbacks_follow_the_views_own_commits(world: World) -> None:
    """In a manual view each commit and rollback runs the callbacks registered up to it."""
    history: list[str] = []

    @world.app.get("/")
    @world.auto.manual
    def view() -> str:
        world.auto.on_commit(lambda: history.append("one committed"))
        world.Thing(name="one").save()
        world.db.session.commit()
        world.auto.on_rollback(lambda: history.append("two rolled back"))
        world.Thing(name="two").save()
        world.db.session.rollback()
        history.append("view ends")
        return "done"

    world.app.test_client().get("/")
    assert history == ["one committed", "two rolled back", "view ends"]


def test_row_18_an_async_manual_view(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """An async view can be manual: earlier work committed, its own commits kept, the rest not."""
    pytest.importorskip("asgiref")
    seen: list[list[str]] = []

    @world.app.before_request
    def before() -> None:
        world.Thing(name="before").save()

    @world.app.get("/")
    @world.auto.manual
    async def view() -> tuple[str, int]:
        seen.append(world.database.names)
        world.Thing(name="kept").save()
        world.db.session.commit()
        world.Thing(name="left").save()
        return "done", 200

    response = world.app.test_client().get("/")
    assert (response.status_code, response.text) == (200, "done")
    assert seen == [["before"]]
    assert world.database.names == ["before", "kept"]
    assert len(told(caplog)) == 1


def test_row_18_earlier_work_that_cannot_be_committed_stops_the_view(world: World) -> None:
    """If the commit before a manual view fails, the view does not run and its handler answers."""
    enforce_foreign_keys(world)
    history: list[str] = []

    @world.app.before_request
    def before() -> None:
        make_commit_fail(world)

    @world.app.get("/")
    @world.auto.manual
    def view() -> str:
        history.append("view")
        return "done"

    @world.app.errorhandler(sa.exc.DBAPIError)
    def handler(error: Exception) -> tuple[str, int]:
        history.append("handler")
        return "sorry", 503

    assert world.app.test_client().get("/").status_code == 503
    assert history == ["handler"]
    assert world.database.names == []


def test_row_18_the_next_request_is_not_manual(world: World) -> None:
    """@auto.manual holds for its own view's requests only."""

    @world.app.get("/manual")
    @world.auto.manual
    def manual() -> str:
        return "done"

    @world.app.get("/plain")
    def plain() -> str:
        world.Thing(name="plain").save()
        return "done"

    client = world.app.test_client()
    client.get("/manual")
    client.get("/plain")
    assert world.database.names == ["plain"]


# Row 19: callbacks ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", STATUSES + FAILURES)
@pytest.mark.parametrize("wrote", [True, False])
def test_row_19_run_once_in_order_after_the_end(world: World, status: int, wrote: bool) -> None:
    """The functions of the right kind run once each, in order, after the unit has ended."""
    history: list[Any] = []

    @world.app.get("/")
    def view() -> tuple[str, int]:
        if wrote:
            world.Thing(name="view").save()
        for number in (1, 2, 3):
            world.auto.on_commit(lambda n=number: history.append(("commit", n)))
            world.auto.on_rollback(lambda n=number: history.append(("rollback", n)))
        world.auto.on_commit(lambda: history.append(world.database.names))
        world.auto.on_rollback(lambda: history.append(world.database.names))
        history.append("view ends")
        return "done", status

    world.app.test_client().get("/")
    kind, names = ("commit", ["view"] * wrote) if status < 400 else ("rollback", [])
    assert history == ["view ends", (kind, 1), (kind, 2), (kind, 3), names]


def test_row_19_run_before_the_client_has_its_answer(world: World) -> None:
    """By the time the response's first byte leaves, the callbacks have run."""
    history: list[str] = []

    @world.app.get("/")
    def view() -> str:
        world.auto.on_commit(lambda: history.append("callback"))
        return "done"

    world.app.test_client().get("/", buffered=False)
    history.append("answered")
    assert history == ["callback", "answered"]


@pytest.mark.parametrize(("status", "kind"), [(200, "on_commit"), (400, "on_rollback")])
def test_row_19_nested_ones_run_last(world: World, status: int, kind: str) -> None:
    """A function registered inside a callback runs behind all that were registered before."""
    history: list[str] = []

    @world.app.get("/")
    def view() -> tuple[str, int]:
        register = getattr(world.auto, kind)

        @register
        def first() -> None:
            history.append("first")

            @world.auto.on_commit
            def nested() -> None:
                history.append("nested in first")
                world.auto.on_commit(lambda: history.append("nested in nested"))

        @register
        def second() -> None:
            history.append("second")
            world.auto.on_commit(lambda: history.append("nested in second"))

        register(lambda: history.append("third"))
        return "done", status

    world.app.test_client().get("/")
    assert history == [
        "first",
        "second",
        "third",
        "nested in first",
        "nested in second",
        "nested in nested",
    ]


def test_row_19_nested_ones_follow_their_own_callback(world: World) -> None:
    """What a callback registers belongs to its own unit: it is dropped or run with that."""
    history: list[str] = []

    @world.app.get("/")
    def view() -> str:
        @world.auto.on_commit
        def fails() -> None:
            world.auto.on_commit(lambda: history.append("never"))
            world.auto.on_rollback(lambda: history.append("the callback was rolled back"))
            raise ZeroDivisionError

        return "done"

    assert world.app.test_client().get("/").status_code == 200
    assert history == ["the callback was rolled back"]


@pytest.mark.parametrize("status", [200, 400])
def test_row_19_same_context_and_session(world: World, status: int) -> None:
    """A callback sees the request, g and the session of the view."""
    seen: list[Any] = []

    @world.app.get("/here")
    def view() -> tuple[str, int]:
        g.mark = "marked"
        session = world.db.session()

        @world.auto.on_commit
        @world.auto.on_rollback
        def callback() -> None:
            seen.extend([request.path, g.mark, world.db.session() is session])
            seen.append(current_app == world.app)

        return "done", status

    world.app.test_client().get("/here")
    assert seen == ["/here", "marked", True, True]


@pytest.mark.parametrize("status", [200, 400])
def test_row_19_objects_still_load(world: World, status: int) -> None:
    """An object of the view can be read in a callback, attributes it never loaded included."""
    world.database.insert("old")
    seen: list[Any] = []

    @world.app.get("/")
    def view() -> tuple[str, int]:
        query = sa.select(world.Thing).options(sa.orm.load_only(world.Thing.id))
        old = world.db.session.scalars(query).one()
        loaded = world.Thing.get(old.id)

        @world.auto.on_commit
        @world.auto.on_rollback
        def callback() -> None:
            seen.append(old.name)
            world.db.session.refresh(loaded)
            seen.append(loaded in world.db.session)

        return "done", status

    world.app.test_client().get("/")
    assert seen == ["old", True]


def test_row_19_what_the_view_saved_can_be_changed_in_on_commit(world: World) -> None:
    """An object that the view saved can be updated in on_commit, and the update is kept."""

    @world.app.get("/")
    def view() -> str:
        one = world.Thing(name="one").save()
        world.auto.on_commit(lambda: one.update(name=f"{one.name} and done"))
        return "done"

    world.app.test_client().get("/")
    assert world.database.names == ["one and done"]


@pytest.mark.parametrize(("status", "kind"), [(200, "on_commit"), (400, "on_rollback")])
def test_row_19_each_is_a_unit_of_its_own(world: World, status: int, kind: str) -> None:
    """A callback's work is durable when it returns, and gone if it raises; the others' stands."""
    history: list[list[str]] = []

    @world.app.get("/")
    def view() -> tuple[str, int]:
        def write(name: str, fail: bool = False) -> Callable[[], None]:
            def callback() -> None:
                history.append(world.database.names)
                world.Thing(name=name).save()
                if fail:
                    raise ZeroDivisionError

            return callback

        register = getattr(world.auto, kind)
        register(write("one"))
        register(write("two", fail=True))
        register(write("three"))
        return "done", status

    assert world.app.test_client().get("/").status_code == status
    assert history == [[], ["one"], ["one"]]
    assert world.database.names == ["one", "three"]


@pytest.mark.parametrize(("status", "kind"), [(201, "on_commit"), (409, "on_rollback")])
def test_row_19_a_failing_callback_is_logged_and_stops_nothing(
    world: World, caplog: pytest.LogCaptureFixture, status: int, kind: str
) -> None:
    """A callback that raises is logged with its traceback; the response and the rest stand."""
    history: list[str] = []

    @world.app.get("/")
    def view() -> tuple[str, int]:
        world.Thing(name="view").save()
        register = getattr(world.auto, kind)

        @register
        def breaks_here() -> None:
            history.append("breaks")
            raise ZeroDivisionError

        @register
        def goes_on() -> None:
            history.append("goes on")

        return "done", status

    response = world.app.test_client().get("/")
    assert (response.status_code, response.text) == (status, "done")
    assert history == ["breaks", "goes on"]
    assert world.database.names == (["view"] if status == 201 else [])
    (record,) = [r for r in caplog.records if r.name == LOGGER and r.levelno >= logging.ERROR]
    assert "breaks_here" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_row_19_a_callback_whose_own_commit_fails(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback that cannot be committed is logged; the request and the next ones stand."""
    enforce_foreign_keys(world)
    history: list[str] = []

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="view").save()
        world.auto.on_commit(lambda: make_commit_fail(world))
        world.auto.on_commit(lambda: history.append("next"))
        world.auto.on_commit(lambda: world.Thing(name="later").save())
        return "done"

    assert world.app.test_client().get("/").status_code == 200
    assert history == ["next"]
    assert world.database.names == ["view", "later"]
    assert len(told(caplog, logging.ERROR)) == 1


def test_row_19_a_callback_that_swallows_a_failure(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback that swallows its own failed save is rolled back and logged, and alone in it."""

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="view").save()

        @world.auto.on_commit
        def careless() -> None:
            world.Thing(name="half").save()
            with pytest.raises(IntegrityError):
                world.Thing(name="view").save()

        world.auto.on_commit(lambda: world.Thing(name="later").save())
        return "done"

    assert world.app.test_client().get("/").status_code == 200
    assert world.database.names == ["view", "later"]
    assert len(told(caplog, logging.ERROR)) == 1


def test_row_19_explicit_commits_in_callbacks_commit(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback may commit explicitly whatever the mode: it is a unit of its own."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT="forbid")

    @world.app.get("/")
    def view() -> str:
        @world.auto.on_commit
        def callback() -> None:
            world.Thing(name="kept").save()
            world.db.session.commit()
            world.Thing(name="lost").save()
            raise ZeroDivisionError

        return "done"

    assert world.app.test_client().get("/").status_code == 200
    assert world.database.names == ["kept"]
    assert len(told(caplog)) == 1


def savepoint(world: World, raw: bool) -> Any:
    return world.db.session.begin_nested() if raw else world.auto.savepoint()


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("status", [200, 400])
def test_row_19_a_savepoints_rollback_drops_on_commit_only(
    world: World, raw: bool, status: int
) -> None:
    """A savepoint that is rolled back takes its own on_commit along, and no on_rollback."""
    history: list[str] = []

    @world.app.get("/")
    def view() -> tuple[str, int]:
        def register(where: str) -> None:
            world.auto.on_commit(lambda: history.append(f"commit: {where}"))
            world.auto.on_rollback(lambda: history.append(f"rollback: {where}"))

        register("before")
        with pytest.raises(ZeroDivisionError), savepoint(world, raw):
            world.Thing(name="inside").save()
            register("inside")
            raise ZeroDivisionError
        register("after")
        return "done", status

    world.app.test_client().get("/")
    assert history == (
        ["commit: before", "commit: after"]
        if status == 200
        else ["rollback: before", "rollback: inside", "rollback: after"]
    )


@pytest.mark.parametrize("raw", [False, True])
def test_row_19_a_released_savepoint_keeps_its_callbacks(world: World, raw: bool) -> None:
    """A savepoint that ends well hands its on_commit to what is around it."""
    history: list[str] = []

    @world.app.get("/")
    def view() -> str:
        with savepoint(world, raw):
            world.Thing(name="inside").save()
            world.auto.on_commit(lambda: history.append("inside"))
        world.auto.on_commit(lambda: history.append("after"))
        return "done"

    world.app.test_client().get("/")
    assert history == ["inside", "after"]
    assert world.database.names == ["inside"]


@pytest.mark.parametrize("raw", [False, True])
def test_row_19_nested_savepoints_drop_what_is_inside_them(world: World, raw: bool) -> None:
    """The outer savepoint's rollback drops the inner's on_commit too, though that had ended."""
    history: list[str] = []

    @world.app.get("/")
    def view() -> str:
        world.auto.on_commit(lambda: history.append("unit"))
        with savepoint(world, raw):
            world.auto.on_commit(lambda: history.append("kept outer"))
            with pytest.raises(ZeroDivisionError), savepoint(world, raw):
                world.auto.on_commit(lambda: history.append("dropped inner"))
                raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError), savepoint(world, raw):
            with savepoint(world, raw):
                world.Thing(name="inner").save()
                world.auto.on_commit(lambda: history.append("released inner"))
            raise ZeroDivisionError
        return "done"

    world.app.test_client().get("/")
    assert history == ["unit", "kept outer"]
    assert world.database.names == []


def test_row_19_a_savepoint_whose_save_failed_drops_its_on_commit(world: World) -> None:
    """A write that fails inside a savepoint drops the on_commit registered in it before."""
    history: list[str] = []

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="same").save()
        world.auto.on_commit(lambda: history.append("unit"))
        with pytest.raises(IntegrityError), world.auto.savepoint():
            world.auto.on_commit(lambda: history.append("inside"))
            world.Thing(name="same").save()
        return "done"

    world.app.test_client().get("/")
    assert history == ["unit"]
    assert world.database.names == ["same"]


def test_row_19_begin_nested_rolled_back_by_hand(world: World) -> None:
    """rollback() of a begin_nested() that is no block drops what was registered in it."""
    history: list[str] = []

    @world.app.get("/")
    def view() -> str:
        world.auto.on_commit(lambda: history.append("before"))
        nested = world.db.session.begin_nested()
        world.Thing(name="inside").save()
        world.auto.on_commit(lambda: history.append("inside"))
        nested.rollback()
        nested = world.db.session.begin_nested()
        world.Thing(name="released").save()
        world.auto.on_commit(lambda: history.append("released"))
        nested.commit()
        return "done"

    world.app.test_client().get("/")
    assert history == ["before", "released"]
    assert world.database.names == ["released"]


def audit(world: World) -> Callable[[], None]:
    def keep() -> None:
        world.Thing(name="audit").save()

    return keep


@pytest.mark.parametrize("how", ["status", "exception", "doom", "swallowed", "after_request"])
def test_row_19_an_audit_row_outlives_the_failure(world: World, how: str) -> None:
    """What on_rollback writes is kept, however the unit came to be rolled back."""

    @world.app.get("/")
    def view() -> tuple[str, int]:
        world.Thing(name="work").save()
        world.auto.on_rollback(audit(world))
        if how == "exception":
            raise ZeroDivisionError
        if how == "doom":
            world.auto.doom()
        if how == "swallowed":
            with pytest.raises(IntegrityError):
                world.Thing(name="work").save()
        return "done", 401 if how == "status" else 200

    if how == "after_request":

        @world.app.after_request
        def after(response: Any) -> Any:
            raise ZeroDivisionError

    world.app.test_client().get("/")
    assert world.database.names == ["audit"]


def test_row_19_an_audit_row_outlives_a_failed_commit(world: World) -> None:
    """What on_rollback writes is kept when the COMMIT itself has failed."""
    enforce_foreign_keys(world)

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="work").save()
        world.auto.on_rollback(audit(world))
        make_commit_fail(world)
        return "done"

    assert world.app.test_client().get("/").status_code == 500
    assert world.database.names == ["audit"]


@pytest.mark.parametrize(("status", "names"), [(200, ["view", "async"]), (400, ["async"])])
def test_row_19_async_callbacks(world: World, status: int, names: list[str]) -> None:
    """An async function can be a callback, with its own unit."""
    pytest.importorskip("asgiref")
    history: list[str] = []

    @world.app.get("/")
    def view() -> tuple[str, int]:
        world.Thing(name="view").save()

        @world.auto.on_commit
        @world.auto.on_rollback
        async def callback() -> None:
            history.append(request.path)
            world.Thing(name="async").save()

        @world.auto.on_commit
        @world.auto.on_rollback
        async def failing() -> None:
            world.Thing(name="lost").save()
            raise ZeroDivisionError

        return "done", status

    assert world.app.test_client().get("/").status_code == status
    assert history == ["/"]
    assert world.database.names == names


@pytest.mark.parametrize("context", ["app_context", "unit"])
def test_row_19_callbacks_without_a_request(world: World, context: str) -> None:
    """Scripts and units run callbacks as well, on their own end."""
    history: list[str] = []

    def work(name: str) -> None:
        world.Thing(name=name).save()
        world.auto.on_commit(lambda: history.append(f"{name} committed"))
        world.auto.on_rollback(lambda: history.append(f"{name} rolled back"))
        world.auto.on_commit(lambda: world.Thing(name=f"{name} too").save())
        world.auto.on_rollback(audit(world))

    enter: Callable[[], Any] = (
        world.app.app_context if context == "app_context" else world.auto.unit
    )
    with enter():
        work("good")
    with pytest.raises(ZeroDivisionError), enter():
        work("bad")
        raise ZeroDivisionError
    assert history == ["good committed", "bad rolled back"]
    assert world.database.names == ["good", "good too", "audit"]


@pytest.mark.parametrize("kind", ["on_commit", "on_rollback"])
def test_row_19_outside_of_a_unit_is_an_error_that_explains(world: World, kind: str) -> None:
    """Registering at module level raises an error that names the function and the way out."""
    with pytest.raises(NoUnitError, match=kind) as info:
        getattr(world.auto, kind)(lambda: None)
    assert "auto.unit()" in str(info.value)


def test_row_19_decorators_leave_the_function_as_it_is(world: World) -> None:
    """As decorators, on_commit and on_rollback give the function back unchanged."""

    def callback() -> None:
        pass

    with world.auto.unit():
        assert world.auto.on_commit(callback) is callback
        assert world.auto.on_rollback(callback) is callback


@pytest.mark.parametrize("status", [200, 400])
def test_row_19_signals_tell_how_the_unit_ended(world: World, status: int) -> None:
    """unit_committed or unit_rolled_back is sent once, by the app, after the unit's end."""
    history: list[Any] = []

    @world.app.get("/")
    def view() -> tuple[str, int]:
        world.Thing(name="view").save()
        world.auto.on_commit(lambda: history.append("callback"))
        return "done", status

    def committed(sender: Flask, **extra: Any) -> None:
        history.append(("committed", sender is world.app, extra, world.database.names))

    def rolled_back(sender: Flask, reason: str, **extra: Any) -> None:
        history.append(("rolled back", sender is world.app, bool(reason), world.database.names))

    with (
        unit_committed.connected_to(committed, sender=world.app),
        unit_rolled_back.connected_to(rolled_back, sender=world.app),
    ):
        assert world.app.test_client().get("/").status_code == status
    if status == 200:
        assert sorted(history, key=str) == [("committed", True, {}, ["view"]), "callback"]
    else:
        assert history == [("rolled back", True, True, [])]


def test_row_19_the_rollback_signal_says_why(world: World) -> None:
    """The reason of unit_rolled_back names the exception and the place."""
    reasons: list[str] = []
    place: list[str] = []

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="view").save()
        place.append(next_line())
        raise ZeroDivisionError

    def rolled_back(sender: Flask, reason: str) -> None:
        reasons.append(reason)

    with unit_rolled_back.connected_to(rolled_back, sender=world.app):
        world.app.test_client().get("/")
    (reason,) = reasons
    assert "ZeroDivisionError" in reason
    assert place[0] in reason


def test_row_19_a_failing_signal_receiver_spoils_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver that raises is logged; the request stays committed, and callbacks run."""
    history: list[str] = []

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="view").save()
        world.auto.on_commit(lambda: history.append("callback"))
        return "done"

    def committed(sender: Flask) -> None:
        raise ZeroDivisionError

    with unit_committed.connected_to(committed, sender=world.app):
        assert world.app.test_client().get("/").status_code == 200
    assert history == ["callback"]
    assert world.database.names == ["view"]
    assert len(told(caplog, logging.ERROR)) == 1


# Row 20: after the decision -------------------------------------------------------------------


def teardown_request(world: World, work: Callable[[], None]) -> None:
    @world.app.teardown_request
    def teardown(error: BaseException | None) -> None:
        work()


def tearing_down_signal(world: World, work: Callable[[], None]) -> None:
    def receiver(sender: Flask, **_: Any) -> None:
        work()

    request_tearing_down.connect(receiver, world.app, weak=False)


def finished_signal(world: World, work: Callable[[], None]) -> None:
    def receiver(sender: Flask, **_: Any) -> None:
        work()

    request_finished.connect(receiver, world.app, weak=False)


PLACES = {
    "teardown_request": teardown_request,
    "request_tearing_down": tearing_down_signal,
    "request_finished": finished_signal,
}


def write_afterwards(world: World, place: str, status: int, *, commit: bool) -> None:
    """Visit a view, and write a row in a function that runs when the response is decided."""

    @world.app.get("/")
    def view() -> tuple[str, int]:
        world.Thing(name="view").save()
        return "done", status

    def work() -> None:
        world.Thing(name="afterwards").save()
        if commit:
            world.db.session.commit()

    PLACES[place](world, work)
    response = world.app.test_client().get("/")
    assert (response.status_code, response.text) == (status, "done")


DECIDED = [
    # After these the unit has ended. Receivers of request_finished come before a COMMIT, so that
    # one that raises can still prevent it; where the response says failure, all is decided.
    ("teardown_request", 200),
    ("teardown_request", 400),
    ("request_tearing_down", 200),
    ("request_tearing_down", 400),
    ("request_finished", 400),
]


@pytest.mark.parametrize(("place", "status"), DECIDED)
@pytest.mark.parametrize("mode", MODES)
def test_row_20_explicit_commits_commit(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture, place: str, status: int, mode: str
) -> None:
    """After the decision a commit keeps what was written after it, and only that, untold."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT=mode)
    write_afterwards(world, place, status, commit=True)
    assert world.database.names == (["view", "afterwards"] if status == 200 else ["afterwards"])
    assert told(caplog) == []


@pytest.mark.parametrize(("place", "status"), DECIDED)
def test_row_20_what_is_left_uncommitted_is_dropped_with_a_warning(
    world: World, caplog: pytest.LogCaptureFixture, place: str, status: int
) -> None:
    """After the decision, what nobody commits is not kept, and the log says so."""
    write_afterwards(world, place, status, commit=False)
    assert world.database.names == (["view"] if status == 200 else [])
    assert len(told(caplog)) == 1


@pytest.mark.parametrize("mode", ["warn", "allow", "flush"])
@pytest.mark.parametrize("commit", [True, False])
def test_row_20_request_finished_receivers_of_a_success_belong_to_the_unit(
    make_world: MakeWorld, mode: str, commit: bool
) -> None:
    """What a receiver of request_finished writes behind a success is committed with the view's."""
    world = make_world(AUTOSESSION_EXPLICIT_COMMIT=mode)
    write_afterwards(world, "request_finished", 200, commit=commit)
    assert world.database.names == ["view", "afterwards"]


def test_row_20_a_request_finished_receiver_that_raises_prevents_the_commit(world: World) -> None:
    """A receiver of request_finished that raises makes it a 500, and then nothing is kept."""

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="view").save()
        return "done"

    def work() -> None:
        world.Thing(name="afterwards").save()
        raise ZeroDivisionError

    finished_signal(world, work)
    assert world.app.test_client().get("/").status_code == 500
    assert world.database.names == []


@pytest.mark.parametrize("place", ["teardown_request", "request_tearing_down"])
def test_row_20_reads_in_a_teardown_leave_no_trace(
    world: World, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    """A teardown function that only reads is not warned of, and keeps no connection."""
    seen: list[list[str]] = []

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="view").save()
        return "done"

    PLACES[place](world, lambda: seen.append(visible(world)))
    world.app.test_client().get("/")
    assert seen == [["view"]]
    assert told(caplog) == []


def test_row_20_a_teardown_function_that_fails_takes_back_nothing(world: World) -> None:
    """A teardown function that writes and raises loses its own work, not the request's."""

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="view").save()
        return "done"

    @world.app.teardown_request
    def teardown(error: BaseException | None) -> None:
        world.Thing(name="afterwards").save()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        world.app.test_client().get("/")
    assert world.database.names == ["view"]


def test_row_20_callbacks_registered_after_the_decision_follow_their_own_unit(
    world: World,
) -> None:
    """An on_commit registered in a teardown function runs if that function commits."""
    history: list[str] = []

    @world.app.get("/<commit>")
    def view(commit: str) -> str:
        return "done"

    @world.app.teardown_request
    def teardown(error: BaseException | None) -> None:
        world.auto.on_commit(lambda: history.append(f"committed {request.path}"))
        world.auto.on_rollback(lambda: history.append(f"rolled back {request.path}"))
        world.Thing(name=request.path).save()
        if request.path == "/yes":
            world.db.session.commit()

    client = world.app.test_client()
    client.get("/yes")
    client.get("/no")
    assert history == ["committed /yes", "rolled back /no"]
    assert world.database.names == ["/yes"]
