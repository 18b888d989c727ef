"""The plugin's fixtures, and data that a class or a module sets up once for its tests."""

from __future__ import annotations

import pytest

from .conftest import Project

on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@on_sqlite
def test_no_context_is_pushed_behind_the_tests_back(project: Project) -> None:
    """A test has an app context if it asks for ``db_session``, and has none otherwise."""
    project.write(
        test_it="""
        from flask import current_app, g, has_app_context
        from conftest import Thing, auto, create_app, db

        def test_none(app, autosession, commits, on_commit_callbacks, client):
            assert autosession is auto
            assert not has_app_context()

        def test_pushed(app, db_session):
            assert current_app == app
            assert db_session is db.session is auto.session
            Thing(name="a").save()
            assert db_session.query(Thing).count() == 1

        def test_another_apps(app):
            pass

        def test_has_gone(client):
            assert not has_app_context()
        """,
        test_that="""
        import pytest
        from flask import current_app, g
        from conftest import Thing, create_app

        @pytest.fixture
        def context(app):
            with app.app_context():
                g.mine = True
                yield

        @pytest.fixture
        def other(app):
            with create_app(name="other").app_context():
                yield

        def test_used(context, db_session):
            assert g.mine

        def test_of_another_app(app, other, db_session):
            assert current_app == app
        """,
    )
    project.run("-p", "no:flask").assert_outcomes(passed=6)


def test_commits_tells_how_each_unit_ended(project: Project) -> None:
    """``commits`` has the units that were used, in order: whether committed, why, and whose."""
    project.write(
        test_it="""
        import pytest
        from conftest import Thing, auto
        from sqlalchemy.exc import IntegrityError

        def test_it(app, client, commits):
            assert commits == []
            client.get("/nowhere")
            client.post("/things/a")
            client.post("/things/b?status=400")
            with pytest.raises(IntegrityError):
                client.post("/things/a")
            with auto.unit(app):
                Thing(name="c").save()
            with app.app_context():
                Thing(name="d").save()
            assert [one.committed for one in commits] == [True, False, False, True, False]
            assert [one.name for one in commits[:3]] == [
                "POST /things/a 201", "POST /things/b 400", "POST /things/a",
            ]
            assert "IntegrityError" in commits[2].reason
            assert commits[4] == (False, "AUTOSESSION_COMMIT_CONTEXTS is False", "app context")

        def test_begins_anew(client, commits):
            assert commits == []
            client.post("/things/a")
            assert len(commits) == 1
        """
    )
    project.run("-p", "no:flask").assert_outcomes(passed=2)
    assert project.names == []


@on_sqlite
def test_on_commit_callbacks_are_captured(project: Project) -> None:
    """``on_commit_callbacks()`` gives the functions of committed units; ``run=False`` only that."""
    project.write(
        test_it="""
        import pytest
        from conftest import Thing, auto, create_app

        done = []

        @pytest.fixture
        def app():
            app = create_app()

            @app.post("/mail/<int:status>")
            def mail(status):
                Thing(name=str(status)).save()
                auto.on_commit(lambda: done.append(status))
                auto.on_rollback(lambda: done.append("rolled back"))
                return "", status

            done.clear()
            return app

        def test_run(client, on_commit_callbacks):
            client.post("/mail/200")
            with on_commit_callbacks() as callbacks:
                client.post("/mail/201")
                client.post("/mail/400")
            assert len(callbacks) == 1
            assert done == [200, 201, "rolled back"]

        def test_not_run(client, on_commit_callbacks):
            with on_commit_callbacks(run=False) as callbacks:
                client.post("/mail/200")
                client.post("/mail/201")
            assert done == []
            for callback in callbacks:
                callback()
            assert done == [200, 201]
            client.post("/mail/202")
            assert (done, len(callbacks)) == ([200, 201, 202], 2)
        """
    )
    project.run().assert_outcomes(passed=2)


