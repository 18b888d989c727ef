"""Flask-Security-Too, which commits in ``after_this_request`` through its datastore."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import abort, after_this_request
from flask.testing import FlaskClient
from sqlalchemy import orm

from tests.world import Database

from . import Site

with warnings.catch_warnings():
    # passlib, in the releases for old versions of Python, imports what those have deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    pytest.importorskip("flask_security", reason="Flask-Security-Too is not installed")
    from flask_security import (
        RoleMixin,
        Security,
        SQLAlchemyUserDatastore,
        UserMixin,
        auth_required,
        user_registered,
    )

MODES = ["warn", "allow", "flush"]
ADDRESS = {"email": "ada@example.org", "password": "a long password"}


@pytest.fixture
def site(database: Database) -> Iterator[Callable[..., Site]]:
    """Make an application with accounts, under a mode of AUTOSESSION_EXPLICIT_COMMIT."""
    made: list[Site] = []

    def make(mode: str) -> Site:
        site = Site(
            database,
            AUTOSESSION_EXPLICIT_COMMIT=mode,
            SECURITY_DEPRECATED_PASSWORD_SCHEMES=[],
            SECURITY_EMAIL_VALIDATOR_ARGS={"check_deliverability": False},
            SECURITY_PASSWORD_HASH="plaintext",
            SECURITY_PASSWORD_SALT="of the tests",
            SECURITY_REGISTERABLE=True,
            SECURITY_SEND_REGISTER_EMAIL=False,
            SECURITY_TRACKABLE=True,
            WTF_CSRF_ENABLED=False,
        )
        made.append(site)
        add_accounts(site)
        site.create_tables()
        return site

    yield make
    for site in made:
        site.close()


def add_accounts(site: Site) -> None:
    db = site.db
    holders = sa.Table(
        "holder",
        db.metadata,
        sa.Column("user_id", sa.ForeignKey("account.id")),
        sa.Column("role_id", sa.ForeignKey("role.id")),
    )

    class Role(db.Model, RoleMixin):  # type: ignore[name-defined,misc]
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50), unique=True)

    class Account(db.Model, UserMixin):  # type: ignore[name-defined,misc]
        id = sa.Column(sa.Integer, primary_key=True)
        email = sa.Column(sa.String(100), unique=True)
        password = sa.Column(sa.String(200))
        active = sa.Column(sa.Boolean)
        fs_uniquifier = sa.Column(sa.String(64), unique=True, default=lambda: uuid.uuid4().hex)
        current_login_at = sa.Column(sa.DateTime)
        last_login_at = sa.Column(sa.DateTime)
        current_login_ip = sa.Column(sa.String(50))
        last_login_ip = sa.Column(sa.String(50))
        login_count = sa.Column(sa.Integer)
        roles = orm.relationship(Role, secondary=holders)

    datastore = SQLAlchemyUserDatastore(db, Account, Role)
    site.app.security = Security(site.app, datastore)  # type: ignore[attr-defined]

    @site.app.get("/private")
    @auth_required("session")
    def private() -> str:
        return "private"

    @site.app.post("/invite/<name>/<int:status>")
    def invite(name: str, status: int) -> tuple[str, int]:
        @after_this_request
        def commit(response: Any) -> Any:
            datastore.commit()
            return response

        datastore.create_user(email=f"{name}@example.org", password="secret")
        site.Thing(name=name).save()
        return name, status


def accounts(site: Site) -> list[tuple[Any, ...]]:
    """The addresses that a second connection sees, and how often each has logged in."""
    return site.database.rows("SELECT email, coalesce(login_count, 0) FROM account ORDER BY id")


def register(client: FlaskClient) -> int:
    again = {"password_confirm": ADDRESS["password"]}
    return client.post("/register", json=ADDRESS | again).status_code


def refuse_everything(site: Site) -> None:
    @site.app.after_request
    def refuse(response: Any) -> Any:
        response.status_code = 400
        return response


@pytest.mark.parametrize("mode", MODES)
def test_register_log_out_and_in(site: Callable[..., Site], mode: str) -> None:
    """Whoever registers has an account that lasts, and whose logins are counted."""
    here = site(mode)
    client = here.app.test_client()
    history = [register(client), accounts(here)]
    history += [client.get("/private").text, client.post("/logout", json={}).status_code]
    history += [client.get("/private", headers={"Accept": "application/json"}).status_code]
    history += [client.post("/login", json=ADDRESS).status_code, accounts(here)]
    history += [client.get("/private").text]
    once, twice = [("ada@example.org", 1)], [("ada@example.org", 2)]
    assert history == [200, once, "private", 200, 401, 200, twice, "private"]


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_password_changes_nothing(site: Callable[..., Site], mode: str) -> None:
    """A refused login is neither counted nor does it harm the next one."""
    here = site(mode)
    register(here.app.test_client())
    client = here.app.test_client()
    wrong = ADDRESS | {"password": "another password"}
    assert client.post("/login", json=wrong).status_code == 400
    assert accounts(here) == [("ada@example.org", 1)]
    assert client.post("/login", json=ADDRESS).status_code == 200
    assert accounts(here) == [("ada@example.org", 2)]


@pytest.mark.parametrize("mode", MODES)
def test_a_taken_address_is_refused(site: Callable[..., Site], mode: str) -> None:
    """Nobody registers twice, and the second attempt leaves nothing."""
    here = site(mode)
    assert [register(here.app.test_client()) for _ in range(2)] == [200, 400]
    assert accounts(here) == [("ada@example.org", 1)]


def test_flush_leaves_no_account_when_the_registration_ends_with_400(
    site: Callable[..., Site],
) -> None:
    """The commit after a registration keeps nothing of a request that ends with 400."""
    here = site("flush")
    refuse_everything(here)
    assert register(here.app.test_client()) == 400
    assert accounts(here) == []


def test_flush_counts_no_login_that_ends_with_400(site: Callable[..., Site]) -> None:
    """The commit after a login keeps nothing of a request that ends with 400."""
    here = site("flush")
    register(here.app.test_client())
    refused: list[str] = []

    def refuse(response: Any) -> Any:
        refused.append("login")
        response.status_code = 400
        return response

    here.app.after_request_funcs.setdefault(None, []).append(refuse)
    assert here.app.test_client().post("/login", json=ADDRESS).status_code == 400
    assert refused == ["login"]
    assert accounts(here) == [("ada@example.org", 1)]


def test_flush_leaves_nothing_of_a_view_that_commits_after_its_400(
    site: Callable[..., Site],
) -> None:
    """A commit by ``after_this_request`` keeps neither the account nor the application's row."""
    here = site("flush")
    assert here.app.test_client().post("/invite/eve/400").status_code == 400
    assert (accounts(here), here.database.names) == ([], [])


