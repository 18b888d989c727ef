"""Connections of a test, which share one: what each may do, and what is refused or noticed."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

from flask_autosession.testing import IsolationError, isolate

from ..world import Database, World, metadata, thing

on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
on_mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)
not_mariadb = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


def serve(world: World, view: Callable[[], Any]) -> Any:
    """Serve one request with a view of its own, and return the response."""
    if "view" not in world.app.view_functions:
        world.app.add_url_rule("/", "view", methods=["POST"])
    world.app.view_functions["view"] = view
    return world.app.test_client().post("/")


def insert(name: str) -> sa.Insert:
    return sa.insert(thing).values(name=name)


def names(world: World) -> list[str]:
    """The names of all things that a connection of the application sees now."""
    with engine_of(world).connect() as connection:
        return list(connection.scalars(sa.select(thing.c.name).order_by(thing.c.id)))


def engine_of(world: World) -> sa.Engine:
    with world.app.app_context():
        return world.db.engine


@pytest.fixture
def isolated(world: World) -> Iterator[World]:
    """A world in the block of isolate(); whatever the test has done in it must not remain."""
    with isolate(world.app):
        yield world
    assert world.database.names == []


@pytest.fixture
def engine(isolated: World) -> sa.Engine:
    """The engine of an isolated world."""
    return engine_of(isolated)


# Connections


def test_connections_commit_and_roll_back(isolated: World, engine: sa.Engine) -> None:
    """engine.connect() keeps what is committed, and drops the rest when it is closed."""
    with engine.connect() as connection:
        connection.execute(insert("committed"))
        connection.commit()
        connection.execute(insert("rolled back"))
        connection.rollback()
        connection.execute(insert("again"))
        connection.commit()
        connection.execute(insert("closed"))
    assert names(isolated) == ["committed", "again"]


def test_engine_begin(isolated: World, engine: sa.Engine) -> None:
    """engine.begin() commits when its block is left cleanly, and rolls back when it is not."""
    with engine.begin() as connection:
        connection.execute(insert("committed"))
    with pytest.raises(ZeroDivisionError), engine.begin() as connection:
        connection.execute(insert("failed"))
        raise ZeroDivisionError
    assert names(isolated) == ["committed"]


def test_savepoints_of_a_connection(isolated: World, engine: sa.Engine) -> None:
    """begin_nested() of a connection is released or rolled back inside of its transaction."""
    with engine.begin() as connection:
        with connection.begin_nested():
            connection.execute(insert("released"))
        with pytest.raises(IntegrityError), connection.begin_nested():
            connection.execute(insert("undone"))
            connection.execute(insert("released"))
        outer = connection.begin_nested()
        connection.execute(insert("outer"))
        with connection.begin_nested():
            connection.execute(insert("inner"))
        outer.rollback()
        connection.execute(insert("last"))
    with engine.connect() as connection, connection.begin_nested():
        connection.execute(insert("released, then dropped"))
    assert names(isolated) == ["released", "last"]


def test_savepoints_that_are_sent_as_text(isolated: World, engine: sa.Engine) -> None:
    """SAVEPOINT, ROLLBACK TO and RELEASE work as statements too."""
    with engine.begin() as connection:
        connection.exec_driver_sql("SAVEPOINT mine")
        connection.execute(insert("undone"))
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT mine")
        connection.execute(insert("kept"))
        connection.exec_driver_sql("RELEASE SAVEPOINT mine")
    assert names(isolated) == ["kept"]


def test_exec_driver_sql(isolated: World, engine: sa.Engine) -> None:
    """Statements in the driver's own words are committed and rolled back like any other."""
    with engine.connect() as connection:
        connection.exec_driver_sql("INSERT INTO thing (name) VALUES ('committed')")
        connection.commit()
        connection.exec_driver_sql("INSERT INTO thing (name) VALUES ('rolled back')")
        connection.rollback()
    assert names(isolated) == ["committed"]


def test_raw_connections(isolated: World, engine: sa.Engine) -> None:
    """engine.raw_connection() gives cursors, commit() and rollback() of a connection of its own."""
    raw = engine.raw_connection()
    cursor = raw.cursor()
    cursor.execute("INSERT INTO thing (name) VALUES ('committed')")
    raw.commit()
    cursor = raw.cursor()
    cursor.execute("INSERT INTO thing (name) VALUES ('rolled back')")
    raw.rollback()
    cursor = raw.cursor()
    cursor.execute("INSERT INTO thing (name) VALUES ('closed')")
    raw.close()
    assert names(isolated) == ["committed"]


