"""The strategy ``truncate``: real connections and commits, and all tables empty afterwards."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_autosession.testing import IsolationError, isolate, schema, unchecked
from flask_autosession.testing.binds import engines_of

from .conftest import Project
from .test_schema import (
    KINDS,
    Lab,
    laboratory,
    on_mariadb,
    on_postgresql,
    on_servers,
    on_sqlite,
    use,
)


@pytest.fixture(params=KINDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with laboratory(request) as lab:
        yield lab


# Real commits, and nothing of them afterwards


def test_commits_are_real(lab: Lab) -> None:
    """What requests, units and the test itself commit is seen by others, until the end."""
    Thing = lab.thing()

    @lab.app.post("/<name>/<int:status>")
    def create(name: str, status: int) -> tuple[str, int]:
        Thing(name=name).save()
        return name, status

    client = lab.app.test_client()
    with isolate(lab.app, "truncate"):
        assert client.post("/request/201").status_code == 201
        assert client.post("/refused/400").status_code == 400
        lab.commit(Thing(name="unit"))
        with lab.app.app_context():
            Thing(name="explicit").save()
            lab.db.session.commit()
        names = lab.rows("SELECT name FROM thing ORDER BY name")
        assert names == [("explicit",), ("request",), ("unit",)]
    assert lab.rows("SELECT * FROM thing") == []


def test_a_failing_test_is_undone_too(lab: Lab) -> None:
    """The exception of a test leaves the block as it is, and the tables are empty."""
    Thing = lab.thing()
    with pytest.raises(ZeroDivisionError), isolate(lab.app, "truncate"):
        lab.commit(Thing())
        raise ZeroDivisionError
    assert lab.rows("SELECT * FROM thing") == []


def test_threads_with_connections_of_their_own(lab: Lab) -> None:
    """Threads, each with its own context and connection, work at the same time."""
    Thing = lab.thing()
    together = threading.Barrier(3)

    def work(name: str) -> None:
        with lab.app.app_context(), lab.db.engine.connect() as connection:
            assert connection.execute(sa.select(Thing.name)).all() == []
            together.wait(10)
        lab.commit(Thing(name=name))

    with isolate(lab.app, "truncate"):
        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert sorted(lab.rows("SELECT name FROM thing")) == [("a",), ("b",), ("c",)]
    assert lab.rows("SELECT * FROM thing") == []


def test_threads_that_come_first(lab: Lab) -> None:
    """Threads that are the first to use the database, all at once, find their tables."""
    Thing = lab.thing()
    together, found = threading.Barrier(3), []

    def work() -> None:
        together.wait(10)
        with lab.app.app_context():
            found.append(Thing.query.all())

    with isolate(lab.app, "truncate"):
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert found == [[], [], []]


def test_what_another_process_writes(lab: Lab) -> None:
    """A server in another process finds the tables, and what it commits is undone as well."""
    lab.thing()
    for _ in range(2):
        with isolate(lab.app, "truncate"):
            lab.execute("INSERT INTO thing (name) VALUES ('server')")
            assert lab.rows("SELECT id FROM thing") == [(1,)]
    assert lab.rows("SELECT * FROM thing") == []


@pytest.mark.parametrize("strategy", ["truncate", "recreate"])
def test_a_pool_of_one(lab: Lab, strategy: str) -> None:
    """An application with one connection gets along with it."""
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 1, "poolclass": sa.QueuePool}
    lab = lab.another(SQLALCHEMY_ENGINE_OPTIONS=options)
    Thing = lab.thing()
    for _ in range(2):
        with isolate(lab.app, strategy):
            lab.commit(Thing())
            assert lab.rows("SELECT id FROM thing") == [(1,)]


def test_a_pool_that_was_disposed_of(lab: Lab) -> None:
    """A test may dispose of its engine: the tables are emptied, and what it leaves open is told."""
    Thing = lab.thing()
    with pytest.raises(IsolationError, match="a connection"), isolate(lab.app, "truncate"):
        lab.commit(Thing())
        lab.engine.dispose()
        left = lab.engine.connect()
    assert lab.rows("SELECT * FROM thing") == []
    left.close()
    with isolate(lab.app, "truncate"):
        lab.commit(Thing())


def test_nested_blocks(lab: Lab) -> None:
    """An inner block empties the tables that the outer one has filled only if nothing is lost."""
    Thing = lab.thing()
    with isolate(lab.app, "truncate"):
        with isolate(lab.app, "truncate"):
            lab.commit(Thing(name="inner"))
        assert lab.rows("SELECT * FROM thing") == []
        lab.commit(Thing(name="outer"))
        with pytest.raises(IsolationError, match="'thing'"):
            use(lab, "truncate")
        assert lab.rows("SELECT name FROM thing") == [("outer",)]
    assert lab.rows("SELECT * FROM thing") == []


# Whatever tables there are


class Zoo:
    """Models of every kind that makes emptying difficult, and a row in each."""

    def __init__(self, lab: Lab) -> None:
        Hen, Egg = lab.circle()

        class Node(lab.db.Model):  # type: ignore[name-defined,misc]
            """Refers to itself."""

            id = sa.Column(sa.Integer, primary_key=True)
            parent = sa.Column(sa.ForeignKey("node.id"))

        class Owner(lab.db.Model):  # type: ignore[name-defined,misc]
            __tablename__ = 'Group of "50%" `%s` :x'
            id = sa.Column("order", sa.Integer, primary_key=True)

        class Pet(lab.db.Model):  # type: ignore[name-defined,misc]
            """Keeps its owner from being deleted."""

            __tablename__ = "user"
            id = sa.Column(sa.Integer, primary_key=True)
            owner = sa.Column(sa.ForeignKey(Owner.id, ondelete="RESTRICT"), nullable=False)

        class Seat(lab.db.Model):  # type: ignore[name-defined,misc]
            """Has two keys, and no counter."""

            row = sa.Column(sa.String(5), primary_key=True)
            number = sa.Column(sa.Integer, primary_key=True, autoincrement=False)

        class Ticket(lab.db.Model):  # type: ignore[name-defined,misc]
            id = sa.Column(sa.String(5), primary_key=True)
            row = sa.Column(sa.String(5))
            number = sa.Column(sa.Integer)
            __table_args__ = (
                sa.ForeignKeyConstraint(["row", "number"], ["seat.row", "seat.number"]),
            )

        class Bare(lab.db.Model):  # type: ignore[name-defined,misc]
            """Has no table."""

            __table__ = sa.Table(
                "bare", lab.db.metadata, sa.Column("id", sa.Integer, primary_key=True)
            )

        self._lab = lab
        self.models = [Hen, Egg, Node, Owner, Pet, Seat, Ticket]
        self.missing = Bare

    def fill(self) -> None:
        Hen, Egg, Node, Owner, Pet, Seat, Ticket = self.models
        seat = {"row": "a", "number": 1}
        self._lab.commit(Node(id=1), Node(id=2, parent=1), Owner(), Pet(owner=1))
        self._lab.commit(Seat(**seat), Ticket(id="x", **seat))
        self._lab.fill_circle()
        self._lab.execute("UPDATE node SET parent = 2 WHERE id = 1")

    def count(self) -> list[int]:
        """How many rows each table has, seen from outside."""
        with self._lab.database.engine.connect() as connection:
            return [
                connection.scalar(sa.select(sa.func.count()).select_from(model.__table__))
                for model in self.models
            ]


def test_all_tables_are_emptied(lab: Lab) -> None:
    """Circles, references to oneself, RESTRICT, odd names: every table is empty afterwards."""
    lab.enforce_foreign_keys()
    zoo = Zoo(lab)
    for _ in range(2):
        with isolate(lab.app, "truncate"):
            assert zoo.count() == [0] * 7
            lab.execute("DROP TABLE bare")
            zoo.fill()
            assert zoo.count() == [1, 1, 2, 1, 1, 1, 1]
        assert zoo.count() == [0] * 7
        lab.execute("CREATE TABLE bare (id INTEGER PRIMARY KEY)")
    schema.forget(drop=True)
    assert lab.tables == []


@pytest.mark.parametrize("lab", ["sqlite", "postgresql"], indirect=True)
def test_a_circle_that_is_checked_by_commit(lab: Lab) -> None:
    """Rows that cannot be there without each other go, too."""
    lab.enforce_foreign_keys()
    late = {"deferrable": True, "initially": "DEFERRED", "use_alter": lab.kind == "postgresql"}

    class Left(lab.db.Model):
        id = sa.Column(sa.Integer, primary_key=True)
        right = sa.Column(sa.ForeignKey("right.id", name="to_right", **late), nullable=False)

    class Right(lab.db.Model):
        id = sa.Column(sa.Integer, primary_key=True)
        left = sa.Column(sa.ForeignKey("left.id", name="to_left", **late), nullable=False)

    with isolate(lab.app, "truncate"):
        lab.commit(Left(id=1, right=1), Right(id=1, left=1))
        assert lab.rows('SELECT * FROM "left"') == [(1, 1)]
    assert lab.rows('SELECT * FROM "left"') == lab.rows('SELECT * FROM "right"') == []


def test_every_bind_is_emptied(lab: Lab, tmp_path: Path) -> None:
    """The tables of each bind are emptied, also where two binds have one database."""
    binds = {"notes": f"sqlite:///{tmp_path / 'notes.db'}", "same": lab.database.uri}
    lab = lab.another(SQLALCHEMY_BINDS=binds)
    Thing = lab.thing()

    class Note(lab.db.Model):
        __bind_key__ = "notes"
        id = sa.Column(sa.Integer, primary_key=True)

    class Twin(lab.db.Model):
        __bind_key__ = "same"
        id = sa.Column(sa.Integer, primary_key=True)

    for _ in range(2):
        with isolate(lab.app, "truncate"):
            for model in (Thing, Note, Twin):
                lab.commit(model())
            assert lab.rows("SELECT id FROM thing") == lab.rows("SELECT id FROM twin") == [(1,)]
    assert lab.rows("SELECT * FROM thing") == lab.rows("SELECT * FROM twin") == []
    with engines_of(lab.app)["notes"].connect() as connection:
        assert connection.execute(sa.select(Note.__table__)).all() == []


@on_servers
def test_tables_in_another_schema(lab: Lab) -> None:
    """Tables outside of the default schema are emptied, and count from 1 again."""
    other = f"{sa.make_url(lab.database.uri).database}_other" if lab.kind == "mariadb" else "other"
    lab.execute(f"CREATE SCHEMA {other}")
    try:

        class Inside(lab.db.Model):
            __table_args__ = ({"schema": other},)
            id = sa.Column(sa.Integer, primary_key=True)

        class Outside(lab.db.Model):
            __tablename__ = "inside"
            id = sa.Column(sa.Integer, sa.ForeignKey(f"{other}.inside.id"), primary_key=True)

        for _ in range(2):
            with isolate(lab.app, "truncate"):
                lab.commit(Inside(), Outside(id=1))
                assert lab.rows(f"SELECT * FROM {other}.inside") == [(1,)]
        assert lab.rows(f"SELECT * FROM {other}.inside") == lab.rows("SELECT * FROM inside") == []
    finally:
        schema.forget(drop=True)
        lab.execute(f"DROP SCHEMA {other}")


# Counters


def test_counters_start_again(lab: Lab) -> None:
    """The first row of each test has the key 1."""
    lab.enforce_foreign_keys()
    Thing = lab.thing()

    class Counted(lab.db.Model):
        __table_args__ = ({"sqlite_autoincrement": True},)
        id = sa.Column(sa.Integer, primary_key=True)

    class Owned(lab.db.Model):
        id = sa.Column(sa.Integer, sa.Identity(), primary_key=True)

    class Strict(lab.db.Model):
        id = sa.Column(sa.Integer, sa.Identity(always=True), primary_key=True)

    for _ in range(2):
        with isolate(lab.app, "truncate"):
            for model in (Thing, Counted, Owned, Strict):
                lab.commit(model())
                lab.execute(f"DELETE FROM {model.__tablename__}")
                lab.commit(model())
            assert lab.rows("SELECT id FROM counted") == [(2,)]
            assert lab.rows("SELECT id FROM owned") == lab.rows("SELECT id FROM strict")


def test_sequences_start_again(lab: Lab) -> None:
    """A sequence that the models name begins with its first value in each test."""

    class Thing(lab.db.Model):
        id = sa.Column(sa.Integer, sa.Sequence("numbers of things", start=5), primary_key=True)

    for _ in range(2):
        with isolate(lab.app, "truncate"):
            lab.commit(Thing())
            first = 1 if lab.kind == "sqlite" else 5  # which has none
            assert lab.rows("SELECT id FROM thing") == [(first,)]


@on_postgresql
def test_a_sequence_in_another_schema_starts_again(lab: Lab) -> None:
    """A sequence outside of the default schema begins again, too."""
    lab.execute("CREATE SCHEMA other")

    class Thing(lab.db.Model):
        id = sa.Column(sa.Integer, sa.Sequence("numbers", schema="other"), primary_key=True)

    for _ in range(2):
        with isolate(lab.app, "truncate"):
            lab.commit(Thing())
            assert lab.rows("SELECT id FROM thing") == [(1,)]


# Rows that were there before the test


def test_rows_that_nobody_could_bring_back_are_not_removed(lab: Lab) -> None:
    """A database that had rows before the first look is not touched, and the table is named."""
    lab.execute("CREATE TABLE thing (id INTEGER PRIMARY KEY, name VARCHAR(20))")
    lab.execute("INSERT INTO thing VALUES (7, 'dear')")
    Thing = lab.thing()
    for _ in range(2):
        with pytest.raises(IsolationError, match=r"'truncate'.*'thing'"):
            use(lab, "truncate")
        with isolate(lab.app), lab.app.app_context():
            Thing(id=8).save()
            assert Thing.query.count() == 2
    schema.forget(drop=True)
    assert lab.rows("SELECT * FROM thing") == [(7, "dear")]


@on_postgresql
def test_passwords_are_not_shown(lab: Lab) -> None:
    """The message that names a database does not name its password."""
    uri = sa.make_url(lab.database.uri).set(password="secret")
    lab = lab.another(SQLALCHEMY_DATABASE_URI=uri.render_as_string(hide_password=False))
    lab.thing()
    lab.execute("CREATE TABLE thing (id INTEGER PRIMARY KEY, name VARCHAR(20))")
    lab.execute("INSERT INTO thing (id) VALUES (7)")
    with pytest.raises(IsolationError, match=re.escape(str(uri.database))) as caught:
        use(lab, "truncate")
    assert "secret" not in str(caught.value)


def test_rows_of_a_wider_fixture_are_not_removed(lab: Lab) -> None:
    """Rows that were committed between two tests are kept, and the second test is refused."""
    Thing = lab.thing()
    with isolate(lab.app, "truncate"):
        lab.commit(Thing())
    lab.commit(Thing(name="wide"))
    with pytest.raises(IsolationError, match="'thing'"):
        use(lab, "truncate")
    assert lab.rows("SELECT name FROM thing") == [("wide",)]


def with_a_row_of_its_own(model: Any) -> None:
    """Have a table filled when it is made, as some migrations do."""

    @sa.event.listens_for(model.__table__, "after_create")
    def write(table: sa.Table, connection: sa.Connection, **_: Any) -> None:
        connection.execute(table.insert().values(name="listener"))


def test_rows_that_come_with_the_tables_are_put_back(lab: Lab) -> None:
    """What a listener writes when a table is made is there in each test."""
    Thing = lab.thing()
    with_a_row_of_its_own(Thing)
    for _ in range(2):
        with isolate(lab.app, "truncate"):
            assert lab.rows("SELECT id, name FROM thing") == [(1, "listener")]
            lab.execute("DELETE FROM thing")
            lab.commit(Thing(name="own"))
    assert lab.rows("SELECT id, name FROM thing") == [(1, "listener")]


def test_rows_beside_those_that_come_with_the_tables_are_not_removed(lab: Lab) -> None:
    """Rows that a wider fixture adds to those that come with the tables are kept, too."""
    Thing = lab.thing()
    with_a_row_of_its_own(Thing)
    with isolate(lab.app):
        lab.commit(Thing(name="own"))
    lab.commit(Thing(name="wide"))
    with pytest.raises(IsolationError, match="'thing'"):
        use(lab, "truncate")
    assert lab.rows("SELECT name FROM thing ORDER BY name") == [("listener",), ("wide",)]


@on_servers
def test_rows_in_another_schema_are_not_removed(lab: Lab) -> None:
    """Rows from before are seen in other schemas, too."""
    other = f"{sa.make_url(lab.database.uri).database}_other" if lab.kind == "mariadb" else "other"
    lab.execute(f"CREATE SCHEMA {other}", f"CREATE TABLE {other}.dear (id INTEGER PRIMARY KEY)")
    try:
        lab.execute(f"INSERT INTO {other}.dear VALUES (7)")

        class Dear(lab.db.Model):
            __table_args__ = ({"schema": other},)
            id = sa.Column(sa.Integer, primary_key=True)

        for strategy in ("truncate", "recreate"):
            with pytest.raises(IsolationError, match=r"other\.dear"):
                use(lab, strategy)
        schema.forget(drop=True)
        assert lab.rows(f"SELECT * FROM {other}.dear") == [(7,)]
    finally:
        lab.execute(f"DROP TABLE {other}.dear", f"DROP SCHEMA {other}")


def test_tables_that_no_model_has_are_left_alone(lab: Lab) -> None:
    """What the application does not know is not emptied, nor counted from 1 again."""
    key = {
        "sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "postgresql": "SERIAL PRIMARY KEY",
        "mariadb": "INTEGER PRIMARY KEY AUTO_INCREMENT",
    }[lab.kind]
    lab.execute(
        f"CREATE TABLE strange (id {key}, name VARCHAR(5))",
        "INSERT INTO strange (name) VALUES ('a')",
        "INSERT INTO strange (name) VALUES ('b')",
        "DELETE FROM strange WHERE name = 'b'",
    )
    Thing = lab.thing()
    with isolate(lab.app, "truncate"):
        lab.commit(Thing())
    lab.execute("INSERT INTO strange (name) VALUES ('c')")
    assert lab.rows("SELECT id, name FROM strange ORDER BY id") == [(1, "a"), (3, "c")]


# The connections are as before


@on_sqlite
@pytest.mark.parametrize("begin", ["on_write", "deferred", "immediate", "off", "recipe"])
def test_sqlite_checks_as_before(lab: Lab, begin: str) -> None:
    """Whoever sends BEGIN, a circle is emptied, and foreign keys are checked as they were."""
    for checked in (0, 1):
        own = lab.another(AUTOSESSION_SQLITE_BEGIN="off" if begin == "recipe" else begin)

        @sa.event.listens_for(own.engine, "connect")
        def prepare(driver: Any, _: object, checked: int = checked) -> None:
            if begin == "recipe":
                driver.isolation_level = None
            driver.execute(f"PRAGMA foreign_keys = {checked}")

        @sa.event.listens_for(own.engine, "begin")
        def send_begin(connection: sa.Connection) -> None:
            if begin == "recipe":  # SQLAlchemy's documentation has it
                connection.exec_driver_sql("BEGIN")

        own.circle()
        with isolate(own.app, "truncate"):
            own.fill_circle()
        assert own.rows("SELECT * FROM hen") == own.rows("SELECT * FROM egg") == []
        with own.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == checked


@on_mariadb
def test_mariadb_has_its_variables_as_before(lab: Lab) -> None:
    """What a listener has set on a connection is still set on it afterwards."""
    names = ("lock_wait_timeout", "innodb_lock_wait_timeout", "foreign_key_checks")
    values = (77, 78, 0)

    @sa.event.listens_for(lab.engine, "connect")
    def prepare(driver: Any, _: object) -> None:
        pairs = (f"{name} = {value}" for name, value in zip(names, values, strict=True))
        with driver.cursor() as cursor:
            cursor.execute(f"SET {', '.join(pairs)}")

    Thing = lab.thing()
    with isolate(lab.app, "truncate"):
        lab.commit(Thing())
    with lab.engine.connect() as connection:
        asked = ", ".join(f"@@{name}" for name in names)
        assert tuple(connection.exec_driver_sql(f"SELECT {asked}").one()) == values


@on_postgresql
def test_postgresql_has_its_timeout_as_before(lab: Lab) -> None:
    """How long a connection waits for locks is what it was."""
    Thing = lab.thing()
    with isolate(lab.app, "truncate"):
        lab.commit(Thing())
    with lab.engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "0"


# Somebody else's locks

LOCKED = "database is locked|lock timeout|Lock wait timeout"


@contextmanager
def impatience(lab: Lab) -> Iterator[None]:
    """Wait for locks as short a time as the database can; 0 is for ever on PostgreSQL."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unchecked, "PATIENCE", 0.1 if lab.kind == "postgresql" else 0)
        yield


