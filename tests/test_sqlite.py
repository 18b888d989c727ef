"""Real transactions on SQLite: what is rolled back is gone, and nobody waits without need."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_autosession import ActiveRecord, AutoSession, SharedConnectionError, engines


class Shop:
    """An application on one SQLite database, with what is sent to the driver on record."""

    def __init__(self, uri: str, **config: Any) -> None:
        class Base(ActiveRecord, DeclarativeBase):
            pass

        self.db = SQLAlchemy(model_class=Base)
        self.auto = AutoSession(db=self.db)
        self.app = Flask("shop")
        self.app.config.update(SQLALCHEMY_DATABASE_URI=uri, **config)
        self.auto.init_app(self.app)

        class Item(self.db.Model):  # type: ignore[name-defined,misc]
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str | None] = mapped_column(unique=True)

        self.Item = Item
        self.sent: list[str] = []
        with self.app.app_context():
            self.db.create_all()
            engine = self.db.engine
            # Those that the pool makes from now on, and the one that it has already.
            sa.event.listen(engine, "connect", self._listen)
            with engine.connect() as connection:
                self._listen(connection.connection.driver_connection, None)
        self.view: Any = None
        self.app.add_url_rule("/", view_func=lambda: self.view())

    def _listen(self, connection: Any, _: Any) -> None:
        connection.set_trace_callback(self._record)

    def _record(self, statement: str) -> None:
        if statement not in ("COMMIT", "ROLLBACK"):
            self.sent.append(" ".join(statement.split()[:2]))

    def serve(self, view: Any) -> int:
        self.view = view
        return self.app.test_client().get("/").status_code

    def names(self) -> list[str]:
        with self.app.app_context():
            return [item.name for item in self.Item.query.order_by(self.Item.id)]

    def close(self) -> None:
        with self.app.app_context():
            self.db.engine.dispose()


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'shop.db'}"


@pytest.fixture
def shop(uri: str) -> Iterator[Shop]:
    shop = Shop(uri)
    yield shop
    shop.close()


def test_begin_is_sent_before_the_first_statement_that_writes(shop: Shop) -> None:
    """Reads begin no transaction; the first write begins one that can go on to the end."""

    def view() -> str:
        shop.Item.query.count()
        shop.Item(name="a").save()
        shop.Item(name="b").save()
        return "done"

    assert shop.serve(view) == 200
    assert shop.sent == ["SELECT count(*)", "BEGIN IMMEDIATE", "INSERT INTO", "INSERT INTO"]


def test_begin_is_sent_before_a_savepoint(shop: Shop) -> None:
    """A savepoint that comes first is part of the transaction, not one of its own."""

    def view() -> Any:
        with shop.auto.savepoint():
            shop.Item(name="gone").save()
        return "no", 400

    assert shop.serve(view) == 400
    assert shop.sent[:2] == ["BEGIN IMMEDIATE", "SAVEPOINT sa_savepoint_1"]
    assert shop.names() == []


def test_begin_is_sent_before_a_savepoint_that_is_text(shop: Shop) -> None:
    """So it is where a savepoint is set by a statement of the application's own."""

    def view() -> Any:
        connection = shop.db.session.connection()
        connection.exec_driver_sql("savepoint mine")
        shop.Item(name="gone").save()
        connection.exec_driver_sql("release savepoint mine")
        return "no", 400

    assert shop.serve(view) == 400
    assert shop.sent[:2] == ["BEGIN IMMEDIATE", "savepoint mine"]
    assert shop.names() == []


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE other (x)",
        "  -- a comment\n INSERT INTO item (name) VALUES ('gone')",
        "/* another */ REPLACE INTO item (name) VALUES ('gone')",
        "WITH one AS (SELECT 'gone' AS n) INSERT INTO item (name) SELECT n FROM one",
        "DROP TABLE item",
    ],
)
def test_text_and_ddl_are_rolled_back_too(shop: Shop, statement: str) -> None:
    """Whatever writes is undone with its unit, tables included."""
    with shop.app.app_context():
        before = sa.inspect(shop.db.engine).get_table_names()

    def view() -> Any:
        shop.db.session.execute(sa.text(statement))
        return "no", 400

    assert shop.serve(view) == 400
    assert shop.names() == []
    with shop.app.app_context():
        assert sa.inspect(shop.db.engine).get_table_names() == before