def test_what_a_raw_connection_tells_of_itself(isolated: World, engine: sa.Engine) -> None:
    """A raw connection has its own info, the driver's attributes, and can be closed twice."""
    raw, other = engine.raw_connection(), engine.raw_connection()
    raw.info["mine"] = 1
    assert (raw.record_info, other.info) == ({"mine": 1}, {})
    assert raw.driver_connection is raw.dbapi_connection is other.driver_connection
    assert raw.cursor.__self__ is raw
    for name in ("cursor", "commit", "rollback", "close"):
        assert callable(getattr(raw.dbapi_connection, name))
    assert (raw.is_valid, raw.is_detached) == (True, False)
    raw.detach()
    raw.close()
    raw.close()
    other.invalidate()
    assert (raw.is_valid, other.is_valid) == (False, False)
    assert names(isolated) == []


def test_what_the_pool_tells_of_itself(isolated: World, engine: sa.Engine) -> None:
    """Code that looks at the engine's pool finds what it finds in production."""
    with engine.connect():
        assert engine.pool.size() == 5  # type: ignore[attr-defined]
        assert engine.pool.checkedout() == 1  # type: ignore[attr-defined]
    assert engine.pool.recreate() is engine.pool
    assert getattr(engine.pool, "_no_such_thing", None) is None
    assert "share one" in engine.pool.status()


def test_attributes_of_the_driver_are_there(isolated: World, engine: sa.Engine) -> None:
    """What only the driver's connection knows can be asked of a connection of a test."""
    known = {"sqlite": "total_changes", "postgresql": "info", "mysql": "server_version"}
    with engine.connect() as connection:
        ask = known[engine.dialect.name]
        assert getattr(connection.connection, ask) is not None
        with pytest.raises(AttributeError):
            _ = connection.connection.no_such_thing


def test_a_connection_of_an_earlier_block_is_refused(world: World) -> None:
    """What was left open and kept all the same cannot reach into the next test."""
    with pytest.raises(IsolationError, match="left behind"), isolate(world.app):
        kept = engine_of(world).raw_connection()
        kept.cursor().execute("INSERT INTO thing (name) VALUES ('early')")
    with isolate(world.app):
        with pytest.raises(IsolationError, match="used after the test that had taken it"):
            kept.cursor()
        kept.rollback()
        assert names(world) == []


def test_a_block_leaves_nothing_to_the_garbage_collector(world: World) -> None:
    """Connections and what stands behind them are gone as soon as a test is over."""
    gc.collect()
    gc.disable()
    # Earlier tests may have left something that only now is let go.
    before = set(map(id, gc.get_objects()))
    try:
        with isolate(world.app), world.app.app_context():
            world.db.session.execute(insert("gone"))
            world.db.session.commit()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [type(one) for one in gc.garbage if id(one) not in before]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not [one for one in left if one.__module__.startswith("flask_autosession.testing")]


def test_two_connections_take_turns(isolated: World, engine: sa.Engine) -> None:
    """Connections that write by turns and both commit keep all of it."""
    with engine.connect() as one, engine.connect() as two:
        one.execute(insert("one"))
        two.execute(insert("two"))
        one.execute(insert("one again"))
        two.commit()
        one.commit()
    assert names(isolated) == ["one", "two", "one again"]


def test_the_later_connection_rolls_back(isolated: World, engine: sa.Engine) -> None:
    """The one that came last can take back its work while the first one goes on."""
    with engine.connect() as one, engine.connect() as two:
        one.execute(insert("one"))
        two.execute(insert("two"))
        two.rollback()
        one.execute(insert("one again"))
        two.execute(insert("two again"))
        two.rollback()
        one.commit()
    assert names(isolated) == ["one", "one again"]


def test_a_reader_does_not_take_back_what_others_commit(isolated: World, engine: sa.Engine) -> None:
    """A connection that only reads ends without harm to what was committed meanwhile."""
    with engine.connect() as reader:
        assert reader.scalars(sa.select(thing.c.name)).all() == []
        with engine.begin() as writer:
            writer.execute(insert("kept"))
        assert reader.scalars(sa.select(thing.c.name)).all() == ["kept"]
        reader.rollback()
    assert names(isolated) == ["kept"]


def test_a_connection_after_dispose(isolated: World, engine: sa.Engine) -> None:
    """engine.dispose() in a test keeps its work; the pool is emptied when the test is over."""
    with engine.begin() as connection:
        connection.execute(insert("before"))
    engine.dispose()
    with engine.begin() as connection:
        connection.execute(insert("behind"))
    assert names(isolated) == ["before", "behind"]


def test_dispose_in_a_test_leaves_no_connection_open(database: Database) -> None:
    """After a test that has disposed of its engine, no connection to its database is open."""
    world = World(database)
    engine, opened = engine_of(world), list[Any]()
    sa.event.listen(engine, "connect", lambda driver, _: opened.append(driver))
    with isolate(world.app):
        names(world)
        engine.dispose()
        names(world)
    assert len(opened) == 1
    with pytest.raises(Exception, match=r"(?i)closed|\(0, ''\)"):
        opened[0].cursor().execute("SELECT 1")
    world.close()


