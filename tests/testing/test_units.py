"""What became of units of work in a test, and the functions that waited for their commit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import click
import pytest
from sqlalchemy.exc import IntegrityError

from flask_autosession.testing import (
    EndedUnit,
    capture_on_commit_callbacks,
    isolate,
    record_units,
)

from ..world import Database, World

Caplog = pytest.LogCaptureFixture
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
pytestmark = on_sqlite  # nothing here is said by a database


def serve(world: World, view: Callable[[], Any]) -> Any:
    """Serve one request with a view of its own, and return the response."""
    if "view" not in world.app.view_functions:
        world.app.add_url_rule("/", "view", methods=["POST"])
    world.app.view_functions["view"] = view
    return world.app.test_client().post("/")


def save(world: World, name: str, status: int = 200) -> Callable[[], Any]:
    """Return a view that saves a thing and answers."""

    def view() -> Any:
        world.Thing(name=name).save()
        return name, status

    return view


# Recording


def test_each_unit_that_ends_is_recorded(world: World) -> None:
    """Whether it was committed, why, and what it belonged to, in the order of their ends."""

    def fail() -> None:
        world.Thing(name="raised").save()
        raise ZeroDivisionError

    with isolate(world.app), record_units(world.app) as units:
        serve(world, save(world, "kept", 201))
        serve(world, save(world, "refused", 400))
        serve(world, fail)
    kept, refused, raised = units
    assert kept == EndedUnit(True, "the response says success", "POST / 201")
    assert refused == EndedUnit(False, "the response says failure", "POST / 400")
    assert (raised.committed, raised.name) == (False, "POST /")
    assert raised.reason.startswith("ZeroDivisionError at ")
    assert "test_units.py:" in raised.reason


def test_units_that_no_request_made_are_recorded(world: World) -> None:
    """Units of auto.unit(), of commands, of callbacks and explicit commits are told apart."""

    @world.app.cli.command()
    def create() -> None:
        world.Thing(name="command").save()
        click.get_current_context().exit(3)

    def later() -> None:
        world.Thing(name="later").save()

    with isolate(world.app), record_units(world.app) as units:
        with world.auto.unit(world.app):
            world.auto.on_commit(later)
            world.Thing(name="unit").save()
        world.app.test_cli_runner().invoke(args=["create"])
        with world.app.app_context():
            world.Thing(name="explicit").save()
            world.db.session.commit()
            world.Thing(name="rolled back").save()
            world.db.session.rollback()
    told = [(unit.committed, unit.reason) for unit in units]
    assert told[0] == (True, "the unit was left")
    assert told[1] == (True, "it returned")
    assert "later" in units[1].name
    assert told[2][0] is False
    assert told[3:] == [(True, "explicit commit"), (False, "explicit rollback()")]


def test_what_doomed_a_unit_is_recorded(world: World) -> None:
    """The reason of a doomed unit says what failed first."""

    def view() -> str:
        world.Thing(name="same").save()
        with pytest.raises(IntegrityError):
            world.Thing(name="same").save()
        return "fine"

    with isolate(world.app), record_units(world.app) as units:
        serve(world, view)
    [unit] = units
    assert unit.committed is False
    assert unit.reason.startswith("doomed: IntegrityError at ")


def test_units_that_were_never_used_are_not_recorded(world: World) -> None:
    """Requests and contexts that did not touch the session leave no trace."""
    with isolate(world.app), record_units(world.app) as units:
        serve(world, lambda: "nothing")
        with world.app.app_context():
            pass
    assert units == []


def test_recording_ends_with_the_block(world: World) -> None:
    """What comes behind the block, or belongs to another application, is not recorded."""
    other = World(world.database)
    with isolate(world.app), isolate(other.app):
        with record_units(world.app) as units:
            serve(other, save(other, "other"))
        serve(world, save(world, "behind"))
    assert units == []
    other.close()


def test_recording_needs_no_isolation(world: World) -> None:
    """Units are recorded wherever the application runs."""
    with record_units(world.app) as units:
        serve(world, save(world, "kept"))
    assert [unit.committed for unit in units] == [True]
    assert world.database.names == ["kept"]


def test_the_applications_receivers_are_still_told(world: World) -> None:
    """Signals and callbacks come as ever while units are recorded."""
    history: list[str] = []

    def view() -> str:
        world.auto.on_commit(lambda: history.append("callback"))
        world.Thing(name="kept").save()
        return "done"

    with isolate(world.app), record_units(world.app) as units:
        serve(world, view)
    assert (history, [unit.committed for unit in units]) == (["callback"], [True])


# Callbacks


def _waiting(world: World, history: list[str], status: int = 200) -> Callable[[], Any]:
    def view() -> Any:
        for name in ("first", "second"):
            world.auto.on_commit(lambda name=name: history.append(name))
        world.Thing(name="kept").save()
        return "done", status

    return view


def test_callbacks_are_captured_and_run(world: World) -> None:
    """They are in the list in their order, and have run where they always do."""
    history: list[str] = []
    with isolate(world.app), capture_on_commit_callbacks(world.app) as callbacks:
        serve(world, _waiting(world, history))
        assert history == ["first", "second"]
    assert len(callbacks) == 2


def test_callbacks_are_captured_and_not_run(world: World) -> None:
    """With run=False a test looks at them, and can call them itself."""
    history: list[str] = []
    with (
        isolate(world.app),
        capture_on_commit_callbacks(world.app, run=False) as callbacks,
    ):
        assert serve(world, _waiting(world, history)).status_code == 200
    assert history == []
    for callback in callbacks:
        callback()
    assert history == ["first", "second"]


@pytest.mark.parametrize("run", [True, False])
def test_callbacks_of_a_unit_that_is_rolled_back_are_not_captured(world: World, run: bool) -> None:
    """What was never to run is not in the list; on_rollback functions run as ever."""
    history: list[str] = []

    def view() -> Any:
        world.auto.on_rollback(lambda: history.append("rolled back"))
        return _waiting(world, history, 400)()

    with isolate(world.app), capture_on_commit_callbacks(world.app, run=run) as callbacks:
        serve(world, view)
    assert (callbacks, history) == ([], ["rolled back"])


def test_callbacks_of_callbacks_are_captured(world: World) -> None:
    """A function that is registered by another one that runs is captured as well."""
    history: list[str] = []

    def inner() -> None:
        history.append("inner")

    def outer() -> None:
        world.auto.on_commit(inner)

    def view() -> str:
        world.auto.on_commit(outer)
        return "done"

    with isolate(world.app), capture_on_commit_callbacks(world.app) as callbacks:
        serve(world, view)
    assert (callbacks, history) == ([outer, inner], ["inner"])


def test_callbacks_run_again_after_the_block(world: World) -> None:
    """What comes behind the block runs, and is not captured."""
    history: list[str] = []
    with isolate(world.app):
        with capture_on_commit_callbacks(world.app, run=False) as callbacks:
            serve(world, lambda: "nothing")
        serve(world, _waiting(world, history))
    assert (callbacks, history) == ([], ["first", "second"])


# Work that a bare context has dropped


def warnings(caplog: Caplog) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.mark.parametrize("strategy", ["rollback", "truncate"])
@pytest.mark.parametrize("look", ["request", "context"])
def test_dropped_work_is_warned_of_when_the_test_looks(
    world: World, caplog: Caplog, look: str, strategy: str
) -> None:
    """A test that looks for what a bare context wrote is told why it is not there, once."""
    with isolate(world.app, strategy):
        with world.app.app_context():
            world.Thing(name="dropped").save()
        assert warnings(caplog) == []
        for _ in range(2):
            if look == "request":
                assert serve(world, lambda: str(world.Thing.query.count())).text == "0"
            else:
                with world.app.app_context():
                    assert world.Thing.query.count() == 0
    [warning] = warnings(caplog)
    assert "An app context was left, and what it wrote was dropped" in warning
    assert "with auto.unit():" in warning


def test_dropped_work_that_nobody_looks_for_is_not_warned_of(world: World, caplog: Caplog) -> None:
    """A test whose last context ends with its work, as most do, gets no warning."""
    with isolate(world.app), world.app.app_context():
        world.Thing(name="mine").save()
        assert serve(world, lambda: str(world.Thing.query.count())).text == "1"
    with isolate(world.app):
        serve(world, save(world, "next test"))
    assert warnings(caplog) == []


def test_contexts_that_dropped_nothing_are_not_warned_of(world: World, caplog: Caplog) -> None:
    """Contexts that only read, that commit, or that roll back themselves are no reason to warn."""
    with isolate(world.app):
        for end in (world.db.session.rollback, world.db.session.commit):
            with world.app.app_context():
                world.Thing(name="a").save()
                end()
                world.Thing.query.count()
        with world.app.app_context():
            world.Thing.query.count()
        serve(world, lambda: str(world.Thing.query.count()))
    assert warnings(caplog) == []


def test_work_that_is_dropped_outside_of_a_block_is_not_warned_of(
    database: Database, caplog: Caplog
) -> None:
    """The warning is for tests; an application that drops work on purpose knows."""
    world = World(database, AUTOSESSION_COMMIT_CONTEXTS=False)
    with world.app.app_context():
        world.Thing(name="dropped").save()
    with isolate(world.app):
        serve(world, lambda: str(world.Thing.query.count()))
    assert warnings(caplog) == []
    world.close()
