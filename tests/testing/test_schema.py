"""The tables of an application: made once for each database, and gone when the tests are over.

Here too is the laboratory that the tests of the strategies and of the workers' databases use.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_autosession import AutoSession
from flask_autosession.testing import IsolationError, isolate, schema, unchecked
from flask_autosession.testing.binds import engines_of
from tests.world import Database

from .conftest import Project

KINDS = ("sqlite", "postgresql", "mariadb")
on_sqlite = pytest.mark.parametrize("lab", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("lab", ["postgresql"], indirect=True)
on_mariadb = pytest.mark.parametrize("lab", ["mariadb"], indirect=True)
on_servers = pytest.mark.parametrize("lab", ["postgresql", "mariadb"], indirect=True)

# On SQLite the driver says how long to wait for a lock.
IMPATIENT = {"sqlite": {"connect_args": {"timeout": 0.1}}}


class Lab:
    """An application with models of its own, on a database that holds nothing else.

    :param database: The database, looked at from outside.
    :param config: Configuration of the application.
    """

    def __init__(self, database: Database, **config: Any) -> None:
        self.database = database
        self.kind = database.kind
        self.rows = database.rows
        self.db = SQLAlchemy()
        self.auto = AutoSession(db=self.db)
        self.app = Flask("lab")
        self.app.config.update({"SQLALCHEMY_DATABASE_URI": database.uri, **config})
        self.auto.init_app(self.app)
        self._others: list[Lab] = []

    def another(self, **config: Any) -> Lab:
        """Return another application, on the same database unless it is configured otherwise."""
        self._others.append(Lab(self.database, **config))
        return self._others[-1]

    @property
    def engine(self) -> sa.Engine:
        return engines_of(self.app)[None]

    def thing(self) -> Any:
        """Declare a model."""

        class Thing(self.db.Model):  # type: ignore[name-defined,misc]
            id = sa.Column(sa.Integer, primary_key=True)
            name = sa.Column(sa.String(20))

        return Thing

    def circle(self) -> tuple[Any, Any]:
        """Declare two models that refer to each other; their constraints have no names."""

        class Hen(self.db.Model):  # type: ignore[name-defined,misc]
            id = sa.Column(sa.Integer, primary_key=True)
            egg = sa.Column(sa.ForeignKey("egg.id"))

        class Egg(self.db.Model):  # type: ignore[name-defined,misc]
            id = sa.Column(sa.Integer, primary_key=True)
            hen = sa.Column(sa.ForeignKey("hen.id"), nullable=False)

        return Hen, Egg

    def fill_circle(self) -> None:
        """Commit a hen and an egg that refer to each other."""
        self.execute(
            "INSERT INTO hen (id) VALUES (1)",
            "INSERT INTO egg (id, hen) VALUES (1, 1)",
            "UPDATE hen SET egg = 1",
        )

    def commit(self, *objects: Any) -> None:
        """Commit objects through the application, in this order."""
        with self.auto.unit(self.app):
            for instance in objects:
                instance.save()

    def execute(self, *statements: str) -> None:
        """Commit statements, as another process would."""
        with self.database.engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def enforce_foreign_keys(self) -> None:
        """Have SQLite check foreign keys on this application's connections, as the others do."""
        if self.kind == "sqlite":

            @sa.event.listens_for(self.engine, "connect")
            def switch_on(driver: Any, _: object) -> None:
                driver.execute("PRAGMA foreign_keys = ON")

    @property
    def tables(self) -> list[str]:
        """The tables that are in the database, seen from outside."""
        return sorted(sa.inspect(self.database.engine).get_table_names())

    def close(self) -> None:
        while self._others:
            self._others.pop().close()
        for engine in engines_of(self.app).values():
            checked_out = getattr(engine.pool, "checkedout", lambda: 0)()
            engine.dispose()
            assert not checked_out, "the test left a connection checked out"


RESET = {
    # Connections that a failed test has left open must not keep the next one waiting.
    "postgresql": (
        """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()""",
        "DROP SCHEMA IF EXISTS other CASCADE",
        "DROP SCHEMA public CASCADE",
        "CREATE SCHEMA public",
    ),
    "mariadb": (
        "SET lock_wait_timeout = 5",
        "DROP DATABASE {name}",
        "CREATE DATABASE {name}",
        "USE {name}",
    ),
}


