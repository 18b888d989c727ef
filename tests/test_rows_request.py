"""Rows 1 to 8, 13 and 14 of the contract: a request that is committed or rolled back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask import abort, after_this_request, g, redirect, request, request_finished, session
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from sqlalchemy.exc import IntegrityError

from .world import World

Caplog = pytest.LogCaptureFixture


def answer(world: World, view: Callable[[], Any]) -> int:
    """Serve one request with a view, and return the status that the client was told."""
    world.app.add_url_rule("/", view_func=view, methods=["GET", "POST"])
    return world.app.test_client().post("/").status_code


# Row 1


@pytest.mark.parametrize("status", [200, 201, 204, 302, 399])
def test_row_01_a_response_below_400_commits_the_work(world: World, status: int) -> None:
    """What a view saved is durable once its client is told a status below 400."""

    def view() -> Any:
        world.Thing(name="kept").save()
        return "", status

    assert answer(world, view) == status
    assert world.database.names == ["kept"]


def test_row_01_changes_that_were_never_saved_are_committed_too(world: World) -> None:
    """Attribute changes and added objects count, whether or not save() was called."""
    world.database.insert("old")

    def view() -> str:
        world.Thing.query.one().name = "new"
        world.db.session.add(world.Thing(name="added"))
        return "done"

    assert answer(world, view) == 200
    assert world.database.names == ["new", "added"]


def test_row_01_a_before_request_function_may_answer_in_the_views_place(world: World) -> None:
    """The work of a before_request function that answers is committed, unsaved changes too."""
    world.database.insert("old")

    @world.app.before_request
    def before() -> str:
        world.Thing.query.one().name = "new"
        return "answered"

    assert answer(world, lambda: "never asked") == 200
    assert world.database.names == ["new"]


def test_row_01_the_commit_comes_after_every_after_request_function(world: World) -> None:
    """What after_request and after_this_request functions write belongs to the same unit."""

    def view() -> str:
        @after_this_request
        def later(response: Any) -> Any:
            world.Thing(name="this").save()
            return response

        world.Thing(name="view").save()
        return "done"

    @world.app.after_request
    def after(response: Any) -> Any:
        assert world.database.names == []
        world.db.session.add(world.Thing(name="after"))
        return response

    assert answer(world, view) == 200
    assert world.database.names == ["view", "this", "after"]


class _Saving(SecureCookieSessionInterface):
    def __init__(self, save: Callable[[], None]) -> None:
        self._save = save

    def save_session(self, *_: Any) -> None:
        self._save()

    def is_null_session(self, obj: object) -> bool:
        return False

    def open_session(self, *_: Any) -> SecureCookieSession:
        return SecureCookieSession()


def test_row_01_the_commit_comes_after_the_session_was_saved(world: World) -> None:
    """What saving flask.session writes is committed with the view's work."""

    def save() -> None:
        assert world.database.names == []
        world.Thing(name="session").save()

    world.app.session_interface = _Saving(save)

    def view() -> str:
        session["touched"] = True
        world.Thing(name="view").save()
        return "done"

    assert answer(world, view) == 200
    assert world.database.names == ["view", "session"]


def test_row_01_the_commit_comes_before_the_first_byte(world: World) -> None:
    """When the server gets the response's status, the work is durable already."""
    seen = []

    def wsgi(environ: Any, start_response: Any) -> Any:
        def start(*args: Any) -> Any:
            seen.append(world.database.names)
            return start_response(*args)

        return inner(environ, start)

    inner = world.app.wsgi_app
    world.app.wsgi_app = wsgi  # type: ignore[method-assign]
    answer(world, lambda: str(world.Thing(name="kept").save().id))
    assert seen == [["kept"]]


def test_row_01_a_saved_object_has_its_id_and_is_found_by_queries(world: World) -> None:
    """save() flushes: the new row's id is there, and this request's queries see the row."""

    def view() -> dict[str, Any]:
        thing = world.Thing(name="new").save()
        return {"id": thing.id, "found": world.Thing.query.filter_by(name="new").one() is thing}

    world.app.add_url_rule("/", view_func=view)
    told = world.app.test_client().get("/").get_json()
    assert told == {"id": world.database.rows("SELECT id FROM thing")[0][0], "found": True}


