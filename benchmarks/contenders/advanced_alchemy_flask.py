"""Flask and Advanced Alchemy, in its ``autocommit`` mode and in its ``manual`` mode."""

from __future__ import annotations

from typing import Any, Literal

import sqlalchemy as sa
from advanced_alchemy.extensions.flask import AdvancedAlchemy, EngineConfig, SQLAlchemySyncConfig
from flask import Flask, g

from benchmarks.contenders import Contender
from benchmarks.contenders.sqlalchemy_common import begin_really, engine_options, fill, make_item


def make(uri: str) -> Contender:
    """Make the application that leaves the commit to the extension."""
    app, alchemy = _make_app(uri, "autocommit")
    item_class = make_item()
    _add_reads(app, alchemy, item_class)
    session_of = alchemy.get_sync_session

    @app.post("/insert")
    def insert() -> Any:
        session_of().add(item_class(name="a"))
        return "", 201

    @app.post("/insert_id")
    def insert_id() -> Any:
        item, session = item_class(name="a"), session_of()
        session.add(item)
        session.flush()
        return {"id": item.id}, 201

    @app.post("/conflict")
    def conflict() -> Any:
        session = session_of()
        session.add(item_class(name="a"))
        session.flush()
        return "", 409

    return _finish(app, alchemy, item_class)


def make_by_hand(uri: str) -> Contender:
    """Make the application that commits, or rolls back, where it writes."""
    app, alchemy = _make_app(uri, "manual")
    item_class = make_item()
    _add_reads(app, alchemy, item_class)
    session_of = alchemy.get_sync_session

    @app.post("/insert")
    def insert() -> Any:
        session = session_of()
        session.add(item_class(name="a"))
        session.commit()
        return "", 201

    @app.post("/insert_id")
    def insert_id() -> Any:
        item, session = item_class(name="a"), session_of()
        session.add(item)
        session.commit()
        return {"id": item.id}, 201

    @app.post("/conflict")
    def conflict() -> Any:
        session = session_of()
        session.add(item_class(name="a"))
        session.flush()
        session.rollback()
        return "", 409

    return _finish(app, alchemy, item_class)


def _make_app(uri: str, mode: Literal["manual", "autocommit"]) -> tuple[Flask, AdvancedAlchemy]:
    options = EngineConfig(**engine_options(uri))
    config = SQLAlchemySyncConfig(connection_string=uri, commit_mode=mode, engine_config=options)
    app = Flask(f"advanced_alchemy_{mode}")
    return app, AdvancedAlchemy(config, app)


def _add_reads(app: Flask, alchemy: AdvancedAlchemy, item_class: Any) -> None:
    session_of = alchemy.get_sync_session

    @app.get("/ok")
    def ok() -> str:
        return ""

    @app.get("/read")
    def read() -> str:
        name: str = session_of().get_one(item_class, 1).name
        return name

    @app.get("/many")
    def many() -> str:
        return str(len(session_of().scalars(sa.select(item_class).limit(1000)).all()))

    @app.get("/held")
    def held() -> str:
        g.items = session_of().scalars(sa.select(item_class).limit(1000)).all()
        return str(len(g.items))


def _finish(app: Flask, alchemy: AdvancedAlchemy, item_class: Any) -> Contender:
    engine = alchemy.config[0].get_engine()
    assert isinstance(engine, sa.Engine)
    begin_really(engine)
    with app.app_context():
        count = fill(alchemy.get_sync_session(), item_class)
    return Contender(app.wsgi_app, count, engine.dispose)