@pytest.mark.parametrize("strategy", ["truncate", "recreate"])
def test_somebody_elses_lock_is_an_error(lab: Lab, strategy: str) -> None:
    """A lock that another process holds makes the end fail, and the application works on."""
    if lab.kind == "sqlite":
        lab = lab.another(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 0.1}})
    Thing = lab.thing()
    use(lab, strategy)
    with (
        lab.database.engine.connect() as other,
        pytest.raises(Exception, match=LOCKED),
        impatience(lab),
        isolate(lab.app, strategy),
    ):
        other.exec_driver_sql("INSERT INTO thing (id) VALUES (99)")
    with isolate(lab.app, strategy):
        lab.commit(Thing(name="own"))
        assert lab.rows("SELECT name FROM thing") == [("own",)]
    assert lab.rows("SELECT * FROM thing") == []
    with lab.app.app_context():
        Thing(name="kept").save()
    assert lab.rows("SELECT name FROM thing") == [("kept",)]


@on_sqlite
@pytest.mark.parametrize("strategy", ["truncate", "recreate"])
def test_a_lock_on_one_bind_is_told_and_the_others_are_emptied(
    lab: Lab, strategy: str, tmp_path: Path
) -> None:
    """Each database that could not be put back is named, and nothing is left in the others."""
    binds = {key: f"sqlite:///{tmp_path}/{key}.db?timeout=0.1" for key in "abcd"}
    lab = lab.another(SQLALCHEMY_BINDS=binds)
    for key in binds:
        columns = {"__bind_key__": key, "id": sa.Column(sa.Integer, primary_key=True)}
        type(f"Thing{key}", (lab.db.Model,), {"__tablename__": "thing", **columns})
    seen = {key: sa.create_engine(uri, poolclass=sa.NullPool) for key, uri in binds.items()}
    with (
        seen["a"].connect() as first,
        seen["c"].connect() as second,
        pytest.raises(IsolationError) as caught,
        isolate(lab.app, strategy),
    ):
        for key, engine in engines_of(lab.app).items():
            if key is not None:
                with engine.begin() as connection:
                    connection.exec_driver_sql("INSERT INTO thing VALUES (1)")
        for connection in (first, second):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
    failed = r"could not be undone on sqlite:///\S+/(\w+).db\S*: .* database is locked"
    told = re.findall(failed, str(caught.value))
    assert told == ["a", "c"]
    rows = {}
    for key, engine in seen.items():
        with engine.connect() as connection:
            rows[key] = connection.exec_driver_sql("SELECT count(*) FROM thing").scalar()
    assert rows == {"a": 1, "b": 0, "c": 1, "d": 0}


