"""Flask-Session that keeps ``flask.session`` in the same database, through the same session."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from flask import redirect, session
from sqlalchemy.exc import IntegrityError

from tests.world import Database

from . import Site

flask_session = pytest.importorskip("flask_session", reason="Flask-Session is not installed")

MODES = ["warn", "allow", "flush"]


@pytest.fixture
def site(database: Database) -> Iterator[Callable[..., Site]]:
    """Make an application whose sessions are rows, under a mode of AUTOSESSION_EXPLICIT_COMMIT."""
    made: list[Site] = []

    def make(mode: str) -> Site:
        site = Site(database, AUTOSESSION_EXPLICIT_COMMIT=mode)
        made.append(site)
        site.app.config.update(SESSION_TYPE="sqlalchemy", SESSION_SQLALCHEMY=site.db)
        flask_session.Session(site.app)
        add_views(site)
        return site

    yield make
    for site in made:
        site.close()


def add_views(site: Site) -> None:
    app, Thing = site.app, site.Thing

    @app.post("/remember/<name>/<int:status>")
    def remember(name: str, status: int) -> tuple[str, int]:
        session["last"] = name
        Thing(name=name).save()
        return name, status

    @app.get("/last")
    def last() -> str:
        return str(session.get("last"))

    @app.post("/forget")
    def forget() -> str:
        session.clear()
        return "forgotten"

    @app.post("/order")
    def order() -> Any:
        session["last"] = "order"
        site.db.session.add(Thing(name="order"))
        site.db.session.add(Thing(name="taken"))
        return redirect("/thanks")

    @app.post("/swallow")
    def swallow() -> Any:
        session["last"] = "swallow"
        Thing(name="before").save()
        with suppress(IntegrityError):
            Thing(name="taken").save()
        return redirect("/thanks")


def kept(site: Site) -> int:
    """How many flask sessions a second connection sees."""
    return int(site.database.rows("SELECT count(*) FROM sessions")[0][0])


@pytest.mark.parametrize("mode", MODES)
def test_a_value_survives_to_the_next_request(site: Callable[..., Site], mode: str) -> None:
    """What a successful request puts in ``flask.session`` is durable, beside its other work."""
    here = site(mode)
    client = here.app.test_client()
    assert client.post("/remember/a/200").status_code == 200
    assert (here.database.names, kept(here)) == (["a"], 1)
    assert client.get("/last").text == "a"


@pytest.mark.parametrize("mode", MODES)
def test_a_changed_value_replaces_the_first(site: Callable[..., Site], mode: str) -> None:
    """A session that has a row already is updated in it."""
    here = site(mode)
    client = here.app.test_client()
    answers = [client.post("/remember/a/200").text, client.post("/remember/b/201").text]
    answers.append(client.get("/last").text)
    assert answers == ["a", "b", "b"]
    assert (here.database.names, kept(here)) == (["a", "b"], 1)


@pytest.mark.parametrize("mode", MODES)
def test_a_cleared_session_leaves_no_row(site: Callable[..., Site], mode: str) -> None:
    """Emptying ``flask.session`` deletes its row for good."""
    here = site(mode)
    client = here.app.test_client()
    client.post("/remember/a/200")
    assert client.post("/forget").text == "forgotten"
    assert kept(here) == 0
    assert client.get("/last").text == "None"


@pytest.mark.parametrize("mode", MODES)
def test_an_expired_session_is_deleted_on_the_way_in(site: Callable[..., Site], mode: str) -> None:
    """The row of an expired session is gone after the next request that shows its cookie."""
    here = site(mode)
    client = here.app.test_client()
    client.post("/remember/a/200")
    with here.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE sessions SET expiry = '2001-01-01 00:00:00'")
    assert client.get("/last").text == "None"
    assert kept(here) == 0


def test_flush_leaves_nothing_of_a_request_that_ends_with_400(
    site: Callable[..., Site],
) -> None:
    """The commit that saves ``flask.session`` does not keep the work of a refused request."""
    here = site("flush")
    client = here.app.test_client()
    assert client.post("/remember/a/400").status_code == 400
    assert (here.database.names, kept(here)) == ([], 0)


def test_flush_takes_a_changed_session_back_with_a_400(site: Callable[..., Site]) -> None:
    """A refused request leaves ``flask.session`` as the last successful one left it."""
    here = site("flush")
    client = here.app.test_client()
    client.post("/remember/a/200")
    assert client.post("/remember/b/400").status_code == 400
    assert client.get("/last").text == "a"
    assert (here.database.names, kept(here)) == (["a"], 1)


@pytest.mark.parametrize("mode", ["warn", "allow"])
def test_the_other_modes_keep_what_a_400_flushed_as_they_always_did(
    site: Callable[..., Site], mode: str
) -> None:
    """Under ``warn`` and ``allow`` saving ``flask.session`` commits what the view has flushed."""
    here = site(mode)
    client = here.app.test_client()
    assert client.post("/remember/a/400").status_code == 400
    assert (here.database.names, kept(here)) == (["a"], 1)
    assert client.get("/last").text == "a"


@pytest.mark.parametrize("mode", MODES)
def test_an_exception_takes_the_work_back_before_the_session_is_saved(
    site: Callable[..., Site], mode: str
) -> None:
    """The commit that saves ``flask.session`` finds nothing of a view that raised."""
    here = site(mode)

    @here.app.post("/raise")
    def raising() -> str:
        session["last"] = "raise"
        here.Thing(name="half").save()
        raise LookupError

    @here.app.errorhandler(LookupError)
    def handled(error: LookupError) -> tuple[str, int]:
        return "handled", 200

    client = here.app.test_client()
    assert client.post("/raise").text == "handled"
    assert (here.database.names, kept(here)) == ([], 1)
    assert client.get("/last").text == "raise"


@pytest.mark.parametrize("mode", MODES)
def test_row_01_a_pending_change_that_fails_is_not_told_as_done(
    site: Callable[..., Site], mode: str
) -> None:
    """A view whose pending change is invalid is never told 302; IntegrityError's handler is."""
    here = site(mode)
    asked: list[str] = []

    @here.app.errorhandler(IntegrityError)
    def handled(error: IntegrityError) -> tuple[str, int]:
        asked.append(type(error).__name__)
        return "taken", 409

    here.database.insert("taken")
    response = here.app.test_client().post("/order")
    assert (response.status_code, response.text) == (409, "taken")
    assert asked == ["IntegrityError"]
    assert here.database.names == ["taken"]


