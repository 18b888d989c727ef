"""What the contenders that stand on Flask-SQLAlchemy have in common."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from benchmarks.contenders import Contender
from benchmarks.workloads import ROWS


def make_model(db: SQLAlchemy) -> Any:
    """Make the model that all the requests are about."""

    class Item(db.Model):  # type: ignore[name-defined,misc]
        __tablename__ = "item"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50), nullable=False)

    return Item


def finish(app: Flask, db: SQLAlchemy, item_class: Any, *, begin: bool) -> Contender:
    """Make the tables, and the rows that are there from the beginning.

    :param begin: Whether to give SQLite real transactions, in the way of SQLAlchemy's manual.
    """
    with app.app_context():
        engine = db.engine
        if begin and engine.dialect.name == "sqlite":
            begin_really(engine)
        db.drop_all()
        db.create_all()
        db.session.add_all([item_class(name=f"item {number}") for number in range(ROWS)])
        db.session.commit()

    def count() -> int:
        with engine.connect() as connection:
            return (
                connection.scalar(sa.select(sa.func.count()).select_from(item_class.__table__)) or 0
            )

    return Contender(app.wsgi_app, count, engine.dispose)


def begin_really(engine: sa.Engine) -> None:
    """Have SQLite begin a transaction whenever SQLAlchemy does, as ours does where it writes."""

    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")
