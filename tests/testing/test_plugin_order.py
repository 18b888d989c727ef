"""Suites under the plugin say the same in any order, wherever a test of them fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.world import Database

from .conftest import Project

on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

ORDER = """
import random


def pytest_addoption(parser):
    parser.addoption("--order")


def pytest_collection_modifyitems(config, items):
    order = config.getoption("--order")
    if order == "backwards":
        items.reverse()
    elif order == "shuffled":
        random.Random(4).shuffle(items)
"""
ORDERS = ("forwards", "backwards", "shuffled")


def outcomes(result: pytest.RunResult) -> dict[str, str]:
    """What became of each test, and in which of its three parts if it did not pass."""
    found: dict[str, str] = {}
    for report in result.reprec.getreports("pytest_runtest_logreport"):
        name = report.nodeid.rpartition("::")[2]
        if report.outcome != "passed":
            found[name] = f"{report.outcome} in {report.when}"
        else:
            found.setdefault(name, "passed")
    return found


def in_all_orders(project: Project, *args: str) -> list[dict[str, str]]:
    """What becomes of each test, in three orders; and look whether anything has remained."""
    project.pytester.makepyfile(order=ORDER)
    project.pytester.syspathinsert()
    found = []
    for order in ORDERS:
        found.append(outcomes(project.run("-p", "order", f"--order={order}", "--tb=no", *args)))
        assert project.names == []
        assert project.tables == ["thing"]
    return found


SUITE = """
import pytest
import sqlalchemy as sa
from conftest import Thing, auto, db


@pytest.fixture(autouse=True)
def nothing_is_there(app):
    with app.app_context():
        assert Thing.query.all() == []


@pytest.fixture
def fails_in_setup(client):
    client.post("/things/same")
    raise RuntimeError("setup")


@pytest.fixture
def fails_in_teardown(client):
    yield
    client.post("/things/another")
    raise RuntimeError("teardown")


def test_request(client, names):
    client.post("/things/same")
    assert names() == ["same"]


def test_middle(client):
    client.post("/things/same")
    assert False


def test_setup(fails_in_setup):
    pass


def test_teardown(client, fails_in_teardown):
    client.post("/things/same")


@pytest.mark.xfail
def test_xfail(client):
    client.post("/things/same")
    assert False


def test_skip(client):
    client.post("/things/same")
    pytest.skip()


def test_context(app):
    with app.app_context():
        Thing(name="same").save()
        db.session.commit()
        app.test_client().post("/things/same")


def test_engine(app, names):
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(sa.insert(Thing).values(name="same"))
    assert names() == ["same"]


@pytest.mark.autosession("truncate")
def test_truncate(client, names):
    client.post("/things/same")
    assert names() == ["same"]


@pytest.mark.autosession("truncate")
def test_truncate_fails(client):
    client.post("/things/same")
    assert False


@pytest.mark.autosession("recreate")
def test_recreate(app, client, names):
    with app.app_context(), db.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE toolkit_more (id INTEGER)")
    client.post("/things/same")
    assert names() == ["same"]
"""
SAID = {
    "test_request": "passed",
    "test_middle": "failed in call",
    "test_setup": "failed in setup",
    "test_teardown": "failed in teardown",
    "test_xfail": "skipped in call",
    "test_skip": "skipped in call",
    "test_context": "failed in call",
    "test_engine": "passed",
    "test_truncate": "passed",
    "test_truncate_fails": "failed in call",
    "test_recreate": "passed",
}


MADE_BY_CONFTEST = """

made_at_import = create_app()


@pytest.fixture
def app():
    return made_at_import
"""


@pytest.mark.parametrize("made", ["function", "module", "session", "import"])
def test_a_suite_says_the_same_in_any_order(project: Project, made: str) -> None:
    """Tests that commit, fail, break in a fixture or change tables never meet each other's rows."""
    project.write("session" if made == "import" else made, test_it=SUITE)
    if made == "import":
        with (project.pytester.path / "conftest.py").open("a") as conftest:
            conftest.write(MADE_BY_CONFTEST)
    assert in_all_orders(project) == [SAID] * 3


PARAMETRISED = """
import pytest
from conftest import create_app


@pytest.fixture(params=["one", "other", "memory"], scope="{scope}")
def app(request):
    if request.param == "memory":
        return create_app("sqlite://")
    return create_app(name=request.param)


@pytest.mark.parametrize("time", range(2))
def test_{scope}(client, names, time):
    assert client.post("/things/a").status_code == 201
    assert names() == ["a"]
"""