@pytest.mark.parametrize("mode", MODES)
def test_row_01_without_a_handler_the_pending_change_that_fails_is_a_500(
    site: Callable[..., Site], mode: str
) -> None:
    """Nor is it told 302 where no error handler is registered."""
    here = site(mode)
    here.database.insert("taken")
    assert here.app.test_client().post("/order").status_code == 500
    assert here.database.names == ["taken"]


@pytest.mark.parametrize("mode", MODES)
def test_a_swallowed_failure_is_still_told_of(
    site: Callable[..., Site], mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Saving ``flask.session`` rolls back and tries again; the work it drops is warned of."""
    here = site(mode)
    here.database.insert("taken")
    with caplog.at_level(logging.WARNING, "flask_autosession"):
        client = here.app.test_client()
        assert client.post("/swallow").status_code == 302
    assert here.database.names == ["taken"]
    warnings = [r.getMessage() for r in caplog.records if r.name == "flask_autosession"]
    dropped = [text for text in warnings if "thrown away" in text]
    assert dropped
    assert any("IntegrityError" in text for text in dropped)
    assert client.get("/last").text == "swallow"


@pytest.mark.parametrize("mode", MODES)
def test_row_12_doom_leaves_the_response_as_it_is(site: Callable[..., Site], mode: str) -> None:
    """A doomed request that changed ``flask.session`` is rolled back, its response unchanged."""
    here = site(mode)

    @here.app.post("/preview")
    def preview() -> str:
        session["last"] = "preview"
        here.Thing(name="preview").save()
        here.auto.doom()
        return "preview"

    response = here.app.test_client().post("/preview")
    assert (response.status_code, response.text) == (200, "preview")
    assert here.database.names == []