@on_servers
@pytest.mark.parametrize("strategy", ["rollback", "truncate"])
def test_somebody_elses_lock_is_an_error_at_the_beginning(lab: Lab, strategy: str) -> None:
    """Where a table is locked as a whole, its rows cannot be counted, and nobody waits for ever."""
    Thing = lab.thing()
    use(lab, strategy)
    lab.circle()  # is to be made
    lock = {"postgresql": "LOCK TABLE thing", "mariadb": "LOCK TABLES thing WRITE"}
    with lab.database.engine.connect() as other:
        other.exec_driver_sql(lock[lab.kind])
        with impatience(lab), pytest.raises(Exception, match=LOCKED):
            use(lab, strategy)
    with isolate(lab.app, strategy):
        lab.commit(Thing(name="own"))
    assert lab.rows("SELECT * FROM thing") == []


@on_servers
def test_the_end_of_all_tests_does_not_wait_for_ever(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """At the end of all tests a lock of somebody else is an error in the log."""
    lab.thing()
    use(lab, "truncate")
    with lab.database.engine.connect() as other, impatience(lab):
        other.exec_driver_sql("INSERT INTO thing (id) VALUES (99)")
        schema.forget(drop=True)
    assert re.search(f"could not be dropped .*({LOCKED})", caplog.text)
    assert lab.tables == ["thing"]


# What a test leaves open


def place_of(comment: str) -> str:
    """The place of the line in this file that ends with a comment."""
    lines = Path(__file__).read_text().splitlines()
    return f"{__file__}:{next(at for at, line in enumerate(lines, 1) if line.endswith(comment))}"


def test_what_is_left_open_is_told(lab: Lab) -> None:
    """Connections and sessions that hold locks are named by file and line, and block nobody."""
    Thing = lab.thing()
    with pytest.raises(IsolationError) as caught, isolate(lab.app, "truncate"):
        given_back = lab.engine.connect()
        connection = lab.engine.connect()  # takes a connection
        connection.execute(sa.select(Thing.__table__)).all()
        given_back.close()
        session = Session(lab.engine)
        session.add(Thing(name="session"))
        session.flush()  # begins a session
    assert place_of("# takes a connection") in str(caught.value)
    assert place_of("# begins a session") in str(caught.value)
    assert str(caught.value).count(__file__) == 2
    assert lab.rows("SELECT * FROM thing") == []
    with isolate(lab.app, "truncate"):
        lab.commit(Thing(name="next"))
    connection.close()


def test_what_was_open_before_is_not_told(lab: Lab) -> None:
    """A connection that a wider fixture holds open is its own business, and can go on."""
    Thing = lab.thing()
    use(lab, "truncate")
    with lab.engine.connect() as connection:
        for _ in range(2):
            with isolate(lab.app, "truncate"):
                lab.commit(Thing(name="own"))
                assert connection.scalars(sa.select(Thing.name)).all() == ["own"]
                connection.rollback()


@on_sqlite
def test_in_memory(lab: Lab) -> None:
    """A database in memory is emptied, and survives that its one connection is left open."""
    lab = lab.another(SQLALCHEMY_DATABASE_URI="sqlite://")
    Thing = lab.thing()
    for _ in range(2):
        with (
            pytest.raises(IsolationError, match=re.escape(place_of("# in memory"))) as caught,
            isolate(lab.app, "truncate"),
        ):
            lab.commit(Thing(name="own"))
            with lab.app.app_context():
                assert [thing.id for thing in Thing.query] == [1]
            lab.engine.connect()  # in memory
            lab.engine.connect().close()
        assert str(caught.value).count(__file__) == 1
        with lab.engine.connect() as connection:
            assert connection.execute(sa.select(Thing.__table__)).all() == []


# Where it is not allowed


def test_a_refusal_is_not_lost(project: Project) -> None:
    """With an app that is made for the test, too, the test fails, whoever connects first."""
    execute = project.database.engine.begin
    with execute() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE toolkit_thing (id INTEGER PRIMARY KEY, name VARCHAR(50))"
        )
        connection.exec_driver_sql("INSERT INTO toolkit_thing VALUES (7, 'dear')")
    project.write(
        scope="function",
        test_it="""
        import pytest

        @pytest.fixture
        def posted(app, client):
            app.config.update(TESTING=False)
            assert client.post("/things/a").status_code == 500

        @pytest.mark.autosession("truncate")
        def test_truncate(posted):
            print("has begun")

        def test_rollback(client):
            assert client.get("/things").json == ["dear"]
        """,
    )
    result = project.run()
    assert result.parseoutcomes()["failed"] == result.parseoutcomes()["passed"] == 1
    result.stdout.fnmatch_lines("*'truncate' would remove the rows*'toolkit_thing'*")
    result.stdout.no_fnmatch_line("has begun")
    assert project.names == ["dear"]
    with execute() as connection:
        connection.exec_driver_sql("DROP TABLE toolkit_thing")


