"""The pytest plugin, seen by the projects that use it."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from tests.world import Database

from .conftest import Project

on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def test_nothing_of_a_test_remains(project: Project) -> None:
    """What requests have committed in one test is not there in the next one, nor afterwards."""
    project.write(
        test_it="""
        import pytest

        @pytest.mark.parametrize("time", range(3))
        def test_commit(client, names, time):
            assert client.post("/things/a").status_code == 201
            assert client.post("/things/b?status=400").status_code == 400
            assert names() == ["a"]
        """
    )
    project.run().assert_outcomes(passed=3)
    assert project.names == []


# Which strategy

WHICH = """
import pytest
import sqlalchemy as sa
from conftest import db


@pytest.fixture
def strategy(app, client):
    def find():
        with app.app_context():
            here, there = db.engine, sa.create_engine(db.engine.url, poolclass=sa.NullPool)
        client.post("/things/a")
        with there.connect() as connection:
            durable = connection.scalar(sa.text("SELECT count(*) FROM toolkit_thing"))
        there.dispose()
        return "truncate" if durable else "rollback"

    return find
"""


@on_sqlite
def test_the_nearest_marker_decides(project: Project) -> None:
    """A test, its parameter, its class or its module has a strategy; otherwise the ini file's."""
    project.pytester.makeini("[pytest]\nautosession_strategy = truncate\n")
    project.write(
        test_ini=WHICH
        + """

def test_ini(strategy):
    assert strategy() == "truncate"


@pytest.mark.autosession("rollback")
def test_function(strategy):
    assert strategy() == "rollback"


@pytest.mark.parametrize("mine", [
    pytest.param("rollback", marks=pytest.mark.autosession("rollback")),
    pytest.param("truncate", marks=pytest.mark.autosession("truncate")),
])
def test_parameter(strategy, mine):
    assert strategy() == mine
""",
        test_module=WHICH
        + """

pytestmark = pytest.mark.autosession("rollback")


def test_module(strategy):
    assert strategy() == "rollback"


@pytest.mark.autosession("truncate")
class TestClass:
    def test_class(self, strategy):
        assert strategy() == "truncate"

    @pytest.mark.autosession("rollback")
    def test_function(self, strategy):
        assert strategy() == "rollback"
""",
    )
    project.run("--strict-markers", "--strict-config").assert_outcomes(passed=7)
    assert project.names == []


STRATEGIES = "rollback, truncate, recreate"
MARKER = "test_it.py::test_it: @pytest.mark.autosession"


@on_sqlite
@pytest.mark.parametrize(
    ("ini", "marker", "said"),
    [
        ("strategy", "", f"autosession_strategy is 'wipe', but takes one of: {STRATEGIES}."),
        (
            "schema",
            "",
            "autosession_schema is 'wipe', but takes one of: create_all, migrate, none.",
        ),
        ("", "'wipe'", f"{MARKER} is 'wipe', but takes one of: {STRATEGIES}."),
        ("", "['truncate']", f"{MARKER} is ['truncate'], but takes one of: {STRATEGIES}."),
        ("", "", f"{MARKER} takes one strategy."),
        ("", "'rollback', 'truncate'", f"{MARKER} takes one strategy."),
    ],
)
def test_a_wrong_name_is_a_usage_error(project: Project, ini: str, marker: str, said: str) -> None:
    """Pytest ends before the first test, and says where the wrong name is and what is allowed."""
    project.write(
        test_it=f"""
        import pytest

        @pytest.mark.autosession({marker})
        def test_it():
            pass
        """
    )
    result = project.run(*(("-o", f"autosession_{ini}=wipe") if ini else ()))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said in result.stderr.str()
    assert "passed" not in result.stdout.str()


@on_sqlite
def test_the_plugin_can_be_switched_off(project: Project) -> None:
    """With ``-p no:flask_autosession`` nothing is isolated, and there are no fixtures of ours."""
    project.write(
        test_it="""
        from conftest import Thing, db

        def test_it(app, client):
            with app.app_context():
                db.create_all()
                Thing(name="a").save()
            client.post("/things/b")

        def test_fixtures(commits):
            pass
        """
    )
    result = project.run("-p", "no:flask_autosession", "-p", "no:flask")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*fixture 'commits' not found*"])
    assert project.names == ["a", "b"]
    with project.database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE toolkit_thing")


