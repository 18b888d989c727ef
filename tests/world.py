"""A small application for the tests, and a second connection that sees what is durable."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase

from flask_autosession import ActiveRecord, AutoSession

metadata = sa.MetaData()
thing = sa.Table(
    "thing",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(50), nullable=False, unique=True),
    sa.Column("parent", sa.Integer),
    # Checked by COMMIT. MariaDB knows no deferred constraints, and takes the words for an error.
    sa.ForeignKeyConstraint(["parent"], ["thing.id"], deferrable=True, initially="DEFERRED").ddl_if(
        ("sqlite", "postgresql")
    ),
    mysql_engine="InnoDB",
)


class Database:
    """One database, looked at from outside of the application."""

    def __init__(self, kind: str, uri: str) -> None:
        self.kind = kind
        self.uri = uri
        self.engine = sa.create_engine(uri, poolclass=sa.pool.NullPool)

    def create(self) -> None:
        metadata.create_all(self.engine)

    def drop(self) -> None:
        metadata.drop_all(self.engine)
        self.engine.dispose()

    def empty(self) -> None:
        """Remove all rows; a test that left a lock on them fails here instead of waiting for it."""
        statements = {
            "postgresql": ("SET LOCAL lock_timeout = '5s'", "DELETE FROM thing"),
            # Not DELETE: until it is purged, a deleted name locks the gap around it when it comes
            # again, and tests that write from two sides would wait for each other.
            "mariadb": ("SET lock_wait_timeout = 5", "TRUNCATE thing"),
        }
        with self.engine.begin() as connection:
            for statement in statements[self.kind]:
                connection.exec_driver_sql(statement)

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(statement))]

    @property
    def names(self) -> list[str]:
        """The names of all things that are durable, in the order of their ids."""
        return [name for (name,) in self.rows("SELECT name FROM thing ORDER BY id")]

    def insert(self, name: str) -> None:
        """Commit a row, as another process would."""
        with self.engine.begin() as connection:
            connection.execute(sa.insert(thing).values(name=name))


class World:
    """An application in the style of its users, on one database."""

    def __init__(self, database: Database, **config: Any) -> None:
        class Base(ActiveRecord, DeclarativeBase):
            pass

        self.database = database
        self.db = SQLAlchemy(model_class=Base)
        self.auto = AutoSession(db=self.db)
        self.auto.init_app(self.make_app(**config))

        class Thing(self.db.Model):  # type: ignore[name-defined,misc]
            __table__ = thing

        self.Thing = Thing

    def make_app(self, **config: Any) -> Flask:
        self.app = Flask("world")
        self.app.config.update(SQLALCHEMY_DATABASE_URI=self.database.uri, TESTING=False)
        self.app.config.update(config)
        return self.app

    def close(self) -> None:
        with self.app.app_context():
            for engine in self.db.engines.values():
                checked_out = getattr(engine.pool, "checkedout", lambda: 0)()
                engine.dispose()
                assert not checked_out, "the test left a connection checked out"