def test_a_second_engine_of_the_users_own_is_not_shared(isolated: World) -> None:
    """An engine that the application's db does not know works by itself, and sees nothing."""
    serve(isolated, lambda: str(isolated.Thing(name="inside").save().id))
    own = sa.create_engine(isolated.database.uri, poolclass=sa.pool.NullPool)
    with own.connect() as connection:
        assert connection.scalars(sa.select(thing.c.name)).all() == []


def test_events_of_the_engine_go_on(isolated: World, engine: sa.Engine) -> None:
    """Listeners of the application for its engine's begin, commit and rollback are called."""
    names(isolated)
    history: list[str] = []
    for name in ("begin", "commit", "rollback"):
        sa.event.listen(engine, name, lambda _, name=name: history.append(name))
    with engine.begin() as connection:
        connection.execute(insert("a"))
    with engine.connect() as connection:
        connection.execute(insert("b"))
    assert history == ["begin", "commit", "begin", "rollback"]


def test_listeners_of_the_pool_go_on(isolated: World, engine: sa.Engine) -> None:
    """Listeners for checkout and checkin are called for each connection of a test."""
    names(isolated)
    history: list[str] = []
    for name in ("checkout", "checkin"):
        sa.event.listen(engine, name, lambda *_, name=name: history.append(name))
    with engine.connect(), engine.connect():
        assert history == ["checkout", "checkout"]
    assert history == ["checkout", "checkout", "checkin", "checkin"]


def test_a_listener_that_refuses_a_connection(isolated: World, engine: sa.Engine) -> None:
    """A connection that a listener for checkout refuses is not left behind."""

    def refuse(*_: object) -> None:
        raise ZeroDivisionError

    for _ in range(2):  # the first connection of the test, and one of those behind it
        sa.event.listen(engine, "checkout", refuse)
        with pytest.raises(ZeroDivisionError):
            engine.connect()
        sa.event.remove(engine, "checkout", refuse)
        assert names(isolated) == []


def test_rows_that_are_fetched_one_by_one(isolated: World, engine: sa.Engine) -> None:
    """A result that is streamed goes on while another connection speaks."""
    with engine.begin() as connection:
        for name in "abc":
            connection.execute(insert(name))
    with engine.connect() as reader:
        streaming = reader.execution_options(stream_results=True, max_row_buffer=1)
        rows = streaming.scalars(sa.select(thing.c.name).order_by(thing.c.id))
        assert next(rows) == "a"
        with engine.begin() as writer:
            writer.execute(sa.update(thing).values(name="read").where(thing.c.name == "a"))
        assert names(isolated) == ["read", "b", "c"]
        assert list(rows) == ["b", "c"]


# Errors


def test_an_error_on_one_connection_leaves_the_others_alone(
    isolated: World, engine: sa.Engine
) -> None:
    """A statement that fails, which on PostgreSQL spoils a transaction, spoils but its own."""
    with engine.connect() as one, engine.connect() as two:
        one.execute(insert("one"))
        two.execute(insert("two"))
        with pytest.raises(IntegrityError):
            two.execute(insert("one"))
        two.rollback()
        one.execute(insert("one again"))
        two.execute(insert("three"))
        one.commit()
        two.commit()
    assert names(isolated) == ["one", "one again", "three"]


def test_errors_one_after_another(isolated: World, engine: sa.Engine) -> None:
    """Both of two connections can fail, and each starts over behind its own rollback."""
    with engine.connect() as one, engine.connect() as two:
        for connection in (one, two):
            with pytest.raises(DBAPIError):
                connection.exec_driver_sql("SELECT no_such_column FROM thing")
        for connection in (one, two):
            connection.rollback()
            connection.execute(insert(f"{connection is one}"))
            connection.commit()
    assert names(isolated) == ["True", "False"]


@on_postgresql
def test_what_is_committed_beside_an_aborted_transaction_stays(
    isolated: World, engine: sa.Engine
) -> None:
    """Another connection can commit while one is aborted, which then rolls back but its own."""
    with engine.connect() as one, engine.connect() as two:
        one.execute(insert("failed"))
        with pytest.raises(DBAPIError):
            one.exec_driver_sql("SELECT no_such_column")
        two.execute(insert("audit"))
        two.commit()
        one.rollback()
        one.execute(insert("again"))
        one.commit()
    assert names(isolated) == ["audit", "again"]