# The tables


def test_tables_are_made_once_and_dropped_at_the_end(project: Project) -> None:
    """Many apps on one database, in tests that share nothing, make its tables only once."""
    project.write(
        "function",
        test_it="""
        import pytest
        from conftest import db
        from sqlalchemy import event

        made = []
        event.listen(db.metadata, "after_create", lambda *_, tables, **__: made.extend(tables))

        @pytest.mark.parametrize("time", range(3))
        def test_it(client, time):
            client.post("/things/a")
            assert len(made) == 1
        """,
    )
    project.run().assert_outcomes(passed=3)
    assert project.tables == ["thing"]


def test_tables_that_were_there_are_kept(project: Project) -> None:
    """A database that had tables keeps them, and their rows; no strategy empties those."""
    with project.database.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE toolkit_thing (id INTEGER PRIMARY KEY, name VARCHAR(50))"
        )
        connection.exec_driver_sql("INSERT INTO toolkit_thing VALUES (1, 'old')")
    project.write(
        test_it="""
        import pytest
        import sqlalchemy as sa
        from conftest import Thing, auto, db

        def test_rollback(app, names):
            with auto.unit(app):
                db.session.execute(sa.insert(Thing).values(id=2, name="new"))
            assert names() == ["old", "new"]

        @pytest.mark.autosession("truncate")
        def test_truncate(names):
            pass

        @pytest.mark.autosession("recreate")
        def test_recreate(names):
            pass

        def test_goes_on(names):
            assert names() == ["old"]
        """
    )
    try:
        result = project.run()
        result.assert_outcomes(passed=2, errors=2)
        for strategy in "truncate", "recreate":
            result.stdout.fnmatch_lines(
                [f"*The strategy '{strategy}' would * rows * 'toolkit_thing'*of their own*"]
            )
        assert project.names == ["old"]
    finally:
        with project.database.engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE toolkit_thing")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_looking_at_the_tables_disturbs_nobody(project: Project) -> None:
    """What an application's listener does with its first connection is still there for its use."""
    project.write(
        test_it="""
        import pytest
        import sqlalchemy as sa
        from conftest import auto, db
        from flask import Flask
        from sqlalchemy import event

        @pytest.fixture(scope="module")
        def app(app):
            other = Flask("listening")
            other.config.update(app.config)
            db.init_app(other)
            with other.app_context():
                event.listen(db.engine, "engine_connect", prepare, once=True)
            auto.init_app(other)
            return other

        def prepare(connection):
            connection.exec_driver_sql("CREATE TEMPORARY TABLE mine (id INTEGER)")

        @pytest.fixture(scope="module")
        def counted(app):
            with app.app_context(), db.engine.connect() as connection:
                return connection.scalar(sa.text("SELECT count(*) FROM mine"))

        def test_it(app, counted):
            assert counted == 0
        """
    )
    project.run().assert_outcomes(passed=1)


# Where the application comes from

ANYWHERE = """
import functools

import pytest
from conftest import create_app, db

at_import = create_app()


@functools.cache
def lazily(uri):
    return create_app(uri)


def use(app):
    client = app.test_client()
    assert client.get("/things").json == []
    assert client.post("/things/a").status_code == 201
    assert client.get("/things").json == ["a"]


def test_without_any_fixture():
    use(at_import)


def test_without_any_fixture_again():
    use(at_import)


@pytest.mark.parametrize("time", range(2))
def test_inside_of_a_test(time):
    use(create_app())
    # Another one in the same test finds what the first has committed.
    assert create_app().test_client().get("/things").json == ["a"]


@pytest.mark.parametrize("uri", [{uri!r}, "sqlite://"])
@pytest.mark.parametrize("time", range(2))
def test_kept_from_the_first_test_that_needs_it(uri, time):
    use(lazily(uri))


@pytest.mark.parametrize("time", range(2))
def test_in_memory(time):
    use(create_app("sqlite://"))


@pytest.mark.autosession("truncate")
@pytest.mark.parametrize("uri", [{uri!r}, "sqlite://"])
def test_truncate(uri):
    use(create_app(uri))


@pytest.mark.autosession("recreate")
@pytest.mark.parametrize("uri", [{uri!r}, "sqlite://"])
def test_recreate(uri):
    use(create_app(uri))
"""