DATA = """
import pytest
from conftest import Thing, db
from flask_autosession.testing import isolate
from sqlalchemy.exc import IntegrityError


@pytest.fixture(scope="module", autouse=True)
def of_module(app):
    with isolate(app):
        app.test_client().post("/things/module")
        yield


def test_before(names):
    assert names() == ["module"]


@pytest.fixture(scope="class")
def in_context(request, app):
    with isolate(app), app.app_context():
        request.cls.thing = Thing(name="class").save()
        yield


@pytest.fixture(scope="class")
def by_request(app):
    with isolate(app):
        app.test_client().post("/things/class")
        yield


@pytest.mark.usefixtures("in_context")
class TestWithContext:
    def test_delete(self, names):
        assert self.thing.id and names() == ["module", "class"]
        self.thing.delete()
        assert names() == ["module"]

    def test_rename(self, names):
        assert self.thing.name == "class"
        self.thing.update(name="renamed")
        assert names() == ["module", "renamed"]

    def test_commit(self, client, names):
        self.thing.update(name="committed")
        db.session.commit()
        client.post("/things/more")
        assert names() == ["module", "committed", "more"]

    def test_delete_and_commit(self, client, names):
        self.thing.delete()
        db.session.commit()
        assert names() == ["module"]

    def test_request_fails(self, client, names):
        with pytest.raises(IntegrityError):
            client.post("/things/class")
        assert names() == ["module", "class"]
        assert self.thing.name == "class"

    def test_rollback(self, names):
        Thing(name="more").save()
        db.session.rollback()
        assert names() == ["module", "class"]
        assert self.thing.name == "class"

    def test_fails(self, client):
        self.thing.update(name="more")
        client.post("/things/other")
        assert False


@pytest.mark.usefixtures("by_request")
class TestWithRequests:
    @pytest.mark.parametrize("time", range(2))
    def test_it(self, client, names, time):
        assert names() == ["module", "class"]
        client.post("/things/more")
        assert names() == ["module", "class", "more"]


def test_after(names):
    assert names() == ["module"]
"""


def test_data_of_a_class_or_a_module_is_set_up_once(project: Project) -> None:
    """Every test of a class finds the rows and objects of its ``isolate(app)`` as they were."""
    project.write(
        test_it=DATA, test_that="def test_other_modules(names):\n    assert names() == []\n"
    )
    result = project.run("-p", "no:flask")
    result.assert_outcomes(passed=11, failed=1)
    assert project.names == []


@on_sqlite
def test_what_a_wider_fixture_must_not_do_is_told(project: Project) -> None:
    """Unsaved work in a context of a class, or real connections inside of one, fail with advice."""
    project.write(
        test_it="""
        import pytest
        from conftest import Thing, db
        from flask_autosession.testing import isolate

        @pytest.fixture(scope="class")
        def unsaved(app):
            with app.app_context():
                db.create_all()
                Thing(name="a").save()
                yield

        @pytest.mark.usefixtures("unsaved")
        class TestUnsaved:
            def test_it(self):
                pass

        @pytest.fixture(scope="class")
        def isolated(app):
            with isolate(app):
                yield

        @pytest.mark.usefixtures("isolated")
        class TestIsolated:
            @pytest.mark.autosession("truncate")
            def test_truncate(self):
                pass

            def test_goes_on(self, client, names):
                client.post("/things/b")
                assert names() == ["b"]

        @pytest.fixture(scope="class")
        def real(app):
            with isolate(app, "truncate"):
                app.test_client().post("/things/real")
                yield

        @pytest.mark.usefixtures("real")
        class TestReal:
            def test_rollback(self, client, names):
                client.post("/things/b")
                assert names() == ["real", "b"]

            def test_again(self, names):
                assert names() == ["real"]

        def test_nothing_is_left(names):
            assert names() == []
        """
    )
    result = project.run("-p", "no:flask")
    said = result.parseoutcomes()
    assert (said["passed"], said.get("failed", 0) + said.get("errors", 0)) == (4, 2)
    result.stdout.fnmatch_lines(
        [
            "*A context of 'project' that was pushed before the test began has written something*",
            "*The strategy 'truncate' needs real connections*Move the test out of that class*",
        ],
        consecutive=False,
    )
    assert project.names == []
