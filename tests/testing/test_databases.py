"""A database for each worker of pytest-xdist, made for it and dropped behind it."""

from __future__ import annotations

import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from flask_autosession import AutoSession
from flask_autosession.testing import IsolationError, databases, isolate, schema
from flask_autosession.testing.binds import database_key, engines_of, is_in_memory
from flask_autosession.testing.databases import WorkerDatabases

from .conftest import Project
from .test_schema import (
    KINDS,
    Lab,
    laboratory,
    on_postgresql,
    on_servers,
    on_sqlite,
)


@pytest.fixture(params=KINDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with laboratory(request) as lab:
        yield lab


Worker = Callable[[], WorkerDatabases]


@pytest.fixture
def worker(lab: Lab) -> Iterator[Worker]:
    """Makes what the plugin makes for a worker; what is in use at the test's end is dropped."""
    made: list[WorkerDatabases] = []

    def start() -> WorkerDatabases:
        made.append(WorkerDatabases(f"_gw{len(made)}_{uuid.uuid4().hex[:8]}"))
        return made[-1]

    yield start
    lab.close()
    schema.forget(drop=False)
    for one in made:
        one.drop()


def existing(lab: Lab) -> set[str]:
    """The databases there are, seen from outside: files, or those of the server that are ours."""
    if lab.kind == "sqlite":
        folder = Path(str(lab.database.engine.url.database)).parent
        return {path.name for path in folder.iterdir() if path.is_file()}
    statement = {"postgresql": "SELECT datname FROM pg_database", "mariadb": "SHOW DATABASES"}
    own = str(sa.make_url(lab.database.uri).database)
    return {name for (name,) in lab.rows(statement[lab.kind]) if name.startswith(own)}


def name_of(url: Any) -> str:
    """The name of a URL's database, without its folder."""
    return str(sa.make_url(url).database).rpartition("/")[2]


def with_tables(lab: Lab, given: WorkerDatabases) -> Any:
    """Give a laboratory its worker's database, and make a table there."""
    Thing = lab.thing()
    given.redirect(lab.app)
    with lab.app.app_context():
        lab.db.create_all()
    return Thing


# One for each worker


def test_an_application_uses_the_database_of_its_worker(lab: Lab, worker: Worker) -> None:
    """Commits go to a database of the worker's own, made when it is needed; it goes afterwards."""
    before = existing(lab)
    own, given = lab.another(), worker()
    Thing = own.thing()
    given.redirect(own.app)
    for strategy in ("rollback", "truncate", "recreate"):
        with isolate(own.app, strategy), own.app.app_context():
            own.commit(Thing(name="own"))
            assert [thing.name for thing in Thing.query] == ["own"]
            with own.db.engine.connect() as connection:
                assert name_of(own.engine.url) in now(connection)
    assert lab.tables == []
    assert existing(lab) - before - {"lab.db"} == {name_of(own.engine.url)}
    own.close()
    schema.forget(drop=False)
    given.drop()
    assert existing(lab) - before <= {"lab.db"}  # which looking at it has made


def now(connection: sa.Connection) -> str:
    """The database that a connection says it is in."""
    statement = {
        "sqlite": "SELECT file FROM pragma_database_list",
        "postgresql": "SELECT current_database()",
        "mysql": "SELECT DATABASE()",
    }[connection.dialect.name]
    return str(connection.exec_driver_sql(statement).scalar())


def test_two_workers_do_not_see_each_other(lab: Lab, worker: Worker) -> None:
    """Two workers, or two runs at once, use databases of their own, and drop nobody else's."""
    first, second = lab.another(), lab.another()
    given = worker(), worker()
    for one, databases_of_one in zip((first, second), given, strict=True):
        one.commit(with_tables(one, databases_of_one)())
    names = [name_of(one.engine.url) for one in (first, second)]
    assert names[0] != names[1]
    first.close()
    given[0].drop()
    assert existing(lab).intersection(names) == {names[1]}
    with second.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT id FROM thing").all() == [(1,)]


def test_applications_of_one_worker_share_its_database(lab: Lab, worker: Worker) -> None:
    """Each application of a worker gets the same database, also one that has read it somewhere."""
    given, first = worker(), lab.another()
    first.commit(with_tables(first, given)(name="shared"))
    uri = first.app.config["SQLALCHEMY_DATABASE_URI"]
    for second in (lab.another(), lab.another(SQLALCHEMY_DATABASE_URI=uri)):
        Thing = second.thing()
        given.redirect(second.app)
        assert second.app.config["SQLALCHEMY_DATABASE_URI"] == uri
        with second.app.app_context():
            assert [thing.name for thing in Thing.query] == ["shared"]


def test_binds_on_one_database(lab: Lab, worker: Worker) -> None:
    """Two binds whose URLs name one database in two ways share the worker's."""
    option = {"sqlite": "timeout", "postgresql": "connect_timeout", "mariadb": "read_timeout"}
    again = sa.make_url(lab.database.uri).update_query_dict({option[lab.kind]: "7"})
    lab = lab.another(SQLALCHEMY_BINDS={"again": again.render_as_string(hide_password=False)})
    Thing, given = lab.thing(), worker()

    class Other(lab.db.Model):
        __bind_key__ = "again"
        id = sa.Column(sa.Integer, primary_key=True)

    given.redirect(lab.app)
    for _ in range(2):
        with isolate(lab.app, "truncate"):
            lab.commit(Thing())
            lab.commit(Other())
            with engines_of(lab.app)["again"].connect() as connection:
                assert connection.exec_driver_sql("SELECT id FROM thing").all() == [(1,)]


def test_threads_that_come_first(lab: Lab, worker: Worker) -> None:
    """The database is made once, however many threads want it at the same moment."""
    lab = lab.another()
    worker().redirect(lab.app)
    together, errors = threading.Barrier(4), []

    def connect() -> None:
        together.wait(10)
        try:
            with lab.engine.connect() as connection:
                connection.exec_driver_sql("SELECT 1")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=connect) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert errors == []