@pytest.mark.parametrize("mode", MODES)
def test_a_view_that_commits_after_its_success_keeps_all(
    site: Callable[..., Site], mode: str
) -> None:
    """A commit by ``after_this_request`` keeps the account and the application's row."""
    here = site(mode)
    assert here.app.test_client().post("/invite/eve/201").status_code == 201
    assert (accounts(here), here.database.names) == ([("eve@example.org", 0)], ["eve"])


@pytest.mark.parametrize("mode", ["warn", "allow"])
def test_the_other_modes_keep_what_the_datastore_committed_before_a_400(
    site: Callable[..., Site], mode: str
) -> None:
    """Under ``warn`` and ``allow`` the datastore's commit is a commit, whatever the status."""
    here = site(mode)
    assert here.app.test_client().post("/invite/eve/400").status_code == 400
    assert (accounts(here), here.database.names) == ([("eve@example.org", 0)], ["eve"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("failure", [400, LookupError])
def test_row_03_a_failing_registration_leaves_no_half_account(
    site: Callable[..., Site], mode: str, failure: Any
) -> None:
    """What a receiver of ``user_registered`` raises takes the account back in every mode.

    Flask-Security has registered its commit by then, and it still runs after the error handler.
    """
    here = site(mode)

    def welcome(sender: Any, **_: Any) -> None:
        here.Thing(name="welcome").save()
        if failure == 400:
            abort(400)
        raise failure

    with user_registered.connected_to(welcome, here.app):
        status = register(here.app.test_client())
    assert status == (400 if failure == 400 else 500)
    assert (accounts(here), here.database.names) == ([], [])