# Row 2


@pytest.mark.parametrize("status", [400, 404, 409, 422, 500, 503])
def test_row_02_a_response_of_400_or_more_rolls_back(world: World, status: int) -> None:
    """A client told a status of 400 or more can rely on nothing being there."""

    def view() -> Any:
        world.Thing(name="gone").save()
        return "no", status

    assert answer(world, view) == status
    assert world.database.names == []


def test_row_02_what_is_flushed_in_a_savepoint_goes_too(world: World) -> None:
    """A released savepoint is undone with its unit, on SQLite as elsewhere."""

    def view() -> Any:
        with world.auto.savepoint():
            world.Thing(name="gone").save()
        return "no", 409

    assert answer(world, view) == 409
    assert world.database.names == []


def test_row_02_an_after_request_function_may_turn_success_into_failure(world: World) -> None:
    """The status that the client is told decides, not the view's."""

    @world.app.after_request
    def after(response: Any) -> Any:
        response.status_code = 503
        return response

    assert answer(world, lambda: str(world.Thing(name="gone").save().id)) == 503
    assert world.database.names == []


def test_row_02_an_invalid_change_does_not_change_a_failing_response(world: World) -> None:
    """A view that fills in invalid values and answers 422 is told as 422: nothing is flushed."""
    world.database.insert("old")

    def view() -> Any:
        world.Thing.query.one().name = None
        return {"error": "a name is needed"}, 422

    assert answer(world, view) == 422
    assert world.database.names == ["old"]


# Row 3


class Boom(Exception):
    pass


def _boom() -> None:
    raise Boom


@pytest.mark.parametrize("fail", [_boom, lambda: abort(404), lambda: None, lambda: abort(409)])
def test_row_03_nothing_in_error_handling_can_save_half_of_it(
    world: World, fail: Callable[[], Any]
) -> None:
    """The view's work is gone before an error handler or after_request function commits."""

    @world.app.errorhandler(Exception)
    @world.app.errorhandler(404)
    def handler(error: Any) -> Any:
        world.db.session.commit()
        return "handled", 500

    @world.app.after_request
    def after(response: Any) -> Any:
        world.db.session.commit()
        return response

    def view() -> Any:
        world.Thing(name="gone").save()
        return fail()

    assert answer(world, view) == 500
    assert world.database.names == []


def test_row_03_an_exception_in_before_request_rolls_back(world: World) -> None:
    """The work of before_request functions is gone when one of them raises."""

    @world.app.before_request
    def before() -> None:
        world.Thing(name="gone").save()
        raise Boom

    @world.app.errorhandler(Boom)
    def handler(error: Boom) -> Any:
        world.db.session.commit()
        return "handled", 400

    assert answer(world, lambda: "never") == 400
    assert world.database.names == []


def test_row_03_an_unknown_path_rolls_back(world: World) -> None:
    """What before_request functions wrote is gone when the routing finds nothing."""

    @world.app.before_request
    def before() -> None:
        world.Thing(name="gone").save()

    assert world.app.test_client().get("/unknown").status_code == 404
    assert world.database.names == []


def test_row_03_a_preprocessor_that_raises_rolls_back(world: World) -> None:
    """An exception of a URL value preprocessor rolls back."""

    @world.app.url_value_preprocessor
    def preprocess(endpoint: Any, values: Any) -> None:
        world.Thing(name="gone").save()
        raise Boom

    assert answer(world, lambda: "never") == 500
    assert world.database.names == []


def test_row_03_while_testing_the_exception_reaches_the_test(world: World) -> None:
    """With TESTING, the exception is raised to the test client, and the work is gone."""
    world.app.testing = True

    def view() -> str:
        world.Thing(name="gone").save()
        raise Boom

    with pytest.raises(Boom):
        answer(world, view)
    assert world.database.names == []