def test_parametrised_apps_do_not_meet(project: Project) -> None:
    """Each test of each variant of the application begins with nothing, two on one database too."""
    scopes = "function", "session"
    project.write(**{f"test_{scope}": PARAMETRISED.format(scope=scope) for scope in scopes})
    for said in in_all_orders(project):
        assert list(said.values()) == ["passed"] * 12


def test_two_apps_in_one_test_share_their_database(project: Project, tmp_path: Path) -> None:
    """Apps on one database see what the other one commits, and on two they do not."""
    project.write(
        test_it=f"""
        import pytest
        from conftest import create_app

        @pytest.fixture
        def other(request):
            return create_app(name="other").test_client()

        @pytest.fixture(scope="session")
        def far():
            return create_app("sqlite:///{tmp_path / "far.db"}")

        def test_one_database(client, other, names):
            client.post("/things/a")
            assert other.get("/things").json == ["a"]
            assert other.post("/things/b?status=400").status_code == 400
            other.post("/things/c")
            assert names() == ["a", "c"]

        def test_two_databases(client, other, far, names):
            far = far.test_client()
            far.post("/things/far")
            client.post("/things/a")
            assert (names(), far.get("/things").json) == (["a"], ["far"])

        def test_nothing_is_left(names, other, far):
            assert names() == other.get("/things").json == []
            assert far.test_client().get("/things").json == []
        """
    )
    project.run().assert_outcomes(passed=3)
    assert (project.names, project.tables) == ([], ["thing"])
    far = Database("sqlite", f"sqlite:///{tmp_path / 'far.db'}")
    assert sa.inspect(far.engine).get_table_names() == []


def test_every_bind_is_isolated(project: Project, tmp_path: Path) -> None:
    """A test's work on each of an application's databases is undone, by every strategy."""
    project.write(
        test_it=f"""
        import pytest
        import sqlalchemy as sa
        from flask import Flask
        from flask_sqlalchemy import SQLAlchemy
        from flask_autosession import AutoSession

        db = SQLAlchemy()
        auto = AutoSession(db=db)

        class Near(db.Model):
            __tablename__ = "toolkit_near"
            id = sa.Column(sa.Integer, primary_key=True)

        class Far(db.Model):
            __tablename__ = "toolkit_far"
            __bind_key__ = "far"
            id = sa.Column(sa.Integer, primary_key=True)

        @pytest.fixture(scope="session")
        def app():
            app = Flask("binds")
            app.config.update(
                SQLALCHEMY_DATABASE_URI={project.database.uri!r},
                SQLALCHEMY_BINDS={{"far": "sqlite:///{tmp_path / "far.db"}"}},
            )
            auto.init_app(app)

            @app.post("/<int:status>")
            def write(status):
                Near(id=1).save()
                Far(id=1).save()
                return "", status

            @app.get("/")
            def read():
                return [Near.query.count(), Far.query.count()]

            return app

        @pytest.mark.parametrize("strategy", [
            pytest.param(name, marks=pytest.mark.autosession(name))
            for name in ("truncate", "rollback", "recreate", "rollback")
        ])
        def test_binds(client, strategy):
            assert client.get("/").json == [0, 0]
            client.post("/400")
            assert client.get("/").json == [0, 0]
            client.post("/200")
            assert client.get("/").json == [1, 1]
        """
    )
    project.run().assert_outcomes(passed=4)
    assert project.tables == ["thing"]
    far = Database("sqlite", f"sqlite:///{tmp_path / 'far.db'}")
    assert sa.inspect(far.engine).get_table_names() == []


FAILING = """
import pytest
import sqlalchemy as sa
from conftest import Thing, auto


@pytest.fixture
def context(app):
    with app.app_context():
        yield


@pytest.fixture
def written(context):
    Thing(name="a").save()


def test_first(names):
    assert names() == []


def test_fails(written, client):
    client.post("/things/b")
    assert False


def test_swallows_an_error_and_fails(written):
    with pytest.raises(sa.exc.IntegrityError):
        Thing(name="a").save()
    assert False


def test_swallows_an_error(written):
    with pytest.raises(sa.exc.IntegrityError):
        Thing(name="a").save()


def test_leaves_a_connection_and_fails(context):
    connection = auto.db.engine.connect()
    connection.execute(sa.insert(Thing).values(name="a"))
    assert False


def test_last(names):
    assert names() == []
"""