# What an application says about its databases


@on_sqlite
def test_binds_of_every_form(lab: Lab, worker: Worker, tmp_path: Path) -> None:
    """Binds given as a text, a URL, a dictionary all move; the configuration says where to."""
    binds = {
        "text": f"sqlite:///{tmp_path / 'text.db'}",
        "url": sa.make_url(f"sqlite:///{tmp_path / 'url.db'}"),
        "dictionary": {"url": f"sqlite:///{tmp_path / 'dictionary.db'}", "echo": False},
        "memory": "sqlite://",
    }
    given = dict(binds)
    lab = lab.another(SQLALCHEMY_BINDS=given)
    worker().redirect(lab.app)
    told = lab.app.config["SQLALCHEMY_BINDS"]
    for key, engine in engines_of(lab.app).items():
        with engine.connect() as connection:
            used = now(connection)
        if key == "memory":
            assert (used, told[key]) == ("", "sqlite://")
        elif key is not None:
            url = told[key]["url"] if key == "dictionary" else told[key]
            assert str(sa.make_url(url).database) == used == engine.url.database
            assert name_of(url).startswith(f"{key}_gw0_")
            assert name_of(url).endswith(".db")
    assert told["dictionary"]["echo"] is False
    assert given == binds
    assert not [name for name in ("text.db", "url.db") if (tmp_path / name).exists()]


@on_sqlite
def test_a_default_that_is_a_bind(lab: Lab, worker: Worker) -> None:
    """The default database may be told as the bind None."""
    app = Flask("bound")
    app.config["SQLALCHEMY_BINDS"] = {None: lab.database.uri}
    AutoSession(db=SQLAlchemy()).init_app(app)
    worker().redirect(app)
    told = app.config["SQLALCHEMY_BINDS"][None]
    assert told == engines_of(app)[None].url.render_as_string(hide_password=False)
    assert name_of(told).startswith("lab_gw0_")


@on_postgresql
def test_the_password_goes_with_it(lab: Lab, worker: Worker) -> None:
    """The configuration has the user and the password as before."""
    url = sa.make_url(lab.database.uri).set(password="se cret")
    lab = lab.another(SQLALCHEMY_DATABASE_URI=url)
    worker().redirect(lab.app)
    told = sa.make_url(lab.app.config["SQLALCHEMY_DATABASE_URI"])
    assert told == url.set(database=told.database)
    assert told.database != url.database


@on_sqlite
def test_a_listener_that_connects_elsewhere(lab: Lab, worker: Worker, tmp_path: Path) -> None:
    """Where a listener of the application says what to connect to, it is obeyed."""
    lab = lab.another()
    elsewhere = str(tmp_path / "elsewhere.db")

    @sa.event.listens_for(lab.engine, "do_connect")
    def connect_elsewhere(_: Any, __: Any, args: list[Any], ___: Any) -> None:
        args[0] = elsewhere

    worker().redirect(lab.app)
    with lab.engine.connect() as connection:
        assert now(connection) == elsewhere