def test_an_application_can_come_from_anywhere(project: Project) -> None:
    """Apps made by a module's import, in a test or by a cache are isolated without any fixture."""
    project.write(test_it=ANYWHERE.format(uri=project.database.uri))
    alone = "-p", "no:flask", "-p", "no:pytest-factoryboy"  # which have fixtures for all tests
    project.run(*alone).assert_outcomes(passed=14)
    assert (project.names, project.tables) == ([], ["thing"])


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_the_connections_of_a_tests_own_application_are_closed(project: Project) -> None:
    """However many tests make an app of their own, connections do not pile up."""
    project.write(
        "function",
        test_it="""
        import pytest
        import sqlalchemy as sa
        from conftest import db

        found = []

        @pytest.mark.parametrize("strategy", [
            pytest.param(name, marks=pytest.mark.autosession(name))
            for name in ("rollback", "rollback", "truncate", "truncate")
        ])
        def test_it(db_session, strategy):
            users = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            found.append(db_session.scalar(sa.text(users)))
            assert found[-1] <= found[0]  # beside those of whoever else uses it
        """,
    )
    project.run().assert_outcomes(passed=4)


@on_sqlite
def test_an_app_that_cannot_be_put_back_is_told_and_the_others_are(
    project: Project, tmp_path: Path
) -> None:
    """A lock on one app's database fails the test, and nothing of it is left in the others."""
    project.write(
        test_it=f"""
        import sqlite3
        import pytest
        from conftest import create_app, db

        kept = []

        def make(name):
            return create_app(f"sqlite:///{tmp_path}/{{name}}.db?timeout=0.1", name)

        @pytest.fixture(scope="session")
        def apps():
            return [make(name) for name in "abcd"]

        @pytest.mark.autosession("truncate")
        def test_locked(apps):
            own = make("own")
            for app in (*apps, own):
                assert app.test_client().post("/things/x").status_code == 201
            with own.app_context():
                kept.append(db.engine)
            for name in "bc":
                kept.append(sqlite3.connect(f"{tmp_path}/{{name}}.db", isolation_level=None))
                kept[-1].execute("BEGIN IMMEDIATE")

        def test_next(apps):
            engine, *locks = kept
            for lock in locks:
                lock.close()
            assert engine.pool.checkedin() == 0
            found = {{}}
            for name in (*"abcd", "own"):
                connection = sqlite3.connect(f"{tmp_path}/{{name}}.db")
                found[name] = len(connection.execute("SELECT * FROM toolkit_thing").fetchall())
                connection.close()
            assert found == {{"a": 0, "b": 1, "c": 1, "d": 0, "own": 0}}
        """
    )
    result = project.run()
    result.assert_outcomes(passed=2, errors=1)
    for name in "bc":
        result.stdout.fnmatch_lines_random(
            f"*could not be undone on*/{name}.db*database is locked*"
        )
    result.stdout.no_fnmatch_line("*could not be undone on*/[!bc].db*")


def test_an_app_that_is_made_in_a_test_gets_its_tables(project: Project) -> None:
    """Behind the rows of the test, and in a wider fixture too: to make tables is not to write."""
    project.write(
        test_it="""
        import pytest
        from conftest import AutoSession, Flask, SQLAlchemy, sa

        @pytest.fixture(scope="session")
        def wide(app):
            db = SQLAlchemy()

            class Late(db.Model):
                __tablename__ = "toolkit_late"
                id = sa.Column(sa.Integer, primary_key=True)
                thing = sa.Column(sa.Integer)

            late = Flask("late")
            late.config.update(app.config)
            auto = AutoSession(late, db=db)
            with auto.unit(late):
                assert Late.query.all() == []
            return auto, late, Late

        def test_in_a_fixture(client, names, request):
            client.post("/things/a")
            auto, late, Late = request.getfixturevalue("wide")
            with auto.unit(late):
                Late(thing=1).save()
            assert names() == ["a"]

        def test_again(client, names, wide):
            auto, late, Late = wide
            client.post("/things/a")
            with auto.unit(late):
                assert Late.query.all() == []
                Late(thing=1).save()
            assert names() == ["a"]
        """
    )
    project.run().assert_outcomes(passed=2)
    assert (project.names, project.tables) == ([], ["thing"])


