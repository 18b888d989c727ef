"""The applications that are served: the same views, with our units of work and with commits."""

from __future__ import annotations

import os
import time
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from benchmarks.contenders.flask_common import finish, make_model
from benchmarks.load.holding import Holding
from flask_autosession import AutoSession

OURS, BY_HAND = "ours", "by hand"
WHO = (BY_HAND, OURS)
SUBJECT, DATABASE, POOL = "AUTOSESSION_LOAD_WHO", "AUTOSESSION_LOAD_URI", "AUTOSESSION_LOAD_POOL"
WAIT = 0.01
"""How long, in seconds, a view waits for something else than the database."""
PAGE = """<table>{% for number in range(1000) %}
<tr><td>{{ number }}</td><td>{{ item.name }}</td></tr>{% endfor %}
</table>"""
VIEWS = {
    "read": "one row is read",
    "insert": "one row is inserted",
    "page": "one row is inserted, a page of 1,000 lines about it is rendered",
    "wait": "one row is inserted, then something else is waited for, 10 ms",
    "wait_after": "the same, but ours says auto.commit() before it waits",
}


def create_app() -> Flask:
    """Make the application that the environment names, on the database that it names."""
    app, db = Flask("load"), SQLAlchemy()
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ[DATABASE]
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
        "pool_size": int(os.environ[POOL]),
        "max_overflow": 0,
    }
    ours = os.environ[SUBJECT] == OURS
    auto = AutoSession(app, db=db) if ours else None
    if not ours:
        db.init_app(app)
    item_class = make_model(db)
    add_reading(app, db, item_class)
    if auto is not None:
        add_ours(app, auto, item_class)
    else:
        add_by_hand(app, db, item_class)
    finish(app, db, item_class, begin=not ours)
    with app.app_context():
        holding = Holding(db.engine, app.wsgi_app)
    app.wsgi_app = holding  # type: ignore[method-assign]
    app.add_url_rule("/held", view_func=holding.take)
    return app


def add_reading(app: Flask, db: SQLAlchemy, item_class: Any) -> None:
    """Add the view that is the same for both."""

    @app.get("/read")
    def read() -> str:
        name: str = db.session.get_one(item_class, 1).name
        return name


def add_by_hand(app: Flask, db: SQLAlchemy, item_class: Any) -> None:
    """Add the views that commit as soon as they have written."""
    page_of = app.jinja_env.from_string(PAGE)

    def save() -> Any:
        item = item_class(name="a")
        db.session.add(item)
        db.session.commit()
        return item

    @app.post("/insert")
    def insert() -> Any:
        save()
        return "", 201

    @app.post("/page")
    def page() -> Any:
        return page_of.render(item=save()), 201

    @app.post("/wait")
    @app.post("/wait_after", endpoint="wait_after")
    def wait() -> Any:
        save()
        time.sleep(WAIT)
        return "", 201


def add_ours(app: Flask, auto: AutoSession, item_class: Any) -> None:
    """Add the views that save, and leave the rest to the end of the request."""
    page_of = app.jinja_env.from_string(PAGE)

    @app.post("/insert")
    def insert() -> Any:
        item_class(name="a").save()
        return "", 201

    @app.post("/page")
    def page() -> Any:
        return page_of.render(item=item_class(name="a").save()), 201

    @app.post("/wait")
    def wait() -> Any:
        item_class(name="a").save()
        time.sleep(WAIT)
        return "", 201

    @app.post("/wait_after")
    def wait_after() -> Any:
        item_class(name="a").save()
        auto.commit()
        time.sleep(WAIT)
        return "", 201