@on_servers
def test_the_database_itself_need_not_be_there(lab: Lab, worker: Worker) -> None:
    """A worker gets its database also where nobody has made the one that the URL names."""
    url = sa.make_url(lab.database.uri)
    lab = lab.another(SQLALCHEMY_DATABASE_URI=url.set(database=f"{url.database}_none"))
    given = worker()
    given.redirect(lab.app)
    with lab.engine.connect() as connection:
        assert now(connection).startswith(f"{url.database}_none_gw0_")
    lab.close()
    given.drop()
    assert existing(lab) == {url.database}


@on_servers
def test_a_database_that_a_fixture_has_made(lab: Lab, worker: Worker) -> None:
    """Where the worker's database is there already, it is used."""
    first, second = worker(), worker()
    second._suffix = first._suffix
    for one, given in ((lab.another(), first), (lab.another(), second)):
        given.redirect(one.app)
        with one.engine.connect() as connection:
            assert now(connection).endswith(first._suffix)


@on_servers
def test_a_server_that_is_not_there(lab: Lab, worker: Worker) -> None:
    """Where no server answers, the first use says so, and which one."""
    url = sa.make_url(lab.database.uri).set(host="127.0.0.1", port=9)
    lab = lab.another(SQLALCHEMY_DATABASE_URI=url)
    with pytest.raises(IsolationError, match=r"127\.0\.0\.1:9/"):
        worker().redirect(lab.app)
        lab.engine.connect()


def test_an_engine_that_is_a_connection(lab: Lab) -> None:
    """A fixture that puts a connection in place of an engine is told to go."""
    lab = lab.another()
    with lab.engine.connect() as connection, lab.app.app_context():
        lab.db.engines[None] = connection
        with pytest.raises(IsolationError, match=r"db\.engines\[None\] of 'lab'.*fixture"):
            isolate(lab.app).__enter__()
        lab.db.engines[None] = connection.engine


@on_sqlite
@pytest.mark.parametrize("where", ["options", "bind", "extension"])
def test_a_creator_is_refused(lab: Lab, worker: Worker, where: str) -> None:
    """An engine that makes its connections itself is refused by its bind's name, when it has."""
    path = str(lab.database.engine.url.database)
    creator = {"creator": lambda: sqlite3.connect(path)}
    notes = creator if where == "bind" else {}
    app = Flask("lab")
    app.config.update(
        SQLALCHEMY_DATABASE_URI=lab.database.uri,
        SQLALCHEMY_ENGINE_OPTIONS=creator if where == "options" else {},
        SQLALCHEMY_BINDS={"notes": {"url": lab.database.uri, **notes}},
    )
    db = SQLAlchemy(engine_options=creator if where == "extension" else {})
    auto = AutoSession(db=db)
    auto.init_app(app)
    worker().redirect(app)
    key = "notes" if where == "bind" else None
    for _ in range(2):
        with pytest.raises(IsolationError, match=rf"bind {key!r}.*'creator'.*without -n"):
            engines_of(app)[key].connect()


@on_postgresql
def test_a_name_in_the_query_is_refused(lab: Lab, worker: Worker) -> None:
    """Where the query of a URL names the database, its path would say so in vain."""
    url = sa.make_url(lab.database.uri)
    named = url.set(database=None).update_query_dict({"dbname": str(url.database)})
    lab = lab.another(SQLALCHEMY_DATABASE_URI=named)
    worker().redirect(lab.app)
    with pytest.raises(IsolationError, match=r"bind None .* path"):
        lab.engine.connect()


@on_servers
def test_a_url_without_a_database(lab: Lab, worker: Worker) -> None:
    """Where the URL leaves the database to the server, the worker gets one of its own, too."""
    url = sa.make_url(lab.database.uri)._replace(database=None)
    lab = lab.another(SQLALCHEMY_DATABASE_URI=url)
    worker().redirect(lab.app)
    with lab.engine.connect() as connection:
        assert now(connection).startswith("_gw0_")


class Strange(SQLiteDialect_pysqlite):
    """A database that we do not know."""

    name = "strange"
    supports_statement_cache = True