@pytest.mark.parametrize("strategy", ["rollback", "truncate"])
def test_a_failing_test_fails_once(project: Project, strategy: str) -> None:
    """A test that fails inside of a fixture's context is one failure, without an error on top."""
    project.write(test_it=FAILING)
    result = project.run("-o", f"autosession_strategy={strategy}")
    result.assert_outcomes(passed=3, failed=3)
    assert project.names == []


@on_sqlite
def test_a_run_can_end_at_the_first_failure(project: Project) -> None:
    """After -x, and after pytest.exit() in a test, nothing of any test is left."""
    project.write(
        test_it="""
        import pytest

        def test_passes(client):
            client.post("/things/a")

        def test_fails(client):
            client.post("/things/a")
            assert False

        def test_never():
            pass
        """,
        test_that="""
        import pytest

        def test_exits(client):
            client.post("/things/a")
            pytest.exit("enough")
        """,
    )
    project.run("-x", "test_it.py").assert_outcomes(passed=1, failed=1)
    assert (project.names, project.tables) == ([], ["thing"])
    assert project.run("test_that.py").ret == pytest.ExitCode.INTERRUPTED
    assert (project.names, project.tables) == ([], ["thing"])


@on_sqlite
def test_the_last_failure_can_be_run_again(project: Project) -> None:
    """With --lf a failing test runs alone and says what it has said among the others."""
    project.write(
        test_it="""
        def test_passes(client):
            client.post("/things/a")

        def test_fails(client, names):
            client.post("/things/a")
            assert names() == ["a", "b"]
        """
    )
    for args, passed in ([], 1), (["--lf"], 0):
        result = project.pytester.runpytest_inprocess("-p", "no:randomly", *args)
        result.assert_outcomes(passed=passed, failed=1)
        assert "assert ['a'] == ['a', 'b']" in result.stdout.str()
        assert project.names == []


WORKER = """
import os
from pathlib import Path

import pytest
import sqlalchemy as sa
from conftest import db

NOW = {
    "sqlite": "SELECT file FROM pragma_database_list",
    "postgresql": "SELECT current_database()",
    "mysql": "SELECT DATABASE()",
}


@pytest.mark.parametrize("time", range(4))
def test_it(app, client, names, time):
    client.post("/things/same")
    assert names() == ["same"]
    with app.app_context():
        told = sa.make_url(app.config["SQLALCHEMY_DATABASE_URI"])
        now = db.session.scalar(sa.text(NOW[told.get_backend_name()]))
        engine = db.engine.url.database
    Path("seen_by_" + os.environ["PYTEST_XDIST_WORKER"]).write_text(now)
    assert now == told.database == engine


@pytest.mark.parametrize("time", range(4))
def test_fails(client, time):
    client.post("/things/same")
    assert False
"""


def databases_of_workers(project: Project) -> list[str]:
    """The databases that workers have used, and which are all gone again."""
    used = [path.read_text() for path in project.pytester.path.glob("seen_by_*")]
    if project.database.kind == "sqlite":
        assert not any(map(Path.exists, map(Path, used)))
    else:
        known = {"postgresql": "SELECT datname FROM pg_database", "mariadb": "SHOW DATABASES"}
        left = {name for (name,) in project.database.rows(known[project.database.kind])}
        assert not left.intersection(used)
    return used


def test_each_worker_has_a_database_of_its_own(project: Project) -> None:
    """Under -n 2 each worker's tests use a database of the worker's own, which is gone then."""
    project.write(test_it=WORKER)
    result = project.run("-n2", "-k", "not fails", subprocess=True)
    result.assert_outcomes(passed=4)
    used = databases_of_workers(project)
    assert len({*used, str(project.database.engine.url.database)}) == 3
    assert (project.names, project.tables) == ([], ["thing"])


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_workers_drop_their_databases_after_a_failure(project: Project) -> None:
    """Under -n 2 -x, too, no worker's database is left."""
    project.write(test_it=WORKER)
    result = project.run("-n2", "-x", subprocess=True)
    assert result.parseoutcomes()["failed"] >= 1
    assert databases_of_workers(project)
