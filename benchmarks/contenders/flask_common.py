"""What the contenders that stand on Flask-SQLAlchemy have in common."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from benchmarks.contenders import Contender
from benchmarks.contenders.sqlalchemy_common import begin_really, fill


def make_model(db: SQLAlchemy) -> Any:
    """Make the model that all the requests are about."""

    class Item(db.Model):  # type: ignore[name-defined,misc]
        __tablename__ = "item"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50), nullable=False)

    return Item


def finish(app: Flask, db: SQLAlchemy, item_class: Any, *, begin: bool) -> Contender:
    """Make the tables, and the rows that are there from the beginning.

    :param begin: Whether to give SQLite real transactions. Ours brings its own.
    """
    with app.app_context():
        if begin:
            begin_really(db.engine)
        return Contender(app.wsgi_app, fill(db.session, item_class), db.engine.dispose)