@on_postgresql
def test_ends_beside_an_aborted_transaction(isolated: World, engine: sa.Engine) -> None:
    """A commit or a savepoint that comes first behind another connection's error is unharmed."""
    with engine.connect() as failing, engine.connect() as other:

        def fail() -> None:
            with pytest.raises(DBAPIError):
                failing.exec_driver_sql("SELECT no_such_column")

        other.execute(insert("committed"))
        fail()
        other.commit()
        failing.rollback()
        other.execute(insert("nested"))
        fail()
        with other.begin_nested():
            other.execute(insert("inside"))
        failing.rollback()
        other.commit()
    assert names(isolated) == ["committed", "nested", "inside"]


@on_postgresql
def test_commit_of_an_aborted_transaction_keeps_nothing(isolated: World, engine: sa.Engine) -> None:
    """PostgreSQL answers COMMIT behind an error with a rollback, in a test as well."""
    with engine.connect() as one, engine.connect() as two:
        one.execute(insert("one"))
        with pytest.raises(DBAPIError):
            one.exec_driver_sql("SELECT no_such_column")
        with pytest.raises(DBAPIError, match="aborted"):
            one.exec_driver_sql("SELECT 1")
        one.commit()
        two.execute(insert("two"))
        with pytest.raises(DBAPIError):
            two.exec_driver_sql("SELECT no_such_column")
        assert one.scalars(sa.select(thing.c.name)).all() == []  # while the other one is aborted
        one.commit()
        two.commit()
        one.execute(insert("three"))
        one.commit()
    assert names(isolated) == ["three"]


def test_a_request_beside_a_context_whose_statement_has_failed(
    isolated: World, engine: sa.Engine
) -> None:
    """A test whose own statement has failed can still look at the database by a connection."""
    with isolated.app.app_context():
        isolated.Thing(name="kept").save()
        isolated.db.session.commit()
        with pytest.raises(DBAPIError):
            isolated.db.session.execute(sa.text("SELECT no_such_column FROM thing"))
        assert names(isolated) == ["kept"]
        isolated.db.session.rollback()
        assert [one.name for one in isolated.Thing.query] == ["kept"]


def test_a_failing_raw_cursor(isolated: World, engine: sa.Engine) -> None:
    """An error of a raw cursor, which no event tells of, is over with its connection."""
    raw = engine.raw_connection()
    cursor = raw.cursor()
    with pytest.raises(Exception, match="no_such_column"):
        cursor.execute("SELECT no_such_column FROM thing")
    raw.close()
    with engine.begin() as connection:
        connection.execute(insert("kept"))
    assert names(isolated) == ["kept"]


@on_postgresql
def test_a_connection_goes_on_behind_a_failed_commit(isolated: World, engine: sa.Engine) -> None:
    """A COMMIT that a deferred constraint refuses has rolled back, and the connection goes on."""
    with engine.connect() as connection:
        connection.execute(sa.insert(thing).values(id=1, name="orphan", parent=2))
        with pytest.raises(IntegrityError):
            connection.commit()
        connection.rollback()
        connection.execute(insert("kept"))
        connection.commit()
    assert names(isolated) == ["kept"]


@on_postgresql
def test_constraints_that_can_be_deferred_and_are_not(world: World) -> None:
    """A constraint that is checked at once unless a transaction defers it stays like that."""
    with isolate(world.app), engine_of(world).connect() as connection:
        connection.exec_driver_sql("DROP TABLE thing")
        connection.exec_driver_sql("CREATE TABLE made (id integer UNIQUE DEFERRABLE)")
        connection.exec_driver_sql("INSERT INTO made VALUES (1)")
        connection.commit()
        connection.exec_driver_sql("SET CONSTRAINTS ALL DEFERRED")
        connection.exec_driver_sql("INSERT INTO made VALUES (1)")
        with pytest.raises(IntegrityError):
            connection.commit()
        connection.rollback()
        with pytest.raises(IntegrityError):
            connection.exec_driver_sql("INSERT INTO made VALUES (1)")
    assert sa.inspect(world.database.engine).get_table_names() == ["thing"]


# Conflicts


def test_a_rollback_that_takes_back_a_commit_of_another_connection_is_told(world: World) -> None:
    """What one connection cannot do as several would is told at the end, with both places."""
    here = r"test_sharing\.py:\d+"
    with (
        pytest.raises(
            IsolationError,
            match=rf"The rollback of a connection that was taken at \S+{here} took back what a"
            rf" connection that was taken at \S+{here} had done in the meantime: .*'truncate'",
        ),
        isolate(world.app),
        engine_of(world).connect() as one,
    ):
        one.execute(insert("one"))
        with engine_of(world).begin() as two:
            two.execute(insert("two"))
        one.rollback()
        assert names(world) == []
    assert world.database.names == []