@pytest.mark.parametrize(
    ("mode", "sent"),
    [
        ("deferred", ["BEGIN DEFERRED", "SELECT count(*)", "INSERT INTO"]),
        ("immediate", ["BEGIN IMMEDIATE", "SELECT count(*)", "INSERT INTO"]),
        ("off", ["SELECT count(*)", "BEGIN", "INSERT INTO"]),  # which is the driver's own
    ],
)
def test_the_mode_says_when_to_begin(uri: str, mode: str, sent: list[str]) -> None:
    """AUTOSESSION_SQLITE_BEGIN chooses BEGIN with every transaction, or none at all."""
    shop = Shop(uri, AUTOSESSION_SQLITE_BEGIN=mode)

    def view() -> str:
        shop.Item.query.count()
        shop.Item(name="kept").save()
        return "done"

    # The engine is followed from the first session on, so that the first one is not told apart.
    shop.names()
    shop.sent.clear()
    assert shop.serve(view) == 200
    assert shop.sent == sent
    assert shop.names() == ["kept"]
    shop.close()


def test_the_very_first_transaction_begins_too(uri: str) -> None:
    """A mode that begins every transaction leaves none out."""
    shop = Shop(uri, AUTOSESSION_SQLITE_BEGIN="immediate")
    assert shop.serve(lambda: str(shop.Item.query.count())) == 200
    assert shop.sent == ["BEGIN IMMEDIATE", "SELECT count(*)"]
    shop.close()


def test_the_users_own_begin_is_not_sent_twice(uri: str) -> None:
    """SQLAlchemy's recipe for SQLite, where an application has it, goes on working."""
    shop = Shop(uri)
    with shop.app.app_context():
        engine = shop.db.engine

    @sa.event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    engine.dispose()

    def view() -> Any:
        with shop.auto.savepoint():
            shop.Item(name="gone").save()
        return "no", 400

    assert shop.serve(view) == 400
    assert shop.names() == []
    assert [statement for statement in shop.sent if "BEGIN" in statement] == ["BEGIN", "BEGIN"]
    shop.close()


def test_the_users_connect_args_are_kept(uri: str) -> None:
    """connect_args and the driver's isolation level stay what the application chose."""
    options = {"connect_args": {"timeout": 7, "isolation_level": "EXCLUSIVE"}}
    shop = Shop(uri, SQLALCHEMY_ENGINE_OPTIONS=options)
    seen: list[Any] = []

    def view() -> str:
        shop.Item(name="kept").save()
        connection: Any = shop.db.session.connection().connection.driver_connection
        seen.append(connection.isolation_level)
        seen.append(connection.execute("PRAGMA busy_timeout").fetchone()[0])
        return "done"

    assert shop.serve(view) == 200
    assert seen == ["EXCLUSIVE", 7000]
    assert options == {"connect_args": {"timeout": 7, "isolation_level": "EXCLUSIVE"}}
    shop.close()


def test_pragma_and_vacuum_stay_outside_of_a_transaction(shop: Shop) -> None:
    """What SQLite refuses inside of a transaction can still be sent."""

    def view() -> str:
        shop.db.session.execute(sa.text("PRAGMA foreign_keys = ON"))
        on = shop.db.session.execute(sa.text("PRAGMA foreign_keys")).scalar_one()
        shop.db.session.execute(sa.text("VACUUM"))
        return str(on)

    assert shop.serve(view) == 200
    assert not any("BEGIN" in statement for statement in shop.sent)


# One connection for all contexts: in memory


@pytest.fixture
def memory() -> Iterator[Shop]:
    shop = Shop("sqlite://")
    yield shop
    shop.close()


def test_row_34_requests_in_memory_keep_the_promise(memory: Shop) -> None:
    """Commit, rollback and savepoints hold in memory as in a file."""

    def good() -> str:
        memory.Item(name="kept").save()
        return "done"

    def bad() -> Any:
        with memory.auto.savepoint():
            memory.Item(name="gone").save()
        return "no", 400

    assert [memory.serve(good), memory.serve(bad)] == [200, 400]
    assert memory.names() == ["kept"]


@pytest.mark.parametrize(("status", "durable"), [(200, ["outer"]), (400, [])])
def test_row_34_a_reader_ends_without_ending_the_writer(
    memory: Shop, status: int, durable: list[str]
) -> None:
    """A context that only read neither commits nor rolls back what another has written."""

    def view() -> Any:
        memory.Item(name="outer").save()
        with memory.auto.unit():
            memory.Item.query.count()
        with memory.app.app_context():
            memory.Item.query.count()
            memory.db.session.rollback()
        return "", status

    assert memory.serve(view) == status
    assert memory.names() == durable


