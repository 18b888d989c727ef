"""Ours, with everything that the contract promises switched on."""

from __future__ import annotations

from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from benchmarks.contenders import Contender
from benchmarks.contenders.flask_by_hand import add_reads
from benchmarks.contenders.flask_common import finish, make_model
from flask_autosession import AutoSession


def make(uri: str) -> Contender:
    """Make the application."""
    app, db = Flask("ours"), SQLAlchemy()
    app.config["SQLALCHEMY_DATABASE_URI"] = uri
    AutoSession(app, db=db)
    item_class = make_model(db)
    add_reads(app, db, item_class)

    @app.post("/insert")
    def insert() -> Any:
        item_class(name="a").save()
        return "", 201

    @app.post("/insert_id")
    def insert_id() -> Any:
        return {"id": item_class(name="a").save().id}, 201

    @app.post("/conflict")
    def conflict() -> Any:
        item_class(name="a").save()
        return "", 409

    return finish(app, db, item_class, begin=False)