@on_sqlite
@pytest.mark.parametrize("error", ["ZeroDivisionError", "pytest.fail.Exception"])
def test_whatever_fails_at_an_end_does_not_keep_the_others_from_theirs(
    project: Project, error: str
) -> None:
    """An error that nobody has foreseen, or a timeout, fails the test; all others are undone."""
    project.write(
        test_it=f"""
        import pytest
        from conftest import create_app, db
        from flask_autosession.testing.leaks import Leaks

        @pytest.fixture(scope="session")
        def others():
            return [create_app(name=name).test_client() for name in "ab"]

        def test_fails_at_its_end(client, others):
            client.post("/things/a")
            end = Leaks.end

            def fail(leaks):
                Leaks.end = end
                end(leaks)
                raise {error}("of the end")

            Leaks.end = fail

        def test_next(names, others):
            assert names() == []
            assert [other.get("/things").json for other in others] == [[], []]
        """
    )
    result = project.run()
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines("*of the end")


@on_sqlite
def test_a_factory_may_import_its_models_last(project: Project) -> None:
    """Tables are there also for models that are declared behind ``auto.init_app(app)``."""
    project.write(
        "function",
        test_it="""
        import pytest
        import sqlalchemy as sa
        from conftest import auto, create_app, db

        def late(name):
            columns = {"id": sa.Column(sa.Integer, primary_key=True)}
            return type(name, (db.Model,), {"__tablename__": f"toolkit_{name}", **columns})

        @pytest.mark.parametrize("strategy", [
            pytest.param(name, marks=pytest.mark.autosession(name))
            for name in ("rollback", "truncate", "recreate")
        ])
        def test_it(strategy):
            app = create_app()
            model = late(strategy)
            with auto.unit(app):
                model(id=1).save()
            with app.app_context():
                assert model.query.count() == 1

        @pytest.mark.autosession("truncate")
        def test_another_process_comes_first(app):
            there = sa.create_engine(app.config["SQLALCHEMY_DATABASE_URI"], poolclass=sa.NullPool)
            with there.begin() as connection:
                connection.exec_driver_sql("INSERT INTO toolkit_thing (name) VALUES ('a')")
            assert app.test_client().get("/things").json == ["a"]
        """,
    )
    project.run().assert_outcomes(passed=4)
    assert (project.names, project.tables) == ([], ["thing"])


BY_HAND = """
import pytest
from conftest import create_app, db


@pytest.fixture(scope="{scope}")
def app():
    app = create_app()
    with app.app_context():
        db.create_all()
    yield app
    with app.app_context():
        db.session.remove()
        db.drop_all()


@pytest.mark.parametrize("time", range(2))
def test_it(client, names, time):
    client.post("/things/a")
    assert names() == ["a"]
"""


def test_fixtures_may_make_and_drop_tables_themselves(project: Project) -> None:
    """A wider ``app`` fixture with create_all() and drop_all() in it works as it always did."""
    project.write(
        test_module=BY_HAND.format(scope="module"),
        test_next="def test_it(names):\n    assert names() == []\n",
        test_session=BY_HAND.format(scope="session"),
    )
    project.run().assert_outcomes(passed=5)
    assert (project.names, project.tables) == ([], ["thing"])


def test_a_fixture_of_a_test_cannot_drop_tables_on_mariadb(project: Project) -> None:
    """In a ``rollback`` test drop_all() is undone, but on MariaDB refused, with advice."""
    project.write(test_it=BY_HAND.format(scope="function"))
    result = project.run()
    if project.database.kind == "mariadb":
        result.assert_outcomes(passed=2, errors=2)
        result.stdout.fnmatch_lines(["*DROP*commits implicitly on MariaDB*recreate*"])
    else:
        result.assert_outcomes(passed=2)
    assert (project.names, project.tables) == ([], ["thing"])


# What a test leaves

