"""The plugin beside pytest-flask, whose fixtures push a request context around every test."""

from __future__ import annotations

import pytest

from .conftest import Project

pytest.importorskip("pytest_flask")
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def write(project: Project, suite: str) -> None:
    """Write a project that has its ``client`` from pytest-flask."""
    project.write(test_it=suite)
    conftest = project.pytester.path / "conftest.py"
    text, _, _ = conftest.read_text().partition("@pytest.fixture\ndef client")
    conftest.write_text(text)


def test_its_context_and_client(project: Project) -> None:
    """What a test writes in pytest-flask's context is there for ``client``, and then undone."""
    write(
        project,
        """
        import pytest
        from conftest import Thing, db
        from flask import request, url_for
        from sqlalchemy.exc import IntegrityError

        def names(client):
            return client.get("/things").json

        def test_context(client):
            assert request.path == "/"
            Thing(name="a").save()
            client.post("/things/b")
            assert client.post("/things/c?status=400") == 400
            assert names(client) == ["a", "b"]
            assert [thing.name for thing in Thing.query] == ["a", "b"]

        def test_rollback(client):
            thing = Thing(name="a").save()
            db.session.commit()
            thing.update(name="b")
            db.session.rollback()
            assert names(client) == [thing.name] == ["a"]

        def test_swallows_an_error(client):
            Thing(name="a").save()
            with pytest.raises(IntegrityError):
                client.post("/things/a")
            with pytest.raises(IntegrityError):
                Thing(name="a").save()

        def test_fails(client):
            Thing(name="a").save()
            client.post("/things/b")
            assert False

        @pytest.mark.autosession("truncate")
        def test_truncate(client):
            Thing(name="a").save()
            assert names(client) == ["a"]

        @pytest.mark.autosession("recreate")
        def test_recreate(client):
            Thing(name="a").save()
            assert names(client) == ["a"]

        def test_fixtures(client, db_session, autosession, commits, on_commit_callbacks):
            assert db_session is autosession.session
            with on_commit_callbacks() as callbacks:
                client.post("/things/a")
            assert (commits[-1].name, callbacks) == ("POST /things/a 201", [])

        @pytest.mark.usefixtures("client_class")
        class TestClass:
            @pytest.mark.parametrize("time", range(2))
            def test_class(self, time):
                assert self.client.post("/things/a") == 201
                assert names(self.client) == ["a"]
        """,
    )
    project.run().assert_outcomes(passed=8, failed=1)
    assert (project.names, project.tables) == ([], ["thing"])


@on_sqlite
def test_what_is_left_inside_of_its_context(project: Project) -> None:
    """A context that a test leaves inside of pytest-flask's is named, and nobody trips over it."""
    write(
        project,
        """
        from flask import request

        def test_app(app):
            app.app_context().push()

        def test_request(app):
            app.test_request_context("/left").push()

        def test_fails(app):
            app.test_request_context("/left").push()
            assert False

        def test_after(client):
            assert request.path == "/"
            assert client.get("/things").json == []
        """,
    )
    result = project.run()
    result.assert_outcomes(failed=3, passed=1)
    for left in "an app context of 'project'", "a request context (GET /left)":
        result.stdout.fnmatch_lines([f"*The test has left behind: {left}*"])


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_its_live_server(project: Project) -> None:
    """Beside pytest-flask's ``live_server``, another process, ``truncate`` empties the tables."""
    write(
        project,
        """
        import json
        from urllib.request import Request, urlopen

        import pytest
        from conftest import Thing, auto

        pytestmark = pytest.mark.autosession("truncate")

        @pytest.mark.parametrize("time", range(2))
        def test_it(app, client, live_server, time):
            with auto.unit(app):
                Thing(name="a").save()
            urlopen(Request(live_server.url("/things/b"), method="POST")).close()
            with urlopen(live_server.url("/things")) as response:
                assert json.load(response) == ["a", "b"]
            assert client.get("/things").json == ["a", "b"]
        """,
    )
    result = project.run("--live-server-wait=10", subprocess=True)
    result.assert_outcomes(passed=2)
    assert (project.names, project.tables) == ([], ["thing"])