def test_a_conflict_that_nobody_has_looked_at_is_not_told(isolated: World) -> None:
    """A rollback at the test's very end harms nobody, and nothing is said of it."""
    with isolated.app.app_context():
        isolated.Thing(name="mine").save()
        with engine_of(isolated).begin() as connection:
            connection.execute(insert("other"))
        isolated.db.session.rollback()


def test_a_conflict_does_not_hide_the_tests_own_failure(world: World) -> None:
    """A test that fails with a conflict, perhaps because of it, shows both."""
    with pytest.raises(IsolationError, match="in the meantime") as told, isolate(world.app):
        with engine_of(world).connect() as one:
            one.execute(insert("one"))
            with engine_of(world).begin() as two:
                two.execute(insert("two"))
        names(world)
        raise ZeroDivisionError
    assert isinstance(told.value.__context__, ZeroDivisionError)
    assert world.database.names == []


def test_a_conflict_is_told_in_the_block_that_has_it(world: World) -> None:
    """Of blocks in each other, the one in which it has happened tells, and none after it."""
    with isolate(world.app):
        names(world)
        with pytest.raises(IsolationError, match="in the meantime"), isolate(world.app):
            with engine_of(world).connect() as one:
                one.execute(insert("one"))
                with engine_of(world).begin() as two:
                    two.execute(insert("two"))
            names(world)
        with isolate(world.app):
            assert names(world) == []


def test_a_unit_inside_of_a_view_that_has_written_before(world: World) -> None:
    """What auto.unit() has committed behind the view's own work goes with it, and that is told."""

    def view() -> Any:
        world.Thing(name="first").save()
        with world.auto.unit():
            world.Thing(name="audit").save()
        return "no", 400

    with pytest.raises(IsolationError, match="in the meantime"), isolate(world.app):
        assert serve(world, view).status_code == 400
        assert names(world) == []
    assert world.database.names == []


# Threads and processes


REFUSED = r"Another thread or process used the database at .* real ones"


def test_threads_are_refused(world: World) -> None:
    """A thread of the test's own cannot use the test's connection; it is told, and the test too."""
    engine = engine_of(world)

    def attempts(taken: sa.Connection, other: sa.Connection) -> Iterator[Callable[[], object]]:
        yield lambda: names(world)
        yield engine.raw_connection
        yield lambda: taken.execute(insert("thread"))
        yield lambda: taken.exec_driver_sql("SELECT 1")
        yield taken.begin_nested
        yield taken.commit
        yield other.rollback

    with pytest.raises(IsolationError, match=REFUSED), isolate(world.app):
        with engine.connect() as taken, engine.connect() as other, ThreadPoolExecutor(1) as thread:
            taken.execute(insert("mine"))
            other.begin()
            for attempt in attempts(taken, other):
                with pytest.raises(Exception, match=REFUSED) as told:
                    thread.submit(attempt).result()
                error = told.value
                # SQLAlchemy wraps what is raised while it makes a cursor.
                assert isinstance(getattr(error, "orig", error), IsolationError)
        assert names(world) == []
    assert world.database.names == []


def test_a_thread_that_comes_first_is_refused(world: World) -> None:
    """A thread does not get the connection because the test has not used it yet."""
    with pytest.raises(IsolationError, match=REFUSED), isolate(world.app):
        with ThreadPoolExecutor(1) as thread, pytest.raises(IsolationError, match=REFUSED):
            thread.submit(names, world).result()
        assert names(world) == []


def test_a_thread_that_closes_a_connection_harms_nobody(world: World) -> None:
    """What a thread closes leaves the test's work alone, and is for the test to close."""
    left = r"The test has left behind: a connection that was taken at \S+test_sharing\.py"
    with pytest.raises(IsolationError, match=left), isolate(world.app):
        taken = engine_of(world).connect()
        taken.execute(insert("mine"))
        with ThreadPoolExecutor(1) as thread:
            thread.submit(taken.connection.close).result()
        assert names(world) == ["mine"]
    taken.invalidate()
    assert world.database.names == []


def test_a_thread_that_the_test_waits_for(isolated: World, engine: sa.Engine) -> None:
    """What runs in a copy of the test's context, as asyncio.to_thread() does, belongs to it."""
    names(isolated)
    copy = contextvars.copy_context()
    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(copy.run, lambda: names(isolated)).result() == []


def test_a_view_in_a_thread_is_refused(world: World) -> None:
    """A request that a live server answers in a thread fails, and the test is told of it."""
    view = world.app.test_client().post

    def save(name: str) -> Callable[[], str]:
        return lambda: str(world.Thing(name=name).save().id)

    with pytest.raises(IsolationError, match=REFUSED), isolate(world.app):
        serve(world, save("mine"))
        world.app.view_functions["view"] = save("thread")
        answers: list[int] = []
        server = threading.Thread(target=lambda: answers.append(view("/").status_code))
        server.start()
        server.join()
        assert (answers, names(world)) == ([500], ["mine"])
    assert world.database.names == []