def test_row_03_objects_that_were_loaded_can_be_read_by_the_error_handler(world: World) -> None:
    """An error handler can go on reading what the request has loaded, the user for example."""
    world.database.insert("user")

    @world.app.before_request
    def before() -> None:
        g.user = world.Thing.query.one()

    @world.app.errorhandler(Boom)
    def handler(error: Boom) -> Any:
        return {"user": g.user.name}, 500

    world.app.add_url_rule("/", view_func=_boom)
    assert world.app.test_client().get("/").get_json() == {"user": "user"}


# Row 4


@pytest.mark.parametrize(("status", "durable"), [(200, ["audit"]), (302, ["audit"]), (409, [])])
def test_row_04_an_error_is_an_error_whatever_it_was_rendered_as(
    world: World, status: int, durable: list[str], caplog: Caplog
) -> None:
    """The view's work stays rolled back; the handler's own is judged by its own response."""

    @world.app.errorhandler(Boom)
    def handler(error: Boom) -> Any:
        world.Thing(name="audit").save()
        return "sorry", status

    def view() -> str:
        world.Thing(name="gone").save()
        raise Boom

    assert answer(world, view) == status
    assert world.database.names == durable
    dropped = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert ["Boom" in message and __file__ in message for message in dropped] == (
        [True] if status < 400 else []
    )


def test_row_04_a_handler_for_500_is_judged_alike(world: World) -> None:
    """What the handler for 500 writes is committed if it answers below 400."""

    @world.app.errorhandler(500)
    def handler(error: Any) -> Any:
        world.Thing(name="audit").save()
        return "sorry", 200

    def view() -> str:
        world.Thing(name="gone").save()
        raise Boom

    assert answer(world, view) == 200
    assert world.database.names == ["audit"]


# Row 5


def test_row_05_a_raised_redirect_is_control_flow(world: World) -> None:
    """abort(redirect(...)) commits."""

    def view() -> Any:
        world.Thing(name="kept").save()
        abort(redirect("/elsewhere"))

    assert answer(world, view) == 302
    assert world.database.names == ["kept"]


def test_row_05_an_aborted_response_of_400_or_more_is_not(world: World) -> None:
    """abort() with a response rolls back by that response's status."""

    def view() -> Any:
        world.Thing(name="gone").save()
        abort(world.app.make_response(("no", 422)))

    assert answer(world, view) == 422
    assert world.database.names == []


def test_row_05_a_redirect_to_the_canonical_path_commits(world: World) -> None:
    """The redirect that routing raises for a missing slash keeps what came before it."""

    @world.app.before_request
    def before() -> None:
        world.Thing(name="kept").save()

    world.app.add_url_rule("/slash/", view_func=lambda: "never")
    assert world.app.test_client().get("/slash").status_code == 308
    assert world.database.names == ["kept"]


# Row 6


def _fails_at_commit(world: World, name: str = "gone") -> None:
    """Leave work behind that no flush refuses, but the COMMIT does."""
    if world.database.kind == "mariadb":  # which checks every constraint at once
        world.db.session.connection().invalidate()
        return
    connection = world.db.session.connection()
    if world.database.kind == "sqlite":
        connection.exec_driver_sql("PRAGMA foreign_keys = ON")
    world.Thing(name=name, parent=-1).save()


def _commit_fails(world: World) -> Callable[[], str]:
    def view() -> str:
        _fails_at_commit(world)
        return "told"

    return view


@pytest.fixture
def strict(world: World) -> World:
    """A world whose deferred foreign key is checked by COMMIT."""
    if world.database.kind == "mariadb":
        pytest.skip("MariaDB knows no deferred constraints: its COMMIT does not fail this way")
    return world


def test_row_06_a_failing_commit_is_never_told_as_done(strict: World) -> None:
    """Where COMMIT fails, the client is told 500, and nothing is there."""
    assert answer(strict, _commit_fails(strict)) == 500
    assert strict.database.names == []


