"""Ways around the contract that were found by trying to break it, one test each."""

from __future__ import annotations

import contextvars
import gc
import logging
import re
import subprocess
import sys
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy as sa
from flask import (
    Flask,
    Response,
    abort,
    copy_current_request_context,
    g,
    redirect,
    request,
    request_finished,
    request_started,
    stream_with_context,
)
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session
from sqlalchemy.exc import DBAPIError, IntegrityError

from flask_autosession import (
    AutoSession,
    AutoSessionError,
    ConfigError,
    DoomedError,
    NoUnitError,
    unit_committed,
    unit_rolled_back,
)

from .test_rows_request import answer
from .world import Database, World, thing


def test_row_06_a_listener_that_stops_the_commit_is_told_as_failure(world: World) -> None:
    """COMMIT was announced but never sent: the client is not told done."""
    with world.app.app_context():
        world.db.session.connection()  # the extension's own listeners are there from here on
        engine = world.db.engine

    @sa.event.listens_for(engine, "commit")
    def commit(connection: sa.Connection) -> None:
        raise ValueError("stop")

    assert answer(world, lambda: str(world.Thing(name="gone").save().id)) == 500
    assert world.database.names == []


def test_row_01_a_listener_that_fails_behind_the_commit_does_not_undo_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What is durable is told as done; the listener's failure is in the log."""
    history: list[str] = []

    @sa.event.listens_for(world.db.session, "after_commit")
    def after_commit(session: Any) -> None:
        raise ValueError("too late")

    def view() -> str:
        world.auto.on_commit(lambda: history.append("committed"))
        world.Thing(name="kept").save()
        return "done"

    assert answer(world, view) == 200
    assert world.database.names == ["kept"]
    assert history == ["committed"]
    assert "A listener failed after the commit" in caplog.text