def test_forked_processes_are_refused(isolated: World, engine: sa.Engine) -> None:
    """A process that the test has forked is refused, and the test goes on unharmed."""
    with engine.begin() as connection:
        connection.execute(insert("mine"))
        with warnings.catch_warnings(action="ignore"):
            child = os.fork()  # with threads of earlier tests around, Python 3.12 warns
        if not child:
            code = 1
            try:
                names(isolated)
            except IsolationError:
                with contextlib.suppress(IsolationError):
                    connection.close()  # as a block does that the error leaves
                code = 42
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert names(isolated) == ["mine"]


# Statements that would end the transaction


@not_mariadb
def test_ddl_is_undone(database: Database, world: World) -> None:
    """Tables that a test makes, changes and drops are as they were, where the database can."""
    with isolate(world.app), world.app.app_context():
        world.db.session.execute(sa.text("CREATE TABLE made (id integer)"))
        world.db.session.execute(sa.text("ALTER TABLE thing ADD COLUMN extra integer"))
        world.db.session.commit()
        with world.db.engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO made VALUES (1)")
        world.db.session.execute(sa.text("INSERT INTO thing (name, extra) VALUES ('a', 1)"))
        world.db.session.commit()
        with world.db.engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE thing")
    assert sa.inspect(database.engine).get_table_names() == ["thing"]
    assert database.rows("SELECT * FROM thing") == []


@on_mariadb
@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE made (id integer)", "/* a */ -- b\n truncate thing", "DROP TABLE thing"],
)
def test_ddl_on_mariadb_is_refused(database: Database, world: World, statement: str) -> None:
    """MariaDB would commit the test's work with such a statement, which is therefore not sent."""
    with isolate(world.app), world.app.app_context():
        world.Thing(name="mine").save()
        with pytest.raises(
            IsolationError, match=r"commits implicitly on MariaDB .*strategy 'recreate'"
        ):
            world.db.session.execute(sa.text(statement))
        world.db.session.rollback()
        world.Thing(name="more").save()
        world.db.session.commit()
        assert names(world) == ["more"]
    assert database.names == []


@on_mariadb
def test_temporary_tables_on_mariadb(isolated: World, engine: sa.Engine) -> None:
    """Temporary tables commit nothing, and can be made and dropped."""
    with engine.begin() as connection:
        connection.execute(insert("mine"))
        connection.exec_driver_sql("CREATE TEMPORARY TABLE scratch (id integer)")
        connection.exec_driver_sql("INSERT INTO scratch VALUES (1)")
        connection.exec_driver_sql("DROP TEMPORARY TABLE scratch")
    assert names(isolated) == ["mine"]


@pytest.mark.parametrize(
    "statement", ["COMMIT", "rollback work", "-- done\nCOMMIT;", "  End", "/* no */ ABORT"]
)
def test_transaction_control_as_text_is_refused(isolated: World, statement: str) -> None:
    """COMMIT and ROLLBACK that are sent as statements are refused before they do harm."""
    with isolated.app.app_context():
        isolated.Thing(name="mine").save()
        with pytest.raises(IsolationError, match="was sent as a statement, and would end"):
            isolated.db.session.execute(sa.text(statement))
        isolated.db.session.rollback()
    assert names(isolated) == []


def test_beginning_as_text_does_nothing(isolated: World, engine: sa.Engine) -> None:
    """BEGIN that is sent as a statement has nothing to do, because a transaction goes on."""
    for statement in ("BEGIN", "start transaction"):
        with engine.begin() as connection:
            connection.exec_driver_sql(statement)
            connection.execute(insert(statement))
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        connection.execute(insert("dropped"))
    assert names(isolated) == ["BEGIN", "start transaction"]


def test_an_empty_statement_is_the_drivers_business(isolated: World, engine: sa.Engine) -> None:
    """A statement without a word in it is passed on, whatever the driver makes of it."""
    with engine.connect() as connection:
        if engine.dialect.name == "mysql":
            with pytest.raises(DBAPIError):
                connection.exec_driver_sql(" ")
        else:
            connection.exec_driver_sql(" ")


def test_isolation_levels_are_refused(isolated: World, engine: sa.Engine) -> None:
    """The transaction has begun, so its isolation level cannot be changed, by no way there is."""
    refused = r'The isolation level cannot become SERIALIZABLE .*"truncate"'
    with isolated.app.app_context():
        isolated.Thing(name="mine").save()
        with pytest.raises(IsolationError, match=refused), engine.connect() as connection:
            connection.execution_options(isolation_level="SERIALIZABLE")
        isolated.db.session.commit()
    assert names(isolated) == ["mine"]
    with pytest.raises(IsolationError, match=refused), isolate(isolated.app):
        engine.execution_options(isolation_level="SERIALIZABLE").connect()