def test_row_06_the_error_handler_is_asked_once(strict: World) -> None:
    """A handler for IntegrityError gets what COMMIT raised, once, and its own work is kept."""
    asked = []

    @strict.app.errorhandler(IntegrityError)
    def handler(error: IntegrityError) -> Any:
        asked.append(error)
        strict.Thing(name="audit").save()
        return "conflict", 200

    assert answer(strict, _commit_fails(strict)) == 200
    assert len(asked) == 1
    assert strict.database.names == ["audit"]


def test_row_06_if_the_handlers_commit_fails_too_a_plain_500_is_told(strict: World) -> None:
    """Handlers are not asked for ever: a second failing commit ends in 500."""
    asked = []

    @strict.app.errorhandler(IntegrityError)
    def handler(error: IntegrityError) -> Any:
        asked.append(error)
        _fails_at_commit(strict, "second")
        return "handled", 200

    assert answer(strict, _commit_fails(strict)) == 500
    assert len(asked) == 1
    assert strict.database.names == []


def test_row_06_a_handler_for_500_cannot_tell_done_if_its_commit_fails(strict: World) -> None:
    """A handler for 500 that answers 200, and whose own commit fails, is told as 500."""

    @strict.app.errorhandler(500)
    def handler(error: Any) -> Any:
        _fails_at_commit(strict)
        return "fine", 200

    assert answer(strict, _boom) == 500
    assert strict.database.names == []


def test_row_06_a_change_that_cannot_be_flushed_goes_to_the_error_handler(world: World) -> None:
    """A pending duplicate fails as if the view had raised it: its handler answers."""
    world.database.insert("taken")

    @world.app.errorhandler(IntegrityError)
    def handler(error: IntegrityError) -> Any:
        return "taken", 409

    def view() -> str:
        world.Thing(name="first").save()
        world.db.session.add(world.Thing(name="taken"))
        return "told"

    assert answer(world, view) == 409
    assert world.database.names == ["taken"]


def test_row_06_a_change_made_after_the_view_that_fails_goes_there_too(world: World) -> None:
    """A duplicate added by an after_request function fails the commit, and its handler answers."""
    world.database.insert("taken")

    @world.app.errorhandler(IntegrityError)
    def handler(error: IntegrityError) -> Any:
        return "taken", 409

    @world.app.after_request
    def after(response: Any) -> Any:
        if response.status_code == 200:
            world.db.session.add(world.Thing(name="taken"))
        return response

    assert answer(world, lambda: str(world.Thing(name="first").save().id)) == 409
    assert world.database.names == ["taken"]


def test_row_06_a_lost_connection_is_told_as_failure(world: World) -> None:
    """A connection that is lost before COMMIT ends in 500, and nothing is there."""

    def view() -> str:
        world.Thing(name="gone").save()
        driver = world.db.session.connection().connection.driver_connection
        assert driver is not None
        driver.rollback()
        driver.close()
        return "told"

    assert answer(world, view) == 500
    assert world.database.names == []
    assert answer_again(world) == 200


def answer_again(world: World) -> int:
    """Serve one more request, which needs a connection that works."""
    with world.app.test_request_context("/"), world.app.test_client() as client:
        world.app.view_functions["view"] = lambda: str(world.Thing.query.count())
        return client.get("/").status_code


# Row 7


def test_row_07_an_after_request_function_that_fails_rolls_back(world: World) -> None:
    """An exception in an after_request function ends in 500, and nothing is there."""

    @world.app.after_request
    def after(response: Any) -> Any:
        if response.status_code == 200:
            raise Boom
        return response

    assert answer(world, lambda: str(world.Thing(name="gone").save().id)) == 500
    assert world.database.names == []


