"""Flask-Admin, whose model views commit each change they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import abort
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.world import Database

from . import Site

flask_admin = pytest.importorskip("flask_admin", reason="Flask-Admin is not installed")
from flask_admin.actions import action  # noqa: E402
from flask_admin.contrib.sqla import ModelView  # noqa: E402

MODES = ["warn", "allow", "flush"]

# What each page of the admin is sent, and what is durable then; "old" is there before.
CHANGES = [
    pytest.param("/admin/thing/new/", {"name": "new"}, ["old", "new"], id="create"),
    pytest.param("/admin/thing/edit/?id={old}", {"name": "renamed"}, ["renamed"], id="edit"),
    pytest.param("/admin/thing/delete/", {"id": "{old}"}, [], id="delete"),
    pytest.param(
        "/admin/thing/action/", {"action": "delete", "rowid": "{old}"}, [], id="delete-selected"
    ),
]


class ThingView(ModelView):  # type: ignore[misc]
    form_columns = ("name",)

    @action("delete", "Delete", "Really?")
    def action_delete(self, ids: tuple[str, ...]) -> None:
        # Flask-Admin compares ids as text, which PostgreSQL with psycopg 3 refuses.
        super().action_delete(tuple(int(ident) for ident in ids))


class Strict(ThingView):
    def after_model_change(self, form: Any, model: Any, is_created: bool) -> None:
        abort(400)


def post(site: Site, client: FlaskClient, path: str, form: dict[str, str]) -> TestResponse:
    """Send a form of the admin, with the id of "old" put in where it is named."""
    ident = site.database.rows("SELECT id FROM thing WHERE name = 'old'")[0][0]
    form = {key: value.format(old=ident) for key, value in form.items()}
    return client.post(path.format(old=ident), data=form)


@pytest.fixture
def site(database: Database) -> Iterator[Callable[..., Site]]:
    """Make an application with an admin, under a mode of AUTOSESSION_EXPLICIT_COMMIT."""
    made: list[Site] = []

    def make(mode: str, view: type[ModelView] = ThingView) -> Site:
        site = Site(database, AUTOSESSION_EXPLICIT_COMMIT=mode)
        made.append(site)
        admin = flask_admin.Admin(site.app, name="tests")
        admin.add_view(view(site.Thing, site.db, endpoint="thing", url="/admin/thing"))
        database.insert("old")
        return site

    yield make
    for site in made:
        site.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("path", "form", "after"), CHANGES)
def test_a_change_through_the_admin_is_durable(
    site: Callable[..., Site], mode: str, path: str, form: dict[str, str], after: list[str]
) -> None:
    """What Flask-Admin says it has saved or deleted is so for a second connection."""
    here = site(mode)
    client = here.app.test_client()
    assert post(here, client, path, form).status_code == 302
    assert here.database.names == after
    page = client.get("/admin/thing/")
    assert page.status_code == 200
    assert all(name in page.text for name in after)


@pytest.mark.parametrize("mode", MODES)
def test_a_duplicate_is_shown_again_and_the_next_try_succeeds(
    site: Callable[..., Site], mode: str
) -> None:
    """Flask-Admin answers a rejected row with its form, as it did, and is ready for the next."""
    here = site(mode)
    client = here.app.test_client()
    again = client.post("/admin/thing/new/", data={"name": "old"})
    assert again.status_code == 200
    assert "<form" in again.text
    assert here.database.names == ["old"]
    assert client.post("/admin/thing/new/", data={"name": "other"}).status_code == 302
    assert here.database.names == ["old", "other"]


@pytest.mark.parametrize(("path", "form", "after"), CHANGES)
def test_flush_leaves_nothing_when_an_after_request_function_refuses(
    site: Callable[..., Site], path: str, form: dict[str, str], after: list[str]
) -> None:
    """A request that ends with 400 takes back what Flask-Admin has committed in it."""
    here = site("flush")

    @here.app.after_request
    def refuse(response: Any) -> Any:
        response.status_code = 400
        return response

    assert post(here, here.app.test_client(), path, form).status_code == 400
    assert here.database.names == ["old"]


@pytest.mark.parametrize(
    ("path", "name"), [("/admin/thing/new/", "new"), ("/admin/thing/edit/?id={old}", "renamed")]
)
def test_flush_leaves_nothing_when_a_hook_of_the_admin_aborts(
    site: Callable[..., Site], path: str, name: str
) -> None:
    """``abort(400)`` in after_model_change takes the change back, though it was committed."""
    here = site("flush", Strict)
    assert post(here, here.app.test_client(), path, {"name": name}).status_code == 400
    assert here.database.names == ["old"]


@pytest.mark.parametrize("mode", ["warn", "allow"])
def test_the_other_modes_keep_what_the_admin_committed_before_a_400(
    site: Callable[..., Site], mode: str
) -> None:
    """Under ``warn`` and ``allow`` Flask-Admin's commit is a commit, whatever comes after it."""
    here = site(mode)

    @here.app.after_request
    def refuse(response: Any) -> Any:
        response.status_code = 400
        return response

    client = here.app.test_client()
    assert client.post("/admin/thing/new/", data={"name": "new"}).status_code == 400
    assert here.database.names == ["old", "new"]


def test_warn_names_the_call_site_once(
    site: Callable[..., Site], caplog: pytest.LogCaptureFixture
) -> None:
    """Under ``warn`` the log says once where Flask-Admin commits."""
    here = site("warn")
    client = here.app.test_client()
    for name in ("a", "b"):
        client.post("/admin/thing/new/", data={"name": name})
    told = [r.getMessage() for r in caplog.records if r.name == "flask_autosession"]
    assert len([text for text in told if "db.session.commit() at " in text]) == 1
    assert here.database.names == ["old", "a", "b"]
