"""Flask and Flask-SQLAlchemy, with the commits written by hand: what all else is held against."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from flask import Flask, g
from flask_sqlalchemy import SQLAlchemy

from benchmarks.contenders import Contender
from benchmarks.contenders.flask_common import finish, make_model


def make(uri: str) -> Contender:
    """Make the application."""
    app, db = Flask("by_hand"), SQLAlchemy()
    app.config["SQLALCHEMY_DATABASE_URI"] = uri
    db.init_app(app)
    item_class = make_model(db)
    add_views(app, db, item_class)
    return finish(app, db, item_class, begin=True)


def add_views(app: Flask, db: SQLAlchemy, item_class: Any) -> None:
    """Add the views that commit, or roll back, where they write."""
    add_reads(app, db, item_class)

    @app.post("/insert")
    def insert() -> Any:
        db.session.add(item_class(name="a"))
        db.session.commit()
        return "", 201

    @app.post("/insert_id")
    def insert_id() -> Any:
        item = item_class(name="a")
        db.session.add(item)
        db.session.commit()
        return {"id": item.id}, 201

    @app.post("/conflict")
    def conflict() -> Any:
        db.session.add(item_class(name="a"))
        db.session.flush()
        db.session.rollback()
        return "", 409


def add_reads(app: Flask, db: SQLAlchemy, item_class: Any) -> None:
    """Add the views that only read, which are the same for all that stand on Flask-SQLAlchemy."""

    @app.get("/ok")
    def ok() -> str:
        return ""

    @app.get("/read")
    def read() -> str:
        name: str = db.session.get_one(item_class, 1).name
        return name

    @app.get("/many")
    def many() -> str:
        return str(len(db.session.scalars(sa.select(item_class).limit(1000)).all()))

    @app.get("/held")
    def held() -> str:
        g.items = db.session.scalars(sa.select(item_class).limit(1000)).all()
        return str(len(g.items))