def test_row_07_a_failing_after_request_function_is_an_error_whatever_it_was_rendered_as(
    world: World,
) -> None:
    """A handler for 500 that answers 200 does not bring the view's work back."""
    calls: list[str] = []

    @world.app.after_request
    def after(response: Any) -> Any:
        calls.append("after")
        if len(calls) == 1:
            raise Boom
        return response

    @world.app.errorhandler(500)
    def handler(error: Any) -> Any:
        world.Thing(name="handler").save()
        return "fine", 200

    assert answer(world, lambda: str(world.Thing(name="gone").save().id)) == 200
    assert world.database.names == ["handler"]


def test_row_07_a_session_that_cannot_be_saved_rolls_back(world: World) -> None:
    """An exception while flask.session is saved ends in 500, and nothing is there."""
    calls = []

    def save() -> None:
        calls.append("save")
        if len(calls) == 1:
            raise Boom

    world.app.session_interface = _Saving(save)
    assert answer(world, lambda: str(world.Thing(name="gone").save().id)) == 500
    assert world.database.names == []


def test_row_07_a_request_finished_receiver_that_fails_rolls_back(world: World) -> None:
    """Whichever receiver raises, and in whatever order, the client is not told done."""

    def receiver(sender: Any, **extra: Any) -> None:
        if extra["response"].status_code == 200:
            raise Boom

    with request_finished.connected_to(receiver, sender=world.app):
        assert answer(world, lambda: str(world.Thing(name="gone").save().id)) == 500
    assert world.database.names == []


# Row 8


@pytest.mark.parametrize(("status", "durable"), [(200, ["before", "view"]), (400, [])])
def test_row_08_before_request_functions_share_the_unit(
    world: World, status: int, durable: list[str]
) -> None:
    """What before_request functions write is committed, or rolled back, with the view's work."""

    @world.app.before_request
    def before() -> None:
        world.Thing(name="before").save()

    def view() -> Any:
        world.Thing(name="view").save()
        return "", status

    assert answer(world, view) == status
    assert world.database.names == durable


# Rows 13 and 14


def _statements(world: World) -> list[str]:
    sent: list[str] = []
    with world.app.app_context():
        engine = world.db.engine
    for name in ("begin", "commit", "rollback"):
        sa.event.listen(engine, name, lambda _, name=name: sent.append(name))
    sa.event.listen(engine, "before_cursor_execute", lambda *a: sent.append(a[2].split()[0]))
    sa.event.listen(engine, "checkout", lambda *_: sent.append("checkout"))
    return sent


def test_row_13_a_request_that_does_not_use_the_session_costs_no_connection(world: World) -> None:
    """No connection is taken and nothing is sent; the callbacks follow the status all the same."""
    sent, history = _statements(world), []

    def view() -> Any:
        world.auto.on_commit(lambda: history.append("committed"))
        world.auto.on_rollback(lambda: history.append("rolled back"))
        return "", int(request.args["status"])

    world.app.add_url_rule("/", view_func=view)
    client = world.app.test_client()
    for status in ("200", "404"):
        client.get("/", query_string={"status": status})
    assert sent == []
    assert history == ["committed", "rolled back"]


def test_row_14_a_request_that_only_reads_is_committed(world: World) -> None:
    """Reads end in COMMIT: a SELECT may call a function that writes, only the database knows."""
    sent = _statements(world)
    assert answer(world, lambda: str(world.Thing.query.count())) == 200
    assert sent == ["checkout", "begin", "SELECT", "commit"]


def test_row_14_a_select_that_writes_is_kept(world: World) -> None:
    """What a function called by a SELECT writes is committed."""
    if world.database.kind != "postgresql":
        pytest.skip("only PostgreSQL has functions that write")

    def view() -> str:
        world.db.session.execute(sa.text("SELECT setval('thing_id_seq', 41)"))
        world.db.session.execute(
            sa.text(
                "CREATE FUNCTION pg_temp.writes() RETURNS int LANGUAGE sql AS"
                " $$INSERT INTO thing (name) VALUES ('kept') RETURNING id$$"
            )
        )
        return str(world.db.session.scalar(sa.text("SELECT pg_temp.writes()")))

    assert answer(world, view) == 200
    assert world.database.names == ["kept"]
