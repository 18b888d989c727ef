"""Flask and Flask-SQLAlchemy, with the commit in an ``after_request`` function."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response
from flask_sqlalchemy import SQLAlchemy

from benchmarks.contenders import Contender
from benchmarks.contenders.flask_by_hand import add_reads
from benchmarks.contenders.flask_common import finish, make_model


def make(uri: str) -> Contender:
    """Make the application."""
    app, db = Flask("naive"), SQLAlchemy()
    app.config["SQLALCHEMY_DATABASE_URI"] = uri
    db.init_app(app)
    item_class = make_model(db)
    add_reads(app, db, item_class)

    @app.after_request
    def commit(response: Response) -> Response:
        if response.status_code < 400:
            db.session.commit()
        else:
            db.session.rollback()
        return response

    @app.post("/insert")
    def insert() -> Any:
        db.session.add(item_class(name="a"))
        return "", 201

    @app.post("/insert_id")
    def insert_id() -> Any:
        item = item_class(name="a")
        db.session.add(item)
        db.session.flush()
        return {"id": item.id}, 201

    @app.post("/conflict")
    def conflict() -> Any:
        db.session.add(item_class(name="a"))
        db.session.flush()
        return "", 409

    return finish(app, db, item_class, begin=True)