LEAVES = """
import pytest
import sqlalchemy as sa
from conftest import Thing, db
from flask import g, has_app_context
from sqlalchemy.orm import Session

kept = []
pytestmark = pytest.mark.parametrize("strategy", [
    pytest.param(name, marks=pytest.mark.autosession(name))
    for name in ("rollback", "truncate", "recreate")
])


@pytest.fixture(autouse=True)
def clean(app):
    assert not has_app_context() or "left" not in g
    with app.app_context():
        assert Thing.query.all() == []


def test_context(app, strategy):
    app.app_context().push()
    g.left = True
    Thing(name="a").save()


def test_request(app, strategy):
    app.test_request_context("/left").push()
    g.left = True
    Thing(name="a").save()


def test_session(app, strategy):
    with app.app_context():
        kept.append(Session(db.engine))
    kept[-1].add(Thing(name="a"))
    kept[-1].flush()


def test_connection(app, strategy):
    with app.app_context():
        kept.append(db.engine.connect())
    kept[-1].execute(sa.insert(Thing).values(name="a"))


def test_both(app, strategy):
    with app.app_context():
        kept.append(Session(db.engine))
        kept[-1].execute(sa.select(Thing))
        kept.append(db.engine.connect())


def test_nothing(client, names, strategy):
    client.post("/things/a")
    assert names() == ["a"]
"""


def test_what_a_test_leaves_fails_it_and_is_taken_away(project: Project) -> None:
    """A context, session or connection left open fails its test by name, and no other test."""
    project.write(test_it=LEAVES)
    result = project.run("-v")
    said = result.parseoutcomes()
    assert said.get("errors", 0) + said["failed"] == 15
    for left in (
        "an app context of 'project'",
        "a request context (GET /left)",
        "a session that began a transaction at *test_it.py:*",
        "a connection that was taken at *test_it.py:*",
    ):
        result.stdout.fnmatch_lines([f"*left behind*: {left}*"] * 3)
    assert result.stdout.str().count("test_nothing[") == 3
    for strategy in "rollback", "truncate", "recreate":
        result.stdout.fnmatch_lines([f"test_it.py::test_nothing[[]{strategy}] PASSED*"])
    assert (project.names, project.tables) == ([], ["thing"])


@on_sqlite
def test_what_is_left_in_two_apps_is_told(project: Project) -> None:
    """A test that leaves something in each of two applications is told of both."""
    project.write(
        test_it="""
        from conftest import create_app, db

        kept = []

        def test_it(app, tmp_path):
            for each in app, create_app(f"sqlite:///{tmp_path}/other.db"):
                with each.app_context():
                    kept.append(db.engine.connect())
        """
    )
    result = project.run()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*a connection that was taken at *"] * 2)


@on_sqlite
def test_a_client_may_keep_its_context(project: Project) -> None:
    """A fixture's ``with app.test_client()`` keeps the last request's context, which is no leak."""
    project.write(
        test_it="""
        import pytest
        from conftest import Thing
        from flask import request

        @pytest.fixture
        def client(app):
            with app.test_client() as client:
                yield client

        @pytest.mark.parametrize("strategy", [
            pytest.param(name, marks=pytest.mark.autosession(name))
            for name in ("rollback", "truncate", "recreate")
        ])
        def test_it(client, strategy):
            client.post("/things/a")
            assert client.get("/things").json == ["a"]
            assert request.path == "/things"
            assert Thing.query.count() == 1

        def test_fails(client):
            client.post("/things/a")
            assert False

        def test_kept_for_good(app):
            app.test_client().__enter__().get("/things")
        """
    )
    project.run("-k", "not good").assert_outcomes(passed=3, failed=1, deselected=1)
    result = project.run("-k", "good", "-p", "no:flask")
    result.stdout.fnmatch_lines(["*left behind: a request context (GET /things)*"])


@on_sqlite
def test_a_wide_fixture_that_a_test_sets_up_is_told(project: Project) -> None:
    """Rows of a wider fixture that is asked for inside of a test would go with it: an error."""
    project.write(
        test_it="""
        import pytest
        from conftest import Thing, auto

        @pytest.fixture(scope="module")
        def rows(app):
            with auto.unit(app):
                Thing(name="a").save()

        @pytest.fixture(scope="module")
        def no_rows(app):
            with auto.unit(app):
                return Thing.query.count()

        def test_no_rows(client, request):
            client.post("/things/a")
            assert request.getfixturevalue("no_rows") == 1

        def test_rows(request):
            request.getfixturevalue("rows")
        """
    )
    result = project.run()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*The fixture 'rows'*'module'*inside of a test*"])
    assert project.names == []


