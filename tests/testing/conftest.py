"""Small projects whose suites are run by a pytest inside of this one, with our plugin in it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pymysql
import pytest
import sqlalchemy as sa
import sqlalchemy.dialects.mysql
import sqlalchemy.dialects.postgresql

from flask_autosession.testing import schema
from tests.world import Database

# Not for the first time in a run of `pytester`, which forgets what was imported in it.
IMPORTED = psycopg, pymysql, sqlalchemy.dialects.mysql, sqlalchemy.dialects.postgresql

CONFTEST = """
import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_autosession import AutoSession

db = SQLAlchemy()
auto = AutoSession(db=db)


class Thing(db.Model):
    __tablename__ = "toolkit_thing"
    id = sa.Column(sa.Integer, primary_key=True)
    name = sa.Column(sa.String(50), unique=True, nullable=False)


def create_app(uri={uri!r}, name="project"):
    app = Flask(name)
    app.config.update(SQLALCHEMY_DATABASE_URI=uri, TESTING=True)
    auto.init_app(app)

    @app.post("/things/<name>")
    def create(name):
        Thing(name=name).save()
        return name, int(sa_status())

    @app.get("/things")
    def index():
        return [thing.name for thing in Thing.query.order_by(Thing.id)]

    return app


def sa_status():
    from flask import request
    return request.args.get("status", 201)


@pytest.fixture(scope={scope!r})
def app():
    return create_app()


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def names(client):
    return lambda: client.get("/things").json
"""


class Project:
    """A project with one model, ``Thing``, and one suite.

    :param pytester: What writes its files and runs its tests.
    :param database: The database that it is configured for, looked at from outside.
    """

    def __init__(self, pytester: pytest.Pytester, database: Database) -> None:
        self.pytester = pytester
        self.database = database

    def write(self, scope: str = "session", **files: str) -> None:
        """Write the conftest, with an app of this scope, and the files, named without ``.py``."""
        self.pytester.makeconftest(CONFTEST.format(uri=self.database.uri, scope=scope))
        self.pytester.makepyfile(**files)

    def run(self, *args: str, subprocess: bool = False) -> pytest.RunResult:
        """Run the suite; in a process of its own where that matters, which takes a second."""
        run = (
            self.pytester.runpytest_subprocess if subprocess else self.pytester.runpytest_inprocess
        )
        # Hypothesis' own would import hypothesis at the end of every run, half of its time.
        quick = ("-p", "no:hypothesispytest", "-p", "no:randomly", "-p", "no:cacheprovider")
        return run(*quick, "-W", "error", *args)

    @property
    def tables(self) -> list[str]:
        """The tables that are in the database, seen from outside."""
        return sa.inspect(self.database.engine).get_table_names()

    @property
    def names(self) -> list[str]:
        """The names of all things that are durable."""
        if "toolkit_thing" not in self.tables:
            return []
        return [name for (name,) in self.database.rows("SELECT name FROM toolkit_thing")]


@pytest.fixture
def project(
    pytester: pytest.Pytester, database: Database, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    """A project on one database of each kind. What it leaves in the database fails the test."""
    # The last one is set for good by Flask's commands, and keeps live servers from starting.
    ours = ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID", "PYTEST_ADDOPTS")
    for name in (*ours, "FLASK_RUN_FROM_CLI"):
        monkeypatch.delenv(name, raising=False)
    schema.forget(drop=False)  # what other tests of this process have taught it of the database
    before = set(sa.inspect(database.engine).get_table_names())
    yield Project(pytester, database)
    left = set(sa.inspect(database.engine).get_table_names()) - before
    with database.engine.begin() as connection:
        for name in left:
            connection.exec_driver_sql(f"DROP TABLE {name}")
    assert not left, "the suite left tables behind"