@pytest.mark.parametrize("how", ["isolation_level", "execution_options"])
def test_an_isolation_level_of_the_engines_own(database: Database, how: str) -> None:
    """The level that an engine is made with is that of the test's transaction."""
    options: Any = {"isolation_level": "SERIALIZABLE"}
    if how == "execution_options":
        options = {"execution_options": options}
    world = World(database, SQLALCHEMY_ENGINE_OPTIONS=options)
    with isolate(world.app):
        with engine_of(world).begin() as connection:
            connection.execute(insert("kept"))
            assert connection.get_isolation_level() == "SERIALIZABLE"
        assert serve(world, lambda: str(world.Thing(name="view").save().id)).status_code == 200
        assert names(world) == ["kept", "view"]
    assert database.names == []
    world.close()


@on_postgresql
def test_two_phase_transactions_are_refused(database: Database) -> None:
    """A transaction in two phases cannot stand inside of another; outside it works as ever."""
    world = World(database)
    engine = engine_of(world)
    refused = r"two-phase .* strategy 'truncate'"
    with isolate(world.app), pytest.raises(IsolationError, match=refused), engine.connect() as one:
        one.begin_twophase()
    with engine.connect() as connection:
        connection.begin_twophase().rollback()
    world.close()


def test_isolation_levels_are_free_again_afterwards(world: World) -> None:
    """What is refused in a test works on the same engine outside of it."""
    engine = engine_of(world)
    with isolate(world.app):
        names(world)
    with engine.connect() as connection:
        level = connection.execution_options(isolation_level="SERIALIZABLE")
        assert level.get_isolation_level() == "SERIALIZABLE"
        with connection.begin_nested():
            connection.execute(insert("kept"))
        connection.commit()
    assert world.database.names == ["kept"]


# The transaction is over before its time

OVER = r"has committed or rolled back the transaction that the test runs in"


def _end_at_once(database: Database, connection: sa.Connection) -> None:
    """Commit behind the back of SQLAlchemy, in a way that the statement itself shows."""
    connection.execute(insert("durable"))
    if database.kind == "sqlite":
        connection.connection.driver_connection.executescript("SELECT 1")
        connection.exec_driver_sql("SELECT 2")
    elif database.kind == "mariadb":
        connection.exec_driver_sql("SET autocommit = 1")
    else:
        connection.exec_driver_sql("SELECT 1; COMMIT")


def test_a_statement_that_ends_the_transaction_is_told_at_once(world: World) -> None:
    """A commit that no text shows beforehand is noticed behind the statement, and named."""
    with (
        pytest.raises(IsolationError, match=OVER),
        isolate(world.app),
        engine_of(world).connect() as connection,
    ):
        _end_at_once(world.database, connection)
    assert world.database.names == ["durable"]
    with isolate(world.app):
        assert names(world) == ["durable"]


@on_mariadb
def test_a_connection_that_was_set_to_autocommit_is_not_used_again(world: World) -> None:
    """What a test has set on its connection, and so ended its transaction, is over with it."""
    with (
        pytest.raises(IsolationError, match=OVER),
        isolate(world.app),
        engine_of(world).begin() as connection,
    ):
        connection.execute(insert("durable"))
        connection.exec_driver_sql("SET autocommit = 1")
    with isolate(world.app):
        assert serve(world, lambda: str(world.Thing(name="new").save().id)).status_code == 200
        assert names(world) == ["durable", "new"]
    assert world.database.names == ["durable"]


def test_a_lost_transaction_is_told_again_at_the_end(world: World) -> None:
    """That the transaction was over too early is told even if a view has swallowed it."""

    def view() -> str:
        connection = world.db.session.connection()
        try:
            _end_at_once(world.database, connection)
        except IsolationError:
            return "swallowed"
        return "not noticed"

    with pytest.raises(IsolationError, match=OVER), isolate(world.app):
        assert serve(world, view).text == "swallowed"


def test_a_commit_of_the_drivers_connection_is_noticed(world: World) -> None:
    """commit() of the driver's own connection ends the test's transaction, and that is told."""
    with (
        pytest.raises(IsolationError, match=OVER),
        isolate(world.app),
        engine_of(world).connect() as connection,
    ):
        connection.execute(insert("durable"))
        connection.connection.driver_connection.commit()
        connection.execute(insert("more"))
        connection.commit()
    assert world.database.names[:1] == ["durable"]