@on_sqlite
def test_a_strange_dialect_is_refused(lab: Lab, worker: Worker) -> None:
    """Where nobody knows how to make a database, no worker is sent to one that is not there."""
    registry.register("strange", __name__, "Strange")
    url = sa.make_url(lab.database.uri).set(drivername="strange")
    lab = lab.another(SQLALCHEMY_DATABASE_URI=url)
    with pytest.raises(IsolationError, match=r"strange.*without -n"):
        worker().redirect(lab.app)


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("sqlite://", True),
        ("sqlite:///:memory:", True),
        ("sqlite:///file::memory:?uri=true", True),
        ("sqlite:///file:name?mode=memory&uri=true", True),
        ("sqlite:///memory.db", False),
        ("sqlite:///file:name?mode=rwc&uri=true", False),
        ("postgresql+psycopg://host/", False),
    ],
)
def test_what_is_in_memory(url: str, private: bool) -> None:
    """Databases in memory belong to their process anyway, and are left alone."""
    assert is_in_memory(sa.make_url(url)) is private


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("postgresql+psycopg://a:b@h/x", "postgresql+psycopg://h/x?connect_timeout=1", True),
        ("postgresql+psycopg://h/x", "postgresql+psycopg://h:5432/x", True),
        ("mysql+pymysql://h/x", "mysql+pymysql://h:3306/x?charset=utf8mb4", True),
        ("postgresql+psycopg://h/x", "postgresql+psycopg://h/y", False),
        ("postgresql+psycopg://h/x", "postgresql+psycopg://i/x", False),
        ("postgresql+psycopg://h/x", "postgresql+psycopg://h:5433/x", False),
        ("postgresql+psycopg:///x?host=h", "postgresql+psycopg:///x?host=i", False),
        ("postgresql+psycopg:///x?port=1", "postgresql+psycopg:///x?port=2", False),
        ("mysql+pymysql:///x?unix_socket=h", "mysql+pymysql:///x?unix_socket=i", False),
        ("sqlite:////x.db", "sqlite:////x.db?timeout=1", True),
        ("sqlite:////x.db", "sqlite:////y.db", False),
        ("sqlite://", "sqlite://", False),
    ],
)
def test_what_is_one_database(one: str, other: str, same: bool) -> None:
    """Engines are on one database if they have server and name in common, whoever connects."""
    engines = sa.create_engine(one), sa.create_engine(other)
    keys = [database_key(engine) for engine in engines]
    assert (keys[0] == keys[1]) is same
    assert keys == [database_key(engine) for engine in engines]


# Names


@on_servers
@pytest.mark.parametrize("long", ["n" * 61, "ü" * 30], ids=["ascii", "umlauts"])
def test_long_names(lab: Lab, worker: Worker, long: str) -> None:
    """A name stays within what a server takes, and names that differ at their end still differ."""
    url = sa.make_url(lab.database.uri)
    urls = [url.set(database=f"{long}{number}") for number in range(2)]
    lab = lab.another(SQLALCHEMY_DATABASE_URI=urls[0], SQLALCHEMY_BINDS={"other": urls[1]})
    worker().redirect(lab.app)
    names = [str(engine.url.database) for engine in engines_of(lab.app).values()]
    assert len({*names, *(str(url.database) for url in urls)}) == 4
    assert max(len(name.encode()) for name in names) <= 63


@on_servers
def test_names_that_need_quoting(lab: Lab, worker: Worker) -> None:
    """A name with blanks and quotes is made and dropped like any other."""
    odd = f'{sa.make_url(lab.database.uri).database} "50%" `%s`'
    quoted = lab.engine.dialect.identifier_preparer.quote_identifier(odd)
    with lab.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
        admin.exec_driver_sql(f"CREATE DATABASE {quoted}")
        try:
            before = existing(lab)
            own, given = lab.another(), worker()
            own = lab.another(SQLALCHEMY_DATABASE_URI=own.engine.url.set(database=odd))
            given.redirect(own.app)
            with own.engine.connect() as connection:
                assert now(connection).startswith(f"{odd}_gw0_")
            own.close()
            given.drop()
            assert existing(lab) == before
        finally:
            admin.exec_driver_sql(f"DROP DATABASE {quoted}")


# The end