def test_a_second_app_in_a_test_that_has_written(project: Project) -> None:
    """The rows of the test itself are no reason to refuse an app that it makes later."""
    project.write(
        test_it="""
        import pytest
        from conftest import create_app

        @pytest.fixture
        def posted(client):
            client.post("/things/a")

        @pytest.fixture
        def other(posted):
            return create_app(name="other").test_client()

        @pytest.mark.autosession("truncate")
        def test_in_the_test(posted, names):
            second, third = (create_app(name=name).test_client() for name in ("second", "third"))
            assert second.get("/things").json == ["a"]
            second.post("/things/b")
            assert third.get("/things").json == names() == ["a", "b"]

        @pytest.mark.autosession("recreate")
        def test_in_a_fixture(other, names):
            other.post("/things/b")
            assert names() == ["a", "b"]

        def test_nothing_is_left(names):
            assert names() == []
        """
    )
    project.run().assert_outcomes(passed=3)
    assert project.names == []


def test_a_second_app_in_a_test_does_not_empty_what_the_first_does_not_know(
    project: Project,
) -> None:
    """Rows of a table that only the app knows that is made later were there before the test."""
    execute = project.database.engine.begin
    with execute() as connection:
        connection.exec_driver_sql("CREATE TABLE toolkit_dear (id INTEGER PRIMARY KEY)")
        connection.exec_driver_sql("INSERT INTO toolkit_dear VALUES (7)")
    project.write(
        test_it="""
        import pytest
        from conftest import AutoSession, Flask, SQLAlchemy, sa

        @pytest.mark.autosession("truncate")
        def test_it(app, client):
            client.post("/things/a")
            db = SQLAlchemy()

            class Dear(db.Model):
                __tablename__ = "toolkit_dear"
                id = sa.Column(sa.Integer, primary_key=True)

            other = Flask("other")
            other.config.update(app.config)
            auto = AutoSession(other, db=db)
            with auto.unit(other):
                Dear.query.all()
        """
    )
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines("*'truncate' would remove the rows*'toolkit_dear'*")
    assert project.database.rows("SELECT id FROM toolkit_dear") == [(7,)]
    assert project.names == []
    with execute() as connection:
        connection.exec_driver_sql("DROP TABLE toolkit_dear")