def test_row_01_being_killed_behind_the_commit_does_not_undo_it(world: World) -> None:
    """What is no Exception goes on its way, and the work stays."""

    @sa.event.listens_for(world.db.session, "after_commit")
    def after_commit(session: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(world, lambda: str(world.Thing(name="kept").save().id))
    assert world.database.names == ["kept"]


def test_row_11_a_failure_swallowed_while_committing_is_told_as_failure(world: World) -> None:
    """A before_commit listener whose statement fails in silence stops the commit."""

    @sa.event.listens_for(world.db.session, "before_commit")
    def before_commit(session: Any) -> None:
        try:
            session.execute(sa.text("SELECT x FROM nowhere"))
        except DBAPIError:
            pass

    assert answer(world, lambda: str(world.Thing(name="gone").save().id)) == 500
    assert world.database.names == []


def test_row_15_a_session_that_was_kept_commits_for_itself(world: World) -> None:
    """A session object that outlived its context is the application's own again."""
    with world.app.app_context():
        session = world.db.session()
    with world.app.app_context():
        session.add(world.Thing(name="kept"))
        session.commit()
        session.close()
    assert world.database.names == ["kept"]


def test_row_30_a_copied_request_context_in_the_same_thread_ends_nothing(world: World) -> None:
    """copy_current_request_context inside the request leaves its unit alone."""

    def view() -> str:
        world.Thing(name="before").save()
        copy = copy_current_request_context(lambda: request.path)
        assert copy() == "/"
        assert contextvars.copy_context().run(copy) == "/"
        world.Thing(name="after").save()
        return "done"

    assert answer(world, view) == 200
    assert world.database.names == ["before", "after"]


def test_row_23_an_exception_that_was_in_flight_before_rolls_back_too(world: World) -> None:
    """What leaves auto.unit() rolls it back, wherever it was raised first."""

    def retry() -> None:
        try:
            raise ValueError("first")
        except ValueError:
            with world.auto.unit(world.app):
                world.Thing(name="gone").save()
                raise

    with pytest.raises(ValueError, match="first"):
        retry()
    assert world.database.names == []


@pytest.mark.parametrize(("code", "durable"), [(None, ["kept"]), (0, ["kept"]), (3, [])])
def test_row_23_sys_exit_goes_by_its_code(
    world: World, code: int | None, durable: list[str]
) -> None:
    """auto.unit() left by sys.exit(0) is committed, by any other code rolled back."""
    with pytest.raises(SystemExit), world.auto.unit(world.app):
        world.Thing(name="kept").save()
        raise SystemExit(code)
    assert world.database.names == durable


def test_row_23_a_unit_whose_context_is_taken_away_is_rolled_back(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the end of the block commits, not the end of its context."""
    with pytest.raises(AssertionError, match="Popped wrong app context"), world.app.app_context():
        unit = world.auto.unit()
        unit.__enter__()
        world.Thing(name="gone").save()
    assert world.database.names == []
    assert "auto.unit()" in caplog.text
    with pytest.raises(LookupError):
        unit.__exit__(None, None, None)


@pytest.mark.parametrize("status", [200, 400])
def test_row_19_receivers_may_use_the_database(world: World, status: int) -> None:
    """A signal's receiver is a unit of its own that is not signalled again."""
    history: list[str] = []

    def committed(sender: Flask) -> None:
        history.append("committed")
        world.Thing(name="receiver").save()

    def rolled_back(sender: Flask, reason: str) -> None:
        history.append("rolled back")
        world.Thing(name="receiver").save()

    def view() -> Any:
        world.Thing(name="view").save()
        return "", status

    with (
        unit_committed.connected_to(committed, sender=world.app),
        unit_rolled_back.connected_to(rolled_back, sender=world.app),
    ):
        assert answer(world, view) == status
    assert history == ["committed" if status == 200 else "rolled back"]
    assert world.database.names == (["view", "receiver"] if status == 200 else ["receiver"])


def test_row_18_the_error_handler_of_a_manual_view_is_judged_as_ever(world: World) -> None:
    """The view commits by itself; what handles its error need not."""

    @world.app.errorhandler(ValueError)
    def handler(error: ValueError) -> str:
        world.Thing(name="handler").save()
        return "handled"

    @world.auto.manual
    def view() -> str:
        world.Thing(name="gone").save()
        raise ValueError

    assert answer(world, view) == 200
    assert world.database.names == ["handler"]


def _receiver(world: World) -> None:
    def started(sender: Flask, **_: Any) -> None:
        world.Thing(name="gone").save()
        raise ValueError

    request_started.connect(started, world.app, weak=False)


def _wrapper(world: World) -> None:
    dispatch = world.app.dispatch_request

    def dispatch_request(*args: Any) -> Any:
        dispatch(*args)
        raise ValueError

    world.app.dispatch_request = dispatch_request  # type: ignore[method-assign]


def _session(world: World) -> None:
    class Interface(SecureCookieSessionInterface):
        def open_session(self, *_: Any) -> SecureCookieSession:
            world.Thing(name="gone").save()
            raise ValueError

    world.app.session_interface = Interface()


@pytest.mark.parametrize("fail", [_receiver, _wrapper, _session])
def test_row_03_what_is_raised_past_the_view_rolls_back_too(world: World, fail: Any) -> None:
    """An exception of a receiver, a wrapper or the session is an error like the view's own."""
    fail(world)

    @world.app.errorhandler(ValueError)
    @world.app.errorhandler(500)
    def handler(error: Exception) -> str:
        world.Thing(name="handler").save()
        return "handled"

    def view() -> str:
        world.Thing(name="gone").save()
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == ["handler"]


def test_row_06_a_commit_that_swallows_its_failure_is_told_as_failure(
    database: Database,
) -> None:
    """A session class whose commit() hides what went wrong cannot hide it from the client."""
    if database.kind == "mariadb":
        pytest.skip("MariaDB knows no deferred constraints: its COMMIT does not fail this way")

    class Quiet(Session):
        def commit(self) -> None:
            try:
                super().commit()
            except IntegrityError:
                self.rollback()

    db = SQLAlchemy(session_options={"class_": Quiet})
    app = Flask("quiet")
    app.config["SQLALCHEMY_DATABASE_URI"] = database.uri
    AutoSession(app, db=db)

    @app.get("/")
    def view() -> str:
        if database.kind == "sqlite":
            db.session.execute(sa.text("PRAGMA foreign_keys = ON"))
        db.session.execute(sa.insert(thing).values(name="gone", parent=-1))
        return "told"

    assert app.test_client().get("/").status_code == 500
    with app.app_context():
        db.engine.dispose()
    assert database.names == []


def test_row_01_a_response_is_made_once_for_each_answer(database: Database) -> None:
    """An application whose make_response() wraps what it is given wraps it once."""

    class Envelope(Flask):
        def make_response(self, rv: Any) -> Any:
            return super().make_response({"data": rv})

    class EnvelopeWorld(World):
        def make_app(self, **config: Any) -> Flask:
            self.app = Envelope("envelope")
            self.app.config.update(SQLALCHEMY_DATABASE_URI=self.database.uri, **config)
            return self.app

    world = EnvelopeWorld(database)

    @world.app.get("/")
    def view() -> str:
        world.db.session.add(world.Thing(name="kept"))
        return "ok"

    assert world.app.test_client().get("/").get_json() == {"data": "ok"}
    world.close()
    assert database.names == ["kept"]


def test_row_33_a_context_may_be_pushed_twice_in_a_request(world: World) -> None:
    """Each time it is left, its work is committed."""

    def view() -> str:
        context = world.app.app_context()
        for name in ("first", "second"):
            with context:
                world.Thing(name=name).save()
        return "done"

    assert answer(world, view) == 200
    assert world.database.names == ["first", "second"]


def test_row_18_pending_changes_of_a_manual_view_are_left_alone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Hands off: what it left pending is dropped with a warning, not flushed."""

    @world.auto.manual
    def view() -> str:
        world.Thing(name="kept").save()
        world.db.session.commit()
        world.db.session.add(world.Thing(name="kept"))
        return "done"

    assert answer(world, view) == 200
    assert world.database.names == ["kept"]
    assert "@auto.manual" in caplog.text


def test_row_01_a_listener_that_fails_behind_the_commit_costs_no_connection(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Its failure is one line in the log, and the connection goes back to the pool."""
    closed: list[Any] = []
    with world.app.app_context():
        sa.event.listen(world.db.engine, "invalidate", lambda *args: closed.append(args))

    @sa.event.listens_for(world.db.session, "after_commit")
    def after_commit(session: Any) -> None:
        raise ValueError("too late")

    assert answer(world, lambda: str(world.Thing(name="kept").save().id)) == 200
    assert closed == []
    assert "ROLLBACK failed" not in caplog.text


def test_row_02_sqlalchemys_rollback_events_are_sent(world: World) -> None:
    """Libraries that clean up on after_rollback and after_soft_rollback are told."""
    history: list[str] = []
    sa.event.listen(world.db.session, "after_rollback", lambda _: history.append("rollback"))
    sa.event.listen(world.db.session, "after_soft_rollback", lambda *_: history.append("soft"))

    def view() -> Any:
        world.Thing(name="gone").save()
        return "", 400

    assert answer(world, view) == 400
    assert history == ["rollback", "soft"]


@pytest.mark.parametrize("status", [200, 400])
def test_loaded_attributes_stay_readable_behind_the_end(world: World, status: int) -> None:
    """Whatever became of the unit, what was loaded can be read; the rest is detached."""
    world.database.insert("old")
    seen: list[Any] = []

    def view() -> Any:
        seen.append(world.Thing.query.one())
        world.Thing(name="new").save()
        return "", status

    assert answer(world, view) == status
    assert seen[0].name == "old"
    assert sa.inspect(seen[0]).detached


def test_autocommit_chosen_in_a_request_keeps_nothing(world: World) -> None:
    """A connection at AUTOCOMMIT is refused, and swallowing that does not help."""
    if world.database.kind == "sqlite":
        pytest.skip("SQLite gets real transactions at that level too")

    def view() -> Any:
        options = {"isolation_level": "AUTOCOMMIT"}
        with pytest.raises(ConfigError):
            world.db.session.connection(execution_options=options)
        with pytest.raises(DoomedError):
            world.Thing(name="gone").save()
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == []


def test_nothing_of_a_users_data_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Neither at DEBUG nor above does a line of this package quote a row's values."""
    caplog.set_level(logging.DEBUG, logger="flask_autosession")
    world.database.insert("secret")

    def view() -> str:
        try:
            world.Thing(name="secret").save()
        except IntegrityError:
            pass
        return "told"

    assert answer(world, view) == 200
    lines = [r.getMessage() for r in caplog.records if r.name == "flask_autosession"]
    assert lines
    assert not any("secret" in line for line in lines)


# Savepoints and units that are left in unusual ways


def test_row_10_a_savepoint_that_is_never_left_is_part_of_the_unit(world: World) -> None:
    """As with SQLAlchemy's own, what was done in it is committed with the rest."""

    def view() -> str:
        world.auto.savepoint().__enter__()
        world.Thing(name="kept").save()
        return "done"

    assert answer(world, view) == 200
    assert world.database.names == ["kept"]


@pytest.mark.parametrize("block", ["savepoint", "decorator", "unit"])
def test_row_05_a_raised_redirect_keeps_the_work_of_the_block_it_leaves(
    world: World, block: str
) -> None:
    """abort(redirect(...)) is control flow for auto.savepoint() and auto.unit() as well."""

    def work() -> None:
        world.Thing(name="kept").save()
        abort(redirect("/elsewhere"))

    def view() -> None:
        if block == "decorator":
            world.auto.savepoint()(work)()
        with world.auto.savepoint() if block == "savepoint" else world.auto.unit():
            work()

    assert answer(world, view) == 302
    assert world.database.names == ["kept"]


def test_row_10_one_savepoint_object_may_be_shared(world: World) -> None:
    """It can be nested in itself and used again, and each block ends its own savepoint."""
    guard = world.auto.savepoint()

    def view() -> str:
        with guard:
            world.Thing(name="outer").save()
            with pytest.raises(KeyError), guard:
                world.Thing(name="gone").save()
                raise KeyError
        with guard:
            world.Thing(name="again").save()
        return "done"

    assert answer(world, view) == 200
    assert world.database.names == ["outer", "again"]


def test_row_10_a_savepoint_is_left_where_it_was_entered(world: World) -> None:
    """Leaving it in another context is a clear error, and ends no savepoint of that context."""
    with world.app.app_context():
        guard = world.auto.savepoint()
        with world.app.app_context(), pytest.raises(NoUnitError, match="The end of"):
            guard.__exit__(None, None, None)


def test_row_10_saving_what_has_not_changed_in_a_doomed_unit_is_no_error(world: World) -> None:
    """Nothing is written, so nothing is refused."""
    world.database.insert("a")

    def view() -> str:
        with pytest.raises(IntegrityError):
            world.db.session.execute(sa.insert(thing).values(name="a"))
        with world.auto.savepoint():
            world.Thing.query.one().update(name="a")
        return "done"

    assert answer(world, view) == 200
    assert world.database.names == ["a"]


def test_row_16_a_script_may_roll_back_as_often_as_it_likes(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no response says success, dropping work by choice is nobody's surprise."""
    with world.app.app_context():
        for _ in range(3):
            world.Thing(name="gone").save()
            world.db.session.rollback()
        world.Thing(name="kept").save()
    assert world.database.names == ["kept"]
    assert caplog.records == []


def test_row_19_a_callback_that_is_killed_takes_the_others_along(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What is no Exception goes on its way; what was not run is told."""
    history: list[str] = []

    def killed() -> None:
        world.Thing(name="gone").save()
        raise KeyboardInterrupt

    def view() -> str:
        world.Thing(name="kept").save()
        world.auto.on_commit(killed)
        world.auto.on_commit(lambda: history.append("never"))
        return "done"

    with pytest.raises(KeyboardInterrupt):
        answer(world, view)
    assert world.database.names == ["kept"]
    assert history == []
    assert "1 callbacks were not run" in caplog.text


def test_row_20_what_a_context_teardown_function_writes_is_told_of(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes too late to be committed, and right before the session is removed."""

    @world.app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        world.Thing(name="late").save()

    assert answer(world, lambda: str(world.Thing(name="kept").save().id)) == 200
    assert world.database.names == ["kept"]
    (record,) = caplog.records
    assert "it was written while the context was torn down" in record.getMessage()


def test_row_20_a_context_teardown_function_may_be_the_first_to_touch_the_session(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that did not use the database is over, too: what comes later is dropped."""

    @world.app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        world.Thing(name="late").save()

    assert answer(world, lambda: "nothing") == 200
    assert world.database.names == []
    (record,) = caplog.records
    assert "it was written while the context was torn down" in record.getMessage()


def test_row_20_what_a_teardown_function_drops_by_choice_is_told_of(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A rollback() behind a response that says success names its place."""

    @world.app.teardown_request
    def teardown(error: BaseException | None) -> None:
        world.Thing(name="late").save()
        world.db.session.rollback()

    assert answer(world, lambda: str(world.Thing(name="kept").save().id)) == 200
    assert world.database.names == ["kept"]
    (record,) = caplog.records
    assert re.search(r"rollback\(\) was called at .*test_hardening\.py", record.getMessage())


def test_row_02_an_engine_with_options_of_its_own_is_followed_too(world: World) -> None:
    """What goes through ``engine.execution_options()`` is part of the unit, and fails with it."""

    @world.app.post("/<int:status>")
    def view(status: int) -> Any:
        engine = world.db.engine.execution_options(logging_token="other")
        insert = sa.insert(thing).values(name=f"row {status}")
        world.db.session.execute(insert, bind_arguments={"bind": engine})
        return "", status

    client = world.app.test_client()
    assert [client.post(f"/{status}").status_code for status in (201, 400, 202)] == [201, 400, 202]
    assert world.database.names == ["row 201", "row 202"]


SAVED_TWICE = """
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_autosession import AutoSession

db, app = SQLAlchemy(), Flask("twice")
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
AutoSession(app, db=db)

class Item(db.Model):
    id = sa.Column(sa.Integer, primary_key=True)

item = Item()
app.add_url_rule("/<int:status>", "view", lambda status: (str(item.save().id), status))
with app.app_context():
    db.create_all()
told = [app.test_client().get(f"/{status}").status_code for status in (400, 200)]
with app.app_context():
    print(told, Item.query.count())
    engine = db.engine
engine.dispose()
"""


OWN_ROLLBACK = """
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session
from flask_autosession import AutoSession

class Telling(Session):
    def rollback(self):
        print("rolled back")
        super().rollback()

db, app = SQLAlchemy(session_options={"class_": Telling}), Flask("telling")
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
AutoSession(app, db=db)
app.add_url_rule("/", "view", lambda: (str(db.session.scalar(sa.text("SELECT 1"))), 404))
print(app.test_client().get("/").text)
with app.app_context():
    db.engine.dispose()
"""


@pytest.mark.parametrize(
    ("program", "said"), [(SAVED_TWICE, "[400, 200] 1\n"), (OWN_ROLLBACK, "rolled back\n1\n")]
)
def test_row_02_where_the_testing_toolkit_does_not_listen(program: str, said: str) -> None:
    """A refused request's object can be saved by a later one; a rollback() of one's own is heard.

    The toolkit listens to all sessions of its process, so that they are rolled back in another way.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == (said, "")


def test_row_02_what_was_given_to_another_session_is_left_alone(world: World) -> None:
    """A rollback takes nothing away from a session that is the application's own."""
    own, given = world.db.session.session_factory(), []

    def view() -> Any:
        given.append(world.Thing(name="moved").save())
        world.db.session.expunge(given[0])
        own.add(given[0])
        return "", 400

    assert answer(world, view) == 400
    assert list(own) == given
    own.close()
    assert world.database.names == []


def test_a_session_made_from_the_factory_deletes_by_itself(world: World) -> None:
    """It belongs to no unit of work, and commits what it is told to."""
    world.database.insert("old")
    with world.app.app_context(), world.db.session.session_factory() as own:
        own.delete(own.scalars(sa.select(world.Thing)).one())
        own.commit()
    assert world.database.names == []


def test_row_03_a_handler_put_in_front_later_cannot_keep_half_of_the_work(world: World) -> None:
    """What takes the place of Flask's error handling, at any time, comes behind the rollback."""

    @world.app.get("/<name>")
    def view(name: str) -> Any:
        world.Thing(name=name).save()
        raise LookupError(name)

    client = world.app.test_client()
    assert client.get("/first").status_code == 500
    world.app.handle_user_exception = lambda *_: ("answered", 200)  # type: ignore[method-assign]
    assert client.get("/second").status_code == 200
    assert world.database.names == []


def test_row_30_the_sessions_of_another_autosession_are_not_those_of_this_one(
    world: World, tmp_path: Path
) -> None:
    """A model of another application is not written into this one's database."""
    db = SQLAlchemy()
    other = Flask("other")
    other.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'other.db'}"
    AutoSession(other, db=db)

    class Foreign(db.Model):  # type: ignore[name-defined,misc]
        __table__ = sa.Table(
            "thing",
            db.metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("name", sa.String(50)),
        )

    def view() -> Any:
        world.Thing(name="own").save()
        with pytest.raises(RuntimeError, match="not registered"):
            Foreign(name="foreign").save()
        return "done"

    assert answer(world, view) == 200
    assert world.database.names == ["own"]
    with other.app_context():
        db.session.remove()
        db.engine.dispose()


# What goes past the session


@pytest.mark.parametrize("method", ["reset", "invalidate"])
def test_row_16_other_ways_to_drop_the_session(
    world: World, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """reset() and invalidate() drop what was done, with a warning behind a success."""

    def view() -> str:
        world.Thing(name="gone").save()
        getattr(world.db.session(), method)()
        world.Thing(name="kept").save()
        return "done"

    assert answer(world, view) == 200
    assert world.database.names == ["kept"]
    assert f"{method}() was called" in caplog.text


def test_row_15_the_transaction_object_cannot_commit_past_the_unit(world: World) -> None:
    """get_transaction().commit() is refused with a sentence that says what to call."""

    def view() -> str:
        world.Thing(name="kept").save()
        with pytest.raises(AutoSessionError, match=r"Call db\.session\.commit\(\)"):
            world.db.session().get_transaction().commit()
        return "done"

    assert answer(world, view) == 200
    assert world.database.names == ["kept"]


def test_row_15_a_raw_commit_on_the_connection_is_explicit(world: World) -> None:
    """What the connection itself commits stays, whatever the response says."""

    def view() -> Any:
        world.Thing(name="kept").save()
        world.db.session.connection().commit()
        return "", 400

    assert answer(world, view) == 400
    assert world.database.names == ["kept"]


def test_row_15_what_session_begin_returns_can_be_used_by_hand(world: World) -> None:
    """The object has commit(), rollback() and whatever else SQLAlchemy's has."""

    def view() -> str:
        transaction = world.db.session.begin()
        world.Thing(name="gone").save()
        assert transaction.is_active
        transaction.rollback()
        transaction = world.db.session.begin()
        world.Thing(name="kept").save()
        transaction.commit()
        return "done"

    assert answer(world, view) == 200
    assert world.database.names == ["kept"]


def test_row_06_an_invalidated_connection_is_told_as_failure(world: World) -> None:
    """A connection that was thrown away under the unit cannot be committed."""

    def view() -> str:
        world.Thing(name="gone").save()
        world.db.session.connection().invalidate()
        return "told"

    assert answer(world, view) == 500
    assert world.database.names == []


def test_a_session_of_ones_own_is_nobodys_unit(world: World) -> None:
    """db.session.session_factory makes sessions that behave as SQLAlchemy says."""
    with world.app.app_context():
        session = world.db.session.session_factory()
        session.add(world.Thing(name="own"))
        with session.begin_nested():
            session.connection()
        session.commit()
        session.close()
        kept = world.db.session()
        with kept.begin_nested():
            pass
        world.db.session.remove()
        with kept.begin_nested():
            kept.add(world.Thing(name="kept"))
        kept.commit()
        kept.close()
        world.db.session.registry.set(sa.orm.Session(world.db.engine))
        world.db.session.add(world.Thing(name="foreign"))
        world.db.session.commit()
        world.db.session.remove()
    assert world.database.names == ["own", "kept", "foreign"]


def test_doom_and_manual_may_be_said_twice_or_in_vain(world: World) -> None:
    """doom() is told from its first place; a manual view called outside of a request just runs."""

    @world.auto.manual
    def view() -> str:
        return "ran"

    with world.app.app_context():
        world.auto.doom()
        world.auto.doom()
        world.Thing(name="gone").save()
        assert view() == "ran"
    assert world.database.names == []


def test_an_attribute_set_to_what_it_was_in_a_dead_savepoint(world: World) -> None:
    """A savepoint inside one in which a statement has failed can be left: only the outer fails."""
    with world.app.app_context():
        one = world.Thing(name="one").save()
        with pytest.raises(DoomedError), world.auto.savepoint():
            with suppress(DBAPIError):
                world.db.session.execute(sa.text("SELECT nothing FROM nowhere"))
            if world.database.kind != "postgresql":  # which sets no savepoint after an error
                with world.auto.savepoint():
                    one.update(name="one")
            one.name = "one"
        assert one.name == "one"
    assert world.database.names == ["one"]


def test_row_02_an_object_whose_insert_was_rolled_back_can_be_saved_again(world: World) -> None:
    """What one request could not keep, a later request saves anew, and it is durable."""
    kept = world.Thing(name="kept")

    @world.app.get("/<int:status>")
    def view(status: int) -> tuple[str, int]:
        kept.save()
        return "done", status

    client = world.app.test_client()
    assert client.get("/400").status_code == 400
    assert world.database.names == []
    assert client.get("/200").status_code == 200
    assert world.database.names == ["kept"]


def test_row_12_an_object_of_a_doomed_unit_can_be_saved_again(world: World) -> None:
    """After a preview the same object is saved for real, and is durable."""
    kept = world.Thing(name="kept")
    with world.auto.unit(world.app):
        kept.save()
        world.auto.doom()
    assert world.database.names == []
    with world.auto.unit(world.app):
        kept.save()
    assert world.database.names == ["kept"]


def test_row_16_a_listener_that_runs_the_statements_itself_hides_no_write(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A do_execute listener of the application that returns True comes behind the extension's."""
    with world.app.app_context():
        engine = world.db.engine

    @sa.event.listens_for(engine, "do_execute")
    def run(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        cursor.execute(statement, parameters)
        return True

    def view() -> str:
        world.db.session.execute(sa.insert(thing).values(name="dropped"))
        world.db.session.rollback()
        return "done"

    assert answer(world, view) == 200
    assert world.database.names == []
    assert "rollback() was called" in caplog.text


@pytest.mark.parametrize("touched", [False, True])
def test_row_31_a_request_made_by_a_view_has_a_context_of_its_own(
    world: World, touched: bool
) -> None:
    """Whether the view has used the session by then makes no difference to what both see in g."""

    @world.app.get("/inner")
    def inner() -> str:
        before, g.who = g.get("who", "nobody"), "inner"
        world.Thing(name="inner").save()
        return before

    @world.app.get("/outer")
    def outer() -> tuple[str, int]:
        g.who = "outer"
        if touched:
            world.Thing.query.count()
        before = world.app.test_client().get("/inner").text
        world.db.session.rollback()
        return f"{before} {g.who}", 400

    assert world.app.test_client().get("/outer").text == "nobody outer"
    assert world.database.names == ["inner"]


@pytest.mark.parametrize("touched", [False, True])
def test_row_20_a_receiver_commits_behind_a_failure_whoever_came_first(
    database: Database, touched: bool
) -> None:
    """An audit row of a request_finished receiver is kept, though the view used no session."""
    world = World(database, AUTOSESSION_EXPLICIT_COMMIT="flush")

    def audit(sender: Flask, **_: Any) -> None:
        world.Thing(name="audit").save()
        world.db.session.commit()

    def view() -> tuple[str, int]:
        if touched:
            world.Thing(name="view").save()
        return "failed", 400

    with request_finished.connected_to(audit, world.app):
        assert answer(world, view) == 400
    assert world.database.names == ["audit"]
    world.close()


@pytest.mark.parametrize("where", ["view", "before_request"])
def test_row_03_an_application_that_answers_exceptions_itself_keeps_no_half(
    world: World, where: str
) -> None:
    """A subclass of Flask that never asks handle_user_exception has the work rolled back too."""

    class Tolerant(Flask):
        def full_dispatch_request(self, *args: Any) -> Response:
            dispatch: Any = self
            try:
                answer = dispatch.preprocess_request(*args)
                if answer is None:
                    answer = dispatch.dispatch_request(*args)
            except ValueError:
                answer = "sorry"
            response: Response = dispatch.finalize_request(*args, answer)
            return response

    app = Tolerant("tolerant")
    app.config["SQLALCHEMY_DATABASE_URI"] = world.database.uri
    world.auto.init_app(app)

    def fail() -> str:
        world.Thing(name="half").save()
        raise ValueError

    app.add_url_rule("/", view_func=fail if where == "view" else str)
    if where == "before_request":
        app.before_request(fail)
    response = app.test_client().get("/")
    assert (response.status_code, response.text) == (200, "sorry")
    assert world.database.names == []
    with app.app_context():
        world.db.engine.dispose()


def test_row_24_a_command_that_serves_keeps_nothing_of_its_requests(world: World) -> None:
    """A request that uses the session before its dispatch, as a stored flask.session does, goes."""
    scopes: list[weakref.ref[Any]] = []

    class Stored(SecureCookieSessionInterface):
        def open_session(self, app: Flask, request: Any) -> SecureCookieSession | None:
            scopes.append(weakref.ref(world.db.session().scope))
            return super().open_session(app, request)

    world.app.session_interface = Stored()
    with click.Context(click.Command("serve")):
        assert answer(world, lambda: str(world.Thing(name="served").save().id)) == 200
        gc.collect()
        assert [scope() for scope in scopes] == [None]
    assert world.database.names == ["served"]


# Found by a second reviewer ----------------------------------------------------------------------


@pytest.mark.parametrize("swallowed", [False, True])
def test_row_10_a_connection_from_before_the_savepoint_is_covered(
    world: World, swallowed: bool
) -> None:
    """What Core does on a connection that the view has had before is undone with the block."""

    def view() -> str:
        connection = world.db.session.connection()
        with suppress(ZeroDivisionError, DoomedError), world.auto.savepoint():
            connection.execute(sa.insert(thing).values(name="gone"))
            if not swallowed:
                raise ZeroDivisionError
            with suppress(DBAPIError):
                connection.execute(sa.insert(thing).values(name="gone"))
        world.Thing(name="kept").save()
        return "done"

    assert answer(world, view) == 200
    assert world.database.names == ["kept"]


def test_row_10_a_savepoint_behind_a_failure_fails_at_its_first_statement(world: World) -> None:
    """It can be entered on every database, also where a failure has aborted what is around it."""
    entered: list[str] = []

    def view() -> str:
        with suppress(DoomedError), world.auto.savepoint():
            with suppress(DBAPIError):
                world.db.session.execute(sa.text("SELECT x FROM nowhere"))
            with suppress(DBAPIError, DoomedError), world.auto.savepoint():
                entered.append("inner")
                world.Thing(name="gone").save()
        world.Thing(name="kept").save()
        return "done"

    assert answer(world, view) == 200
    assert entered == ["inner"]
    assert world.database.names == ["kept"]


@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize("inner_status", [200, 400])
@pytest.mark.parametrize("fails", [False, True])
def test_row_31_a_request_that_a_view_dispatches_by_hand(
    world: World, touched: bool, inner_status: int, fails: bool
) -> None:
    """It is a unit of its own, like one that the view makes with the test client."""
    on_sqlite = world.database.kind == "sqlite"  # which lets one write at a time

    @world.app.get("/inner")
    def inner() -> Any:
        if not (touched and on_sqlite):
            world.Thing(name="inner").save()
        return "", inner_status

    def view() -> str:
        if touched:
            world.Thing(name="outer").save()
        with world.app.test_request_context("/inner"):
            assert world.app.full_dispatch_request().status_code == inner_status
        world.Thing(name="later").save()
        if fails:
            raise ZeroDivisionError
        return "done"

    world.app.config["PROPAGATE_EXCEPTIONS"] = False
    assert answer(world, view) == (500 if fails else 200)
    inner_kept = inner_status == 200 and not (touched and on_sqlite)
    expected = [*(["inner"] if inner_kept else [])]
    if not fails:
        expected += ["outer", "later"] if touched else ["later"]
    assert sorted(world.database.names) == sorted(expected)


@pytest.mark.parametrize("where", ["on_commit", "unit_committed", "stream"])
def test_row_19_what_follows_a_commit_reads_objects_anew(world: World, where: str) -> None:
    """It would overwrite what others, or statements of the unit itself, have written since."""
    world.database.insert("0")

    def add(one: Any) -> str:
        one.name = str(int(one.name) + 1)
        return "done"

    def view() -> Any:
        one = world.Thing.query.one()
        world.db.session.execute(sa.update(thing).values(name="10"))
        if where == "on_commit":
            world.auto.on_commit(lambda: add(one))
        elif where == "unit_committed":
            g.receiver = lambda _: add(one)
            unit_committed.connect(g.receiver, world.app)
        else:
            return Response(stream_with_context(map(add, [one])))
        return "done"

    world.app.add_url_rule("/", view_func=view)
    response = world.app.test_client().get("/")
    assert (response.status_code, response.text) == (200, "done")
    assert world.database.names == ["11"]


def test_row_19_objects_stay_readable_behind_a_callback(world: World) -> None:
    """A callback takes nothing away from those who go on with the objects of a unit."""
    history: list[str] = []
    with world.auto.unit(world.app):
        one = world.Thing(name="kept").save()
        world.auto.on_commit(lambda: history.append(one.name))
    assert [one.name, one.id] == [*history, *world.database.rows("SELECT id FROM thing")[0]]


def test_row_17_a_plain_generator_reads_what_was_loaded(world: World) -> None:
    """Without stream_with_context it has no session, and needs none where nothing was written."""
    world.database.insert("read")

    def view() -> Response:
        things = world.Thing.query.all()
        return Response(one.name for one in things)

    world.app.add_url_rule("/", view_func=view)
    assert world.app.test_client().get("/").text == "read"


def test_row_01_a_listener_in_front_of_ours_does_not_undo_the_commit(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver says what is durable, not an event that somebody may stop."""

    def after_commit(session: Any) -> None:
        raise ZeroDivisionError

    sa.event.listen(world.db.session, "after_commit", after_commit, insert=True)
    assert answer(world, lambda: str(world.Thing(name="kept").save().id)) == 200
    assert world.database.names == ["kept"]
    assert "A listener failed after the commit" in caplog.text


def test_row_20_a_failure_that_becomes_a_success_too_late(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind the answer 400 the work is gone; a receiver that makes it 200 is warned of."""

    def succeed(sender: Any, response: Response, **_: Any) -> None:
        response.status_code = 200

    with request_finished.connected_to(succeed, world.app):
        assert answer(world, lambda: (str(world.Thing(name="gone").save().id), 400)) == 200
    assert world.database.names == []
    assert "work was thrown away: the response was 400 at first" in caplog.text


@pytest.mark.parametrize("how", ["no_autoflush", "merge"])
def test_row_09_autoflush_comes_back_with_the_next_unit(world: World, how: str) -> None:
    """What puts it back as it was found, in a doomed unit, does not switch it off for good."""
    world.database.insert("taken")

    def view() -> str:
        with suppress(DBAPIError):
            world.Thing(name="taken").save()
        if how == "merge":
            world.db.session.merge(world.Thing(id=1, name="taken"))
        else:
            with world.db.session.no_autoflush:
                world.Thing.query.count()
        world.db.session.rollback()
        world.db.session.add(world.Thing(name="new"))
        assert world.Thing.query.count() == 2
        with world.db.session.no_autoflush:
            world.db.session.add(world.Thing(name="newer"))
            assert world.Thing.query.count() == 2
        return "done"

    assert answer(world, view) == 200
    assert world.database.names == ["taken", "new", "newer"]


def test_row_10_a_raw_cursor_that_fails_in_a_savepoint(world: World) -> None:
    """Where the driver tells, only the savepoint is undone, and its end says so."""
    if world.database.kind != "postgresql":
        pytest.skip("only PostgreSQL's driver tells")

    def view() -> str:
        with pytest.raises(DoomedError), world.auto.savepoint():
            world.Thing(name="gone").save()
            with suppress(Exception):
                world.db.session.connection().connection.cursor().execute("SELECT 1/0")
        world.Thing(name="kept").save()
        return "done"

    assert answer(world, view) == 200
    assert world.database.names == ["kept"]


def test_row_02_objects_that_lose_their_row_are_told_of(world: World) -> None:
    """A refused request sends SQLAlchemy's persistent_to_transient, as rollback() does."""
    lost: list[str] = []

    @sa.event.listens_for(world.db.session, "persistent_to_transient")
    def persistent_to_transient(session: Any, instance: Any) -> None:
        lost.append(instance.name)

    def view() -> tuple[str, int]:
        g.held = world.Thing(name="gone").save()
        return "refused", 400

    assert answer(world, view) == 400
    assert lost == ["gone"]