@on_sqlite
@pytest.mark.parametrize("form", ["path", "uri"])
def test_all_files_of_a_database_go(lab: Lab, worker: Worker, form: str) -> None:
    """With its file go those that SQLite keeps beside it, also while a connection is open."""
    path = lab.database.engine.url.database
    uri = {"path": lab.database.uri, "uri": f"sqlite:///file:{path}?uri=true&mode=rwc"}[form]
    before = existing(lab)
    for mode in ("WAL", "DELETE"):
        own, given = lab.another(SQLALCHEMY_DATABASE_URI=uri), worker()
        with_tables(own, given)
        with own.engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA journal_mode = {mode}")
            connection.exec_driver_sql("INSERT INTO thing (id) VALUES (1)")
            endings = {"WAL": ["", "-shm", "-wal"], "DELETE": ["", "-journal"]}[mode]
            base = name_of(own.engine.url)
            assert existing(lab) - before == {f"{base}{ending}" for ending in endings}
            given.drop()
            connection.rollback()
        own.engine.dispose()
        assert existing(lab) == before


@on_servers
def test_a_database_in_use_does_not_hold_up_the_end(
    lab: Lab, worker: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A connection that is still open costs at most the patience, and no other database stays."""
    monkeypatch.setattr(databases, "PATIENCE", 0)
    files = {"notes": f"sqlite:///{tmp_path / 'notes.db'}"}
    first, second, given = lab.another(SQLALCHEMY_BINDS=files), lab.another(), worker()
    Thing = with_tables(first, given)
    before = existing(lab) - {name_of(first.engine.url)}
    with engines_of(first.app)["notes"].connect():
        assert list(tmp_path.glob("notes_*"))
    connection = first.engine.connect()
    connection.execute(sa.select(Thing.__table__))
    if lab.kind == "mariadb":
        with pytest.raises(IsolationError, match=r"DROP DATABASE .* failed"):
            given.drop()
        connection.close()
        second.execute(f"DROP DATABASE {name_of(first.engine.url)}")
    else:
        given.drop()
        connection.invalidate()
        connection.close()
    assert existing(lab) == before
    assert not list(tmp_path.glob("notes_*"))


@on_servers
def test_who_may_not_make_a_database_is_told(lab: Lab, worker: Worker) -> None:
    """Without the right to create databases the first use says so, without the password."""
    url = sa.make_url(lab.database.uri)
    poor, word = f"poor_{uuid.uuid4().hex[:8]}", "se-cret"
    account = {"postgresql": f'"{poor}"', "mariadb": f"'{poor}'@'%%'"}[lab.kind]
    made = {
        "postgresql": [f"CREATE ROLE {account} LOGIN PASSWORD '{word}'"],
        "mariadb": [
            f"CREATE USER {account} IDENTIFIED BY '{word}'",
            f"GRANT ALL ON {url.database}.* TO {account}",
        ],
    }
    lab.execute(*made[lab.kind])
    try:
        own = lab.another(SQLALCHEMY_DATABASE_URI=url.set(username=poor, password=word))
        with pytest.raises(IsolationError) as caught:
            worker().redirect(own.app)
            own.engine.connect()
    finally:
        lab.execute(f"DROP {'ROLE' if lab.kind == 'postgresql' else 'USER'} {account}")
    assert name_of(own.engine.url) in str(caught.value)
    assert "right to create" in str(caught.value)
    assert word not in str(caught.value)


# With pytest


def test_a_run_in_a_worker(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's tests use a database with its name and the run's, which is gone afterwards."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw3")
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)
    project.write(
        test_it="""
        import pytest
        import sqlalchemy as sa
        from conftest import db

        @pytest.mark.parametrize("time", [
            "first", pytest.param("second", marks=pytest.mark.autosession("truncate"))
        ])
        def test_it(app, client, names, time):
            client.post("/things/own")
            assert names() == ["own"]
            with app.app_context():
                told = sa.make_url(app.config["SQLALCHEMY_DATABASE_URI"]).database
                assert told == db.engine.url.database
            print("used", told, ".")
        """
    )
    result = project.run("-s")
    result.assert_outcomes(passed=2)
    used = {line.split()[-2] for line in result.outlines if "used" in line}
    assert len(used) == 1
    assert "_gw3_" in min(used)
    assert project.tables == ["thing"]
    if project.database.kind == "sqlite":
        assert not Path(min(used)).exists()
    else:
        known = {"postgresql": "SELECT datname FROM pg_database", "mariadb": "SHOW DATABASES"}
        assert (min(used),) not in project.database.rows(known[project.database.kind])