@pytest.mark.parametrize(("status", "durable"), [(200, ["outer"]), (400, [])])
def test_row_34_a_second_writer_gets_a_clear_error(
    memory: Shop, status: int, durable: list[str]
) -> None:
    """Its own unit fails; the first writer's goes on, and is committed or rolled back alone."""

    def view() -> Any:
        memory.Item(name="outer").save()
        with pytest.raises(SharedConnectionError, match="in-memory"), memory.auto.unit():
            memory.Item(name="inner").save()
        with pytest.raises(SharedConnectionError), memory.auto.unit(), memory.auto.savepoint():
            memory.Item.query.count()
        return "", status

    assert memory.serve(view) == status
    assert memory.names() == durable


def test_row_34_a_failure_swallowed_while_committing_with_others_on_the_connection(
    memory: Shop,
) -> None:
    """Another context that has taken the connection since does not hide what a listener hides."""

    @sa.event.listens_for(memory.db.session, "before_commit")
    def before_commit(session: Any) -> None:
        with suppress(DBAPIError):
            session.execute(sa.text("SELECT x FROM nowhere"))

    def view() -> str:
        memory.Item(name="gone").save()
        with memory.app.app_context():
            memory.Item.query.count()
            memory.db.session.rollback()
        return "done"

    assert memory.serve(view) == 500
    sa.event.remove(memory.db.session, "before_commit", before_commit)
    assert memory.names() == []


def test_row_34_writers_one_after_the_other_are_fine(memory: Shop) -> None:
    """Once the first has ended, the next may write."""

    def view() -> str:
        with memory.auto.unit():
            memory.Item(name="inner").save()
        memory.Item(name="outer").save()
        return "done"

    assert memory.serve(view) == 200
    assert memory.names() == ["inner", "outer"]


def test_row_34_two_first_requests_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that comes while another one prepares the engine waits until that is done."""
    shop = Shop(f"sqlite:///{tmp_path / 'shop.db'}")
    waited: list[bool] = []
    attach = engines.sqlite.attach

    def second() -> None:
        with suppress(ZeroDivisionError), shop.auto.unit(shop.app):
            with shop.auto.savepoint():
                shop.Item(name="gone").save()
            raise ZeroDivisionError

    def slow(*args: Any) -> Any:
        thread.start()
        thread.join(0.3)
        waited.append(thread.is_alive())
        return attach(*args)

    thread = threading.Thread(target=second)
    monkeypatch.setattr(engines.sqlite, "attach", slow)
    with shop.auto.unit(shop.app):
        shop.Item.query.count()
    thread.join(30)
    assert waited == [True]
    assert shop.names() == []


def test_row_34_threads_never_mix_their_transactions(memory: Shop) -> None:
    """Of two writers at once one is refused, and what it was refused is not there."""
    barrier = threading.Barrier(2)
    told: list[str] = []

    def write(name: str) -> None:
        try:
            with memory.auto.unit(memory.app):
                barrier.wait(10)
                memory.Item(name=name).save()
                barrier.wait(10)
        except SharedConnectionError:
            barrier.abort()
        except threading.BrokenBarrierError:
            pass
        else:
            told.append(name)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert memory.names() == told
    assert len(told) < 2


def test_two_sqlite_binds_each_get_real_transactions(tmp_path: Path) -> None:
    """A bind is followed like the default database."""
    db = SQLAlchemy()
    auto = AutoSession(db=db)
    app = Flask("binds")
    app.config.update(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'one.db'}",
        SQLALCHEMY_BINDS={"two": f"sqlite:///{tmp_path / 'two.db'}"},
    )
    auto.init_app(app)

    class One(db.Model):  # type: ignore[name-defined,misc]
        id = sa.Column(sa.Integer, primary_key=True)

    class Two(db.Model):  # type: ignore[name-defined,misc]
        __bind_key__ = "two"
        id = sa.Column(sa.Integer, primary_key=True)

    with app.app_context():
        db.create_all()

    @app.get("/<int:status>")
    def view(status: int) -> Any:
        with auto.savepoint():
            One().save()
            Two().save()
        return "", status

    client = app.test_client()
    for status in (400, 200):
        client.get(f"/{status}")
    with app.app_context():
        assert (One.query.count(), Two.query.count()) == (1, 1)
        db.session.rollback()
        for engine in db.engines.values():
            engine.dispose()