@pytest.mark.parametrize(
    ("method", "url", "outcomes"),
    [
        ("get", "/things", {"passed": 1}),
        ("post", "/things/wide", {"failed": 1}),
    ],
    ids=["reads", "writes"],
)
def test_a_wider_fixture_inside_of_a_test(
    project: Project, method: str, url: str, outcomes: dict[str, int]
) -> None:
    """A session's fixture may be set up inside of a test if it writes nothing; else it is told."""
    project.write(
        test_it=f"""
        import pytest

        @pytest.fixture(scope="session")
        def wide(app):
            assert app.test_client().{method}("{url}").status_code < 400

        @pytest.mark.autosession("truncate")
        def test_it(request, client):
            assert client.get("/things").json == []
            request.getfixturevalue("wide")
        """
    )
    project.run().assert_outcomes(**outcomes)
    assert project.names == []


@pytest.mark.parametrize("strategy", ["truncate", "recreate"])
def test_not_inside_of_a_transaction(lab: Lab, strategy: str) -> None:
    """Inside of an isolate() that rolls back it is refused, and that one holds."""
    Thing = lab.thing()
    with isolate(lab.app):
        lab.commit(Thing(name="outer"))
        with pytest.raises(IsolationError, match=f"'{strategy}'.*'rollback'.*class or module"):
            use(lab, strategy)
        with lab.app.app_context():
            assert [thing.name for thing in Thing.query] == ["outer"]
    assert lab.rows("SELECT * FROM thing") == []
