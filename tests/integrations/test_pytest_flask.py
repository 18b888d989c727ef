"""pytest-flask, whose autouse fixture pushes a request context around every test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import flask_autosession

pytest.importorskip("pytest_flask", reason="pytest-flask is not installed")

# Without our own plugin, which would keep anything from getting durable: see tests/testing.
OPTIONS = ["-p", "no:cacheprovider", "-p", "no:flask_autosession"]
SUITE = """
import pytest
import sqlalchemy as sa
from flask import Flask
from flask_autosession import AutoSession
from flask_sqlalchemy import SQLAlchemy

db = SQLAlchemy()
auto = AutoSession(db=db)


class Thing(db.Model):
    id = sa.Column(sa.Integer, primary_key=True)
    name = sa.Column(sa.String(50), unique=True)


def durable(app):
    engine = sa.create_engine(app.config["SQLALCHEMY_DATABASE_URI"], poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        return [name for (name,) in connection.execute(sa.text("SELECT name FROM thing"))]


@pytest.fixture
def app(tmp_path):
    app = Flask("suite")
    app.config.update(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'suite.db'}", TESTING=True)
    auto.init_app(app)

    @app.post("/things/<name>/<int:status>")
    def create(name, status):
        Thing(name=name).save()
        return name, status

    with app.app_context():
        db.create_all()
    yield app
    assert "of the test" not in durable(app)
    with app.app_context():
        db.engine.dispose()


def test_requests_decide_for_themselves(app, client):
    assert [client.post(f"/things/a/{status}").status_code for status in (400, 201)] == [400, 201]
    assert durable(app) == ["a"]
    assert client.post("/things/b/422").status_code == 422
    assert durable(app) == ["a"]


def test_a_request_sees_what_the_test_has_saved_before(app, client):
    kept = Thing(name="fixture").save()
    assert client.post("/things/a/400").status_code == 400
    assert durable(app) == ["fixture"]
    assert kept.name == "fixture"


def test_what_the_test_saves_and_no_request_sees_is_dropped(app):
    Thing(name="of the test").save()
"""


def test_row_31_requests_inside_of_the_pushed_context_decide(tmp_path: Path) -> None:
    """A suite under pytest-flask gets the same commits and rollbacks as real requests."""
    (tmp_path / "test_suite.py").write_text(SUITE)
    package = str(Path(flask_autosession.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *OPTIONS, "-W", "error", "."],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 passed" in run.stdout
