"""What the contenders that stand on SQLAlchemy have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session

from benchmarks.workloads import ROWS


def make_item() -> Any:
    """Make the model that all the requests are about, for those who have no base of their own."""

    class Base(DeclarativeBase):
        pass

    class Item(Base):
        __tablename__ = "item"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50), nullable=False)

    return Item


def engine_options(uri: str) -> dict[str, Any]:
    """Return what keeps a database in memory alive between requests, as Flask-SQLAlchemy does."""
    return {"poolclass": sa.StaticPool} if uri.startswith("sqlite") else {}


def fill(session: Session | scoped_session[Any], item_class: Any) -> Callable[[], int]:
    """Make the table and the rows that are there from the beginning; return what counts them.

    The rows are made as objects, and not by an INSERT alone: Python adapts its bytecode to what it
    has run, and an application that reads has written before.
    """
    engine, table = session.get_bind(item_class), item_class.__table__
    assert isinstance(engine, sa.Engine)
    table.create(engine)
    session.add_all([item_class(name=f"item {number}") for number in range(ROWS)])
    session.commit()

    def count() -> int:
        with engine.connect() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0

    return count


def begin_really(engine: sa.Engine) -> None:
    """Have SQLite begin a transaction whenever SQLAlchemy does, in the way of its manual.

    Without this the driver begins one only where it sees an INSERT, and some forms would be
    measured with a transaction and others without. It changes nothing on other databases.
    """
    if engine.dialect.name != "sqlite":
        return

    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")