# What is different in tests

CONTEXTS = """
import pytest
from conftest import Thing, auto, create_app, db
from flask import Flask


def make(**config):
    app = Flask("mine")
    app.config.update(SQLALCHEMY_DATABASE_URI={uri!r}, **config)
    auto.init_app(app)
    return app


def names_after_a_context(app):
    with app.app_context():
        Thing(name="a").save()
    with app.app_context():
        return [thing.name for thing in Thing.query]


def test_bare_contexts(caplog):
    assert names_after_a_context(make()) == []
    assert "An app context was left, and what it wrote was dropped" in caplog.text


@pytest.mark.parametrize("value", [True, False])
def test_the_applications_own_choice(value):
    app = make(AUTOSESSION_COMMIT_CONTEXTS=value)
    assert names_after_a_context(app) == (["a"] if value else [])


def test_units():
    app = make()
    with auto.unit(app):
        Thing(name="a").save()
    with app.app_context():
        assert Thing.query.count() == 1


def test_switched_off_by_the_application():
    app = make(AUTOSESSION_ENABLED=False)
    assert names_after_a_context(app) == []
    with app.app_context():
        db.session.add(Thing(name="b"))
        db.session.commit()
    with app.app_context():
        assert Thing.query.count() == 1
"""


@on_sqlite
def test_bare_contexts_do_not_commit(project: Project) -> None:
    """Leaving an app context keeps nothing, unless the app has AUTOSESSION_COMMIT_CONTEXTS set."""
    project.write(test_it=CONTEXTS.format(uri=project.database.uri))
    project.run("-p", "no:flask").assert_outcomes(passed=5)
    assert project.names == []


def test_wider_fixtures_keep_what_units_write(project: Project) -> None:
    """What fixtures of a wider scope keep for all tests, they write in ``auto.unit()``."""
    project.write(
        test_it="""
        import pytest
        from conftest import Thing, auto, db

        @pytest.fixture(scope="module", autouse=True)
        def data(app):
            with app.app_context():
                db.create_all()
            with app.app_context():
                Thing(name="dropped").save()
            with auto.unit(app):
                Thing(name="kept").save()

        @pytest.mark.parametrize("time", range(2))
        def test_it(client, names, time):
            client.post("/things/a")
            assert names() == ["kept", "a"]
        """
    )
    project.run().assert_outcomes(passed=2)
    assert project.tables == ["thing"]


DDL = """
import pytest
from conftest import db


def alter(app):
    with app.app_context(), db.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE toolkit_thing ADD COLUMN more INTEGER")
        connection.exec_driver_sql("SELECT more FROM toolkit_thing")


def test_rollback(app):
    alter(app)


@pytest.mark.autosession("recreate")
def test_recreate(app):
    alter(app)


def test_nothing_has_changed(app):
    alter(app)
"""


def test_changing_the_schema_is_undone_or_refused(project: Project) -> None:
    """A ``rollback`` test's DDL is undone; on MariaDB, which would commit, it fails with advice."""
    project.write(test_it=DDL)
    result = project.run()
    if project.database.kind == "mariadb":
        result.assert_outcomes(passed=1, failed=2)
        result.stdout.fnmatch_lines(["*ALTER*commits implicitly on MariaDB*recreate*"] * 2)
    else:
        result.assert_outcomes(passed=3)
    assert project.tables == ["thing"]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_threads_need_connections_of_their_own(project: Project) -> None:
    """A thread in a ``rollback`` test is told what to do; in a ``truncate`` test it works."""
    project.write(
        test_it="""
        from concurrent.futures import ThreadPoolExecutor
        import pytest

        @pytest.fixture
        def told(client, names):
            client.post("/things/a")
            with ThreadPoolExecutor() as pool:
                return pool.submit(names).result()

        @pytest.mark.autosession("truncate")
        def test_truncate(told):
            assert told == ["a"]

        def test_rollback(told):
            pass

        def test_after(names):
            assert names() == []
        """
    )
    result = project.run("-p", "no:flask")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        ['*Another thread or process*connections are one*@pytest.mark.autosession("truncate")*']
    )
    assert project.names == []