def test_a_commit_of_the_drivers_connection_at_the_very_end_is_noticed(world: World) -> None:
    """It is told as well if nothing comes behind it."""
    with (
        pytest.raises(IsolationError, match=OVER),
        isolate(world.app),
        engine_of(world).connect() as connection,
    ):
        connection.execute(insert("durable"))
        connection.connection.driver_connection.commit()
    assert world.database.names == ["durable"]


def test_a_commit_of_the_drivers_connection_between_transactions_is_noticed(world: World) -> None:
    """It is told as well if every transaction of the test was over by then."""
    with pytest.raises(IsolationError, match=OVER), isolate(world.app):
        with engine_of(world).begin() as connection:
            connection.execute(insert("durable"))
        raw = engine_of(world).raw_connection()
        raw.driver_connection.commit()
        raw.close()
    assert world.database.names == ["durable"]


def test_a_connection_that_is_lost(world: World) -> None:
    """Tests whose connection is closed under them say so; the next one gets another."""
    with pytest.raises(IsolationError) as told, isolate(world.app):
        names(world)
        with (
            pytest.raises(IsolationError, match="could not be rolled back"),
            isolate(world.app),
        ):
            raw = engine_of(world).raw_connection()
            raw.driver_connection.close()
            with pytest.raises(Exception, match=r"(?i)closed|\(0, ''\)"):
                raw.cursor().execute("SELECT 1")
            with contextlib.suppress(Exception):
                raw.close()
    assert "This Connection is closed" not in str(told.value)  # by SQLAlchemy, which is no news
    with isolate(world.app):
        assert names(world) == []


def test_a_raw_cursor_that_sends_commit_is_noticed(world: World) -> None:
    """COMMIT through a cursor of the driver, which nothing sees beforehand, is told at the end."""
    with (
        pytest.raises(IsolationError, match=OVER),
        isolate(world.app),
    ):
        raw = engine_of(world).raw_connection()
        cursor = raw.cursor()
        cursor.execute("INSERT INTO thing (name) VALUES ('durable')")
        cursor.execute("COMMIT")
        raw.close()
        names(world)
    assert world.database.names == ["durable"]


# SQLite's settings


@on_sqlite
@pytest.mark.parametrize("mode", ["on_write", "deferred", "immediate", "off"])
def test_the_modes_of_autosession_sqlite_begin(database: Database, mode: str) -> None:
    """However units begin on SQLite, what they commit and roll back is isolated."""
    world = World(database, AUTOSESSION_SQLITE_BEGIN=mode)

    def view(name: str, status: int) -> Any:
        with world.auto.savepoint():
            world.Thing(name=name).save()
        return "", status

    for _ in range(2):
        with isolate(world.app), world.app.app_context():
            world.Thing(name="mine").save()
            assert serve(world, lambda: view("kept", 200)).status_code == 200
            assert serve(world, lambda: view("failed", 400)).status_code == 400
            assert names(world) == ["mine", "kept"]
    assert database.names == []
    assert serve(world, lambda: view("real", 200)).status_code == 200
    assert database.names == ["real"]
    world.close()


@on_sqlite
@pytest.mark.parametrize("mode", ["on_write", "off"])
def test_an_engine_with_the_recipe_for_pysqlite(database: Database, mode: str) -> None:
    """Listeners that send BEGIN themselves, as SQLAlchemy's documentation has it, are no harm."""
    world = World(database, AUTOSESSION_SQLITE_BEGIN=mode)
    engine = engine_of(world)

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    for _ in range(2):
        with isolate(world.app):
            with engine.begin() as connection, connection.begin_nested():
                connection.execute(insert("kept"))
            with engine.connect() as connection, connection.begin_nested():
                connection.execute(insert("dropped"))
            assert serve(world, lambda: str(world.Thing(name="view").save().id)).status_code == 200
            assert names(world) == ["kept", "view"]
    assert database.names == []
    world.close()


@on_sqlite
def test_listeners_that_set_pragmas(database: Database) -> None:
    """PRAGMA settings of a listener for new connections hold in the test."""
    world = World(database)
    engine = engine_of(world)

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = OFF")

    with isolate(world.app), engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 0
        connection.execute(sa.insert(thing).values(name="orphan", parent=7))
        with pytest.raises(IntegrityError, match="FOREIGN KEY"):
            connection.commit()
        connection.close()
        assert names(world) == []
    world.close()


def test_sqlite_in_memory_with_several_connections() -> None:
    """Connections to a database in memory, which are one at all times, are apart in a test."""
    world = World(SimpleNamespace(uri="sqlite://"))  # type: ignore[arg-type]
    engine = engine_of(world)
    metadata.create_all(engine)
    with isolate(world.app):
        with engine.connect() as one, engine.connect() as two:
            one.execute(insert("one"))
            two.execute(insert("two"))
            two.rollback()
            one.commit()
        assert names(world) == ["one"]
    assert names(world) == []
    world.close()