@contextmanager
def laboratory(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A laboratory on one kind of database, which nobody else uses: workers of Celery would not
    survive what is done to it."""
    schema.forget(drop=False)
    if request.param == "sqlite":
        path = request.getfixturevalue("tmp_path") / "lab.db"
        lab = Lab(Database("sqlite", f"sqlite:///{path}"))
    else:
        uri = sa.make_url(request.getfixturevalue(f"{request.param}_lab").uri)
        if request.param == "mariadb":  # whose driver loads all certificates for each connection
            uri = uri.update_query_dict({"ssl_disabled": "true"})
        lab = Lab(Database(request.param, uri.render_as_string(hide_password=False)))
    try:
        yield lab
        lab.close()
    finally:
        schema.forget(drop=False)
        if request.param != "sqlite":
            name = sa.make_url(lab.database.uri).database
            lab.execute(*(statement.format(name=name) for statement in RESET[lab.kind]))


@pytest.fixture(params=KINDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with laboratory(request) as lab:
        yield lab


@contextmanager
def statements(lab: Lab, word: str) -> Iterator[list[str]]:
    """Collect the statements with this word that an application sends."""
    sent: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        if word in statement:
            sent.append(" ".join(statement.split()))

    for engine in engines_of(lab.app).values():
        sa.event.listen(engine, "before_cursor_execute", note)
    yield sent
    for engine in engines_of(lab.app).values():
        sa.event.remove(engine, "before_cursor_execute", note)


def use(lab: Lab, strategy: str, **options: Any) -> None:
    """Run what could be a test, and does no more than to connect."""
    with isolate(lab.app, strategy, **options), lab.engine.connect():
        pass


# Once for each database


@pytest.mark.parametrize("strategy", ["rollback", "truncate"])
def test_tables_are_made_once(lab: Lab, strategy: str) -> None:
    """However many tests there are, each table is made once."""
    Thing = lab.thing()
    with statements(lab, "CREATE TABLE") as sent:
        for _ in range(3):
            with isolate(lab.app, strategy):
                lab.commit(Thing())
    assert [statement.split("(")[0] for statement in sent] == ["CREATE TABLE thing "]


def test_every_bind_gets_its_tables(lab: Lab, tmp_path: Path) -> None:
    """The tables of each bind are made in that bind's database."""
    lab = lab.another(SQLALCHEMY_BINDS={"notes": f"sqlite:///{tmp_path / 'notes.db'}"})
    Thing = lab.thing()

    class Note(lab.db.Model):
        __bind_key__ = "notes"
        id = sa.Column(sa.Integer, primary_key=True)

    with isolate(lab.app):
        lab.commit(Thing(), Note())
    assert lab.tables == ["thing"]
    assert sa.inspect(engines_of(lab.app)["notes"]).get_table_names() == ["note"]


def test_models_that_are_declared_late_get_their_tables(lab: Lab) -> None:
    """A model that is declared after the first test has its table in the next one."""
    Thing = lab.thing()
    with isolate(lab.app, "truncate"):
        lab.commit(Thing())
    Hen, Egg = lab.circle()
    with isolate(lab.app, "truncate"):
        lab.commit(Hen())
    assert lab.tables == ["egg", "hen", "thing"]


def test_two_applications_on_one_database(lab: Lab) -> None:
    """A second application adds its tables to those of the first, and both can be used."""
    lab.thing()
    use(lab, "truncate")
    other = lab.another()
    Thing, (Hen, _) = other.thing(), other.circle()
    with isolate(lab.app, "truncate"), isolate(other.app, "truncate"):
        other.commit(Thing(), Hen())
    assert lab.rows("SELECT * FROM thing") == lab.rows("SELECT * FROM hen") == []


@pytest.mark.parametrize("lab", ["sqlite", "postgresql"], indirect=True)
def test_tables_of_an_application_that_comes_late(lab: Lab) -> None:
    """They are made behind the locks of the test that it comes into, and go with that test."""
    lab = lab.another(SQLALCHEMY_ENGINE_OPTIONS=IMPATIENT.get(lab.kind, {}))
    Thing = lab.thing()
    late = lab.another(SQLALCHEMY_ENGINE_OPTIONS=IMPATIENT.get(lab.kind, {}))
    Same, (Hen, _) = late.thing(), late.circle()
    for _ in range(2):
        with isolate(lab.app):
            with lab.auto.unit(lab.app):
                Thing(name="first").save()
                Thing.__table__.drop(lab.db.session.connection())
                Thing.__table__.create(lab.db.session.connection())
            with isolate(late.app):
                late.commit(Same(name="late"), Hen())
                with lab.app.app_context():
                    assert [thing.name for thing in Thing.query] == ["late"]
                assert lab.tables == ["thing"]
    assert lab.tables == ["thing"]
    with isolate(late.app):
        late.commit(Same(), Hen())
    assert lab.tables == ["egg", "hen", "thing"]
    assert lab.rows("SELECT * FROM thing") == lab.rows("SELECT * FROM hen") == []


@on_mariadb
def test_tables_of_an_application_that_comes_late_on_mariadb(lab: Lab) -> None:
    """There they stay until the end of all tests, because to make them commits."""
    Thing = lab.thing()
    late = lab.another()
    Hen, _ = late.circle()
    with isolate(lab.app):
        lab.commit(Thing(name="first"))
        with isolate(late.app):
            late.commit(Hen())
        with lab.app.app_context():
            assert [thing.name for thing in Thing.query] == ["first"]
    assert lab.tables == ["egg", "hen", "thing"]
    assert lab.rows("SELECT * FROM thing") == lab.rows("SELECT * FROM hen") == []


@on_mariadb
def test_tables_of_an_application_that_comes_late_and_finds_a_lock(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told why it has no tables, in place of waiting for ever, and the test is undone."""
    Thing = lab.thing()
    use(lab, "rollback")
    late = lab.another()
    late.thing()
    Hen, _ = late.circle()
    monkeypatch.setattr(unchecked, "PATIENCE", 0)
    with lab.database.engine.connect() as other, isolate(lab.app):
        lab.engine.connect().close()
        other.exec_driver_sql("LOCK TABLES thing WRITE")
        told = r"could not be made then: .*Lock wait timeout.*\. If the test itself"
        with pytest.raises(IsolationError, match=told), isolate(late.app):
            late.commit(Hen())
        other.exec_driver_sql("UNLOCK TABLES")
        lab.commit(Thing(name="own"))
    assert lab.rows("SELECT * FROM thing") == []


@on_sqlite
def test_databases_in_memory_are_each_their_own(lab: Lab) -> None:
    """Two applications with databases in memory get tables in both."""
    for one in (lab.another(SQLALCHEMY_DATABASE_URI="sqlite://") for _ in range(2)):
        Thing = one.thing()
        with isolate(one.app), one.app.app_context():
            Thing().save()
            assert Thing.query.count() == 1


def test_tables_that_somebody_drops_are_made_again(lab: Lab) -> None:
    """Where a test or a fixture calls drop_all(), the next test finds its tables again."""
    Thing = lab.thing()
    for _ in range(2):
        with isolate(lab.app, "truncate"):
            lab.commit(Thing(name="own"))
            with lab.app.app_context():
                lab.db.drop_all()
            assert lab.tables == []
        elsewhere = sa.create_engine("sqlite://")
        lab.db.metadata.create_all(elsewhere)
        lab.db.metadata.drop_all(elsewhere)


def test_no_tables_are_made_for_schema_none(lab: Lab) -> None:
    """With schema="none" the tables are somebody else's business."""
    lab.thing()
    with isolate(lab.app, "truncate", schema="none"):
        assert lab.tables == []
    lab.execute("CREATE TABLE thing (id INTEGER PRIMARY KEY, name VARCHAR(20))")
    with isolate(lab.app, "truncate", schema="none"):
        lab.execute("INSERT INTO thing (id) VALUES (1)")
    assert lab.rows("SELECT * FROM thing") == []
    schema.forget(drop=True)
    assert lab.tables == ["thing"]


def test_an_application_without_models(lab: Lab) -> None:
    """Where there are no tables there is nothing to empty."""
    use(lab, "truncate")
    assert lab.tables == []


# At the end


def test_tables_that_were_made_go(lab: Lab) -> None:
    """At the end of all tests the database is as it was, types and sequences included."""
    lab.circle()

    class Coloured(lab.db.Model):
        id = sa.Column(sa.Integer, sa.Sequence("colours"), primary_key=True)
        colour = sa.Column(sa.Enum("red", "blue", name="colour"))

    with isolate(lab.app, "truncate"):
        lab.commit(Coloured(colour="red"))
        lab.fill_circle()
    schema.forget(drop=True)
    inspector = sa.inspect(lab.database.engine)
    assert inspector.get_table_names() == []
    if lab.kind != "sqlite":
        assert inspector.get_sequence_names() == []
    if lab.kind == "postgresql":
        assert inspector.get_enums() == []


def test_tables_that_were_there_stay(lab: Lab) -> None:
    """At the end of all tests, tables from before are there with their rows, referred to or not."""
    lab.execute("CREATE TABLE hen (id INTEGER PRIMARY KEY, egg INTEGER)")
    lab.execute("INSERT INTO hen (id) VALUES (7)", "CREATE TABLE other (id INTEGER)")
    Hen, Egg = lab.circle()
    with isolate(lab.app):
        lab.commit(Egg(hen=7))
    assert lab.tables == ["egg", "hen", "other"]
    schema.forget(drop=True)
    assert lab.tables == ["hen", "other"]
    assert lab.rows("SELECT id FROM hen") == [(7,)]


@on_postgresql
def test_types_that_were_there_stay(lab: Lab) -> None:
    """At the end of all tests, PostgreSQL's types from before are there."""
    lab.execute("CREATE TYPE mood AS ENUM ('good')")
    lab.thing()
    use(lab, "truncate")
    schema.forget(drop=True)
    assert [enum["name"] for enum in sa.inspect(lab.database.engine).get_enums()] == ["mood"]


@on_postgresql
def test_tables_in_other_schemas_go(lab: Lab) -> None:
    """Tables that were made outside of the default schema go at the end; those from before stay."""
    lab.execute("CREATE SCHEMA other", "CREATE TABLE other.before (id INTEGER)")

    class Thing(lab.db.Model):
        __table_args__ = ({"schema": "other"},)
        id = sa.Column(sa.Integer, primary_key=True)

    with isolate(lab.app, "truncate"):
        lab.commit(Thing())
    schema.forget(drop=True)
    assert sa.inspect(lab.database.engine).get_table_names("other") == ["before"]


@on_postgresql
def test_a_schema_that_is_made_with_its_tables(lab: Lab) -> None:
    """A schema may come into being together with its tables, which go at the end."""

    class Thing(lab.db.Model):
        __table_args__ = ({"schema": "other"},)
        id = sa.Column(sa.Integer, primary_key=True)

    make = sa.DDL("CREATE SCHEMA IF NOT EXISTS other")
    sa.event.listen(lab.db.metadata, "before_create", make)
    with isolate(lab.app, "truncate"):
        lab.commit(Thing())
        assert lab.rows("SELECT id FROM other.thing") == [(1,)]
    assert lab.rows("SELECT id FROM other.thing") == []
    schema.forget(drop=True)
    assert sa.inspect(lab.database.engine).get_table_names("other") == []


@on_sqlite
def test_a_fork_drops_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was forked off the tests leaves them their tables when it ends."""
    lab.thing()
    use(lab, "truncate")
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        schema.forget(drop=True)
    assert lab.tables == ["thing"]
    schema.forget(drop=True)
    assert lab.tables == []


def test_a_suite_leaves_the_tables_that_it_has_found(project: Project) -> None:
    """Tables from before are there after a run, and filled; those that were made are not."""
    project.database.insert("from before")
    ((parent,),) = project.database.rows("SELECT id FROM thing")
    project.write(
        test_it=f"""
        from conftest import db
        import sqlalchemy as sa

        class Child(db.Model):
            id = sa.Column(sa.Integer, primary_key=True)
            parent = sa.Column(sa.ForeignKey("thing.id"))

        sa.Table("thing", db.metadata, sa.Column("id", sa.Integer, primary_key=True))

        def test_commit(client, names, app):
            with app.app_context():
                Child(parent={parent}).save()
                assert Child.query.count() == 1
            assert client.post("/things/a").status_code == 201
        """
    )
    project.run().assert_outcomes(passed=1)
    assert project.tables == ["thing"]
    assert project.database.names == ["from before"]


# Migrations

ENVIRONMENT = """
from alembic import context
from flask import current_app

db = current_app.extensions["migrate"].db
with db.engine.connect() as connection:
    context.configure(connection=connection, target_metadata=db.metadata)
    with context.begin_transaction():
        context.run_migrations()
"""
LOGGING = """
import logging
from logging.config import fileConfig

from alembic import context

fileConfig(context.config.config_file_name)
logging.getLogger("lab.new").warning("while migrating")
"""
CONFIGURATION = """
[alembic]

[loggers]
keys = root,alembic

[logger_root]
level = ERROR
handlers = console

[logger_alembic]
level = WARN
handlers =
qualname = alembic

[handlers]
keys = console

[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = generic

[formatters]
keys = generic

[formatter_generic]
format = %(message)s
"""
REVISION = """
import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade():
    thing = op.create_table(
        "thing",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(20)),
        sa.Column("state", sa.Enum("new", "old", name="state")),
    )
    op.bulk_insert(thing, [{"name": "migrated", "state": "old"}])
"""


def write_migrations(folder: Path) -> str:
    """Write migrations that make one table, with a type, and put one row into it."""
    (folder / "versions").mkdir(parents=True)
    (folder / "env.py").write_text(ENVIRONMENT)
    (folder / "alembic.ini").write_text(CONFIGURATION)
    (folder / "versions" / "1.py").write_text(REVISION)
    return str(folder)


def migrated_thing(lab: Lab, folder: Path) -> Any:
    """Give an application migrations, and declare the model that they make a table for."""
    flask_migrate = pytest.importorskip("flask_migrate")
    flask_migrate.Migrate(lab.app, lab.db, directory=write_migrations(folder))

    class Thing(lab.db.Model):
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(20))
        state = sa.Column(sa.Enum("new", "old", name="state"))

    return Thing


def test_migrations_make_the_tables_once(lab: Lab, tmp_path: Path) -> None:
    """The tables come from upgrade(), once, and each test finds the rows that it has inserted."""
    Thing = migrated_thing(lab, tmp_path / "migrations")
    with statements(lab, "CREATE TABLE") as sent:
        for _ in range(2):
            with isolate(lab.app, schema="migrate"), lab.app.app_context():
                Thing(name="own", state="new").save()
                assert [thing.name for thing in Thing.query.order_by(Thing.id)] == [
                    "migrated",
                    "own",
                ]
    assert [text.split()[2] for text in sent] == ["alembic_version", "thing"]
    assert lab.rows("SELECT id, name, state FROM thing") == [(1, "migrated", "old")]


@pytest.mark.parametrize("strategy", ["truncate", "recreate"])
def test_rows_of_the_migrations_are_put_back(lab: Lab, strategy: str, tmp_path: Path) -> None:
    """Rows that the migrations have inserted are there in each test, whatever one does to them."""
    Thing = migrated_thing(lab, tmp_path / "migrations")
    for _ in range(2):
        with isolate(lab.app, strategy, schema="migrate"):
            lab.commit(Thing(name="own", state="new"))
            assert lab.rows("SELECT id, name FROM thing ORDER BY id") == [
                (1, "migrated"),
                (2, "own"),
            ]
            lab.execute("DELETE FROM thing WHERE id = 1")
    assert lab.rows("SELECT id, name, state FROM thing") == [(1, "migrated", "old")]


def test_what_the_migrations_made_goes(lab: Lab, tmp_path: Path) -> None:
    """At the end of all tests nothing of the migrations remains: no table, no type, no version."""
    migrated_thing(lab, tmp_path / "migrations")
    with isolate(lab.app, "truncate", schema="migrate"):
        assert lab.tables == ["alembic_version", "thing"]
    schema.forget(drop=True)
    assert lab.tables == []
    if lab.kind == "postgresql":
        assert sa.inspect(lab.database.engine).get_enums() == []


@on_sqlite
def test_migrations_in_memory(lab: Lab, tmp_path: Path) -> None:
    """A database in memory can be migrated, too."""
    lab = lab.another(SQLALCHEMY_DATABASE_URI="sqlite://")
    Thing = migrated_thing(lab, tmp_path / "migrations")
    for strategy in ("rollback", "truncate", "recreate"):
        with isolate(lab.app, strategy, schema="migrate"), lab.app.app_context():
            lab.commit(Thing(name="own"))
            assert [thing.name for thing in Thing.query.order_by(Thing.id)] == ["migrated", "own"]


def test_the_row_of_alembic_does_not_fill_a_database(lab: Lab, tmp_path: Path) -> None:
    """A database that was migrated before the tests, and holds no rows, can be emptied."""
    Thing = migrated_thing(lab, tmp_path / "migrations")
    with lab.app.app_context():
        pytest.importorskip("flask_migrate").upgrade()
    lab.execute("DELETE FROM thing")
    with isolate(lab.app, "truncate", schema="migrate"):
        lab.commit(Thing(name="own"))
    assert lab.rows("SELECT * FROM thing") == []
    schema.forget(drop=True)
    assert lab.tables == ["alembic_version", "thing"]
    assert lab.rows("SELECT * FROM alembic_version") == [("1",)]


@on_sqlite
def test_alembic_does_not_silence_the_loggers(
    lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What env.py does to logging is undone: loggers, handlers and level are as before."""
    root, own, off = logging.getLogger(), logging.getLogger("lab.own"), logging.getLogger("lab.off")
    off.disabled = True
    before = root.handlers[:], root.level
    migrated_thing(lab, tmp_path / "migrations")
    environment = tmp_path / "migrations" / "env.py"
    environment.write_text(LOGGING + ENVIRONMENT)
    with isolate(lab.app, "truncate", schema="migrate"):
        own.warning("heard")
        logging.getLogger("lab.new").warning("too")
    assert caplog.messages == ["heard", "too"]
    assert (root.handlers, root.level) == before
    assert (own.disabled, off.disabled) == (False, True)


@on_sqlite
def test_migrations_without_flask_migrate(lab: Lab) -> None:
    """Who asks for migrations that the application does not have is told so, by its name."""
    with pytest.raises(IsolationError, match=r"'lab' has no Flask-Migrate.*create_all"):
        use(lab, "truncate", schema="migrate")


@on_sqlite
@pytest.mark.parametrize("broken", ["no folder", "no upgrade"])
def test_migrations_that_fail(lab: Lab, tmp_path: Path, broken: str) -> None:
    """Migrations that do not work are an error that says why, not the end of the process."""
    folder = tmp_path / "migrations"
    migrated_thing(lab, folder)
    if broken == "no folder":
        shutil.rmtree(folder)
    else:
        (folder / "versions" / "1.py").write_text(f"{REVISION}\n    raise RuntimeError('no more')")
    with pytest.raises(IsolationError, match=r"migrations of 'lab' failed: (Path|no more)"):
        use(lab, "truncate", schema="migrate")


def test_a_suite_on_migrations(project: Project) -> None:
    """Under the plugin an ini option takes the tables from the migrations; no table remains."""
    pytest.importorskip("flask_migrate")
    project.write(
        test_it="""
        import pytest
        import sqlalchemy as sa
        from conftest import auto, create_app, db
        from flask_migrate import Migrate

        class Migrated(db.Model):
            __tablename__ = "migrated"
            id = sa.Column(sa.Integer, primary_key=True)
            name = sa.Column(sa.String(20))

        @pytest.fixture(scope="session")
        def app():
            app = create_app()
            Migrate(app, db)
            return app

        @pytest.mark.parametrize("strategy", ["one", "two"])
        def test_rows_are_there(app, strategy):
            with app.app_context():
                Migrated(name="own").save()
                assert [one.name for one in Migrated.query] == ["migrated", "own"]

        @pytest.mark.autosession("truncate")
        def test_rows_are_there_after_a_commit(app):
            with auto.unit():
                Migrated(name="own").save()
            assert [one.name for one in Migrated.query] == ["migrated", "own"]
        """
    )
    write_migrations(project.pytester.path / "migrations")
    revision = project.pytester.path / "migrations" / "versions" / "1.py"
    revision.write_text(REVISION.replace('"thing"', '"migrated"'))
    project.pytester.makeini("[pytest]\nautosession_schema = migrate")
    project.run().assert_outcomes(passed=3)
    assert project.tables == ["thing"]