# Workers of pytest-xdist; test_plugin_order.py runs real ones


@pytest.fixture
def worker(project: Project, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the suite run as a worker's, in this process."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw7")
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "1234567890")
    return "_gw7_12345678"


def twin(uri: str, suffix: str) -> str:
    """The URI of the database that a worker has in place of another one."""
    url = sa.make_url(uri)
    name, dot, end = str(url.database), "", ""
    if url.host is None:
        name, dot, end = name.rpartition(".")
    return url.set(database=f"{name}{suffix}{dot}{end}").render_as_string(hide_password=False)


BINDS = """
import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_autosession import AutoSession

db = SQLAlchemy()
auto = AutoSession(db=db)
uri = {uri!r}
given = {{
    "text": uri,
    "url": sa.make_url(uri),
    "options": {{"url": uri, "pool_recycle": 77}},
    "file": "sqlite:///file:bind.db?uri=true",
    "memory": "sqlite://",
}}


class Thing(db.Model):
    __tablename__ = "toolkit_thing"
    id = sa.Column(sa.Integer, primary_key=True)


@pytest.fixture(scope="module")
def app():
    app = Flask("binds", instance_path={here!r})
    app.config.update(SQLALCHEMY_DATABASE_URI=uri, SQLALCHEMY_BINDS=dict(given))
    auto.init_app(app)
    return app


def name(url):
    return sa.make_url(url).database


def test_configuration(app):
    binds = app.config["SQLALCHEMY_BINDS"]
    assert name(app.config["SQLALCHEMY_DATABASE_URI"]) == name({twin!r})
    assert name(binds["text"]) == name(binds["url"]) == name({twin!r})
    assert name(binds["options"]["url"]) == name({twin!r})
    assert binds["options"]["pool_recycle"] == 77
    assert binds["memory"] == "sqlite://"
    assert given["text"] == given["options"]["url"] == uri


def test_another_app_with_the_same_configuration(app):
    other = Flask("other")
    other.config["SQLALCHEMY_DATABASE_URI"] = app.config["SQLALCHEMY_DATABASE_URI"]
    auto.init_app(other)
    with auto.unit(other):
        Thing(id=1).save()
    with app.app_context():
        assert Thing.query.count() == 1


@pytest.mark.parametrize("strategy", [
    pytest.param(name, marks=pytest.mark.autosession(name))
    for name in ("rollback", "truncate", "recreate")
])
def test_rows(app, strategy):
    with auto.unit(app):
        Thing(id=1).save()
    with app.app_context():
        assert Thing.query.count() == 1
    there = sa.create_engine({twin!r}, poolclass=sa.NullPool)
    with there.connect() as connection:
        durable = connection.scalar(sa.text("SELECT count(*) FROM toolkit_thing"))
    assert durable == (0 if strategy == "rollback" else 1)
"""


def test_a_worker_changes_every_bind(project: Project, worker: str) -> None:
    """Every bind of a worker, however configured, is one of its own, and the config says so."""
    uri = project.database.uri
    project.pytester.makepyfile(
        test_it=BINDS.format(uri=uri, twin=twin(uri, worker), here=str(project.pytester.path))
    )
    project.run().assert_outcomes(passed=5)
    assert project.tables == ["thing"]
    assert [path.name for path in project.pytester.path.glob("**/*_gw7_*")] == []
    if project.database.kind == "sqlite":
        assert not Path(str(sa.make_url(twin(uri, worker)).database)).exists()
    else:
        with pytest.raises(OperationalError, match=r"(?i)does not exist|unknown database"):
            sa.create_engine(twin(uri, worker)).connect()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_worker_says_why_it_has_no_database(project: Project, worker: str) -> None:
    """Where no database can be made, the error has the statement, the reason and what to do."""
    uri = sa.make_url(project.database.uri).set(port=1, database="nowhere")
    project.database = Database(project.database.kind, uri.render_as_string(hide_password=False))
    project.write(test_it="def test_it(client):\n    client.get('/things')\n")
    result = project.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"*CREATE DATABASE ?nowhere{worker}? failed on *:1/*"])
    result.stdout.fnmatch_lines(["*the right to create one, or run the tests without -n.*"])
