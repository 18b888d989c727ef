"""Pyramid and SQLAlchemy, with pyramid_tm and zope.sqlalchemy, and with commits by hand.

The first is set up as Pyramid's own cookiecutter does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
import zope.sqlalchemy
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.contenders import Contender
from benchmarks.contenders.sqlalchemy_common import begin_really, engine_options, fill, make_item

View = Callable[[Request], Response]


def make(uri: str) -> Contender:
    """Make the application that leaves the commit to pyramid_tm."""
    engine, factory, item_class = _make_engine(uri)
    settings = {
        "tm.manager_hook": "pyramid_tm.explicit_manager",
        "tm.commit_veto": "pyramid_tm.default_commit_veto",
    }

    def dbsession(request: Request) -> Session:
        session = factory(info={"request": request})
        zope.sqlalchemy.register(session, transaction_manager=request.tm)
        return session

    def insert(request: Request) -> Response:
        request.dbsession.add(item_class(name="a"))
        return Response(status=201)

    def insert_id(request: Request) -> Response:
        item = item_class(name="a")
        request.dbsession.add(item)
        request.dbsession.flush()
        return Response(json_body={"id": item.id}, status=201)

    def conflict(request: Request) -> Response:
        request.dbsession.add(item_class(name="a"))
        request.dbsession.flush()
        return Response(status=409)

    with Configurator(settings=settings) as config:
        config.include("pyramid_tm")
        config.add_request_method(dbsession, reify=True)
        _add_views(config, [*_reads(item_class), insert, insert_id, conflict])
    with factory() as session:
        count = fill(session, item_class)
    return Contender(config.make_wsgi_app(), count, engine.dispose)


def make_by_hand(uri: str) -> Contender:
    """Make the application that commits, or rolls back, where it writes."""
    engine, factory, item_class = _make_engine(uri)

    def dbsession(request: Request) -> Session:
        session = factory()
        request.add_finished_callback(lambda _: session.close())
        return session

    def insert(request: Request) -> Response:
        request.dbsession.add(item_class(name="a"))
        request.dbsession.commit()
        return Response(status=201)

    def insert_id(request: Request) -> Response:
        item = item_class(name="a")
        request.dbsession.add(item)
        request.dbsession.commit()
        return Response(json_body={"id": item.id}, status=201)

    def conflict(request: Request) -> Response:
        request.dbsession.add(item_class(name="a"))
        request.dbsession.flush()
        request.dbsession.rollback()
        return Response(status=409)

    with Configurator() as config:
        config.add_request_method(dbsession, reify=True)
        _add_views(config, [*_reads(item_class), insert, insert_id, conflict])
    with factory() as session:
        count = fill(session, item_class)
    return Contender(config.make_wsgi_app(), count, engine.dispose)


def _make_engine(uri: str) -> tuple[sa.Engine, sessionmaker[Session], Any]:
    engine = sa.create_engine(uri, **engine_options(uri))
    begin_really(engine)
    return engine, sessionmaker(engine), make_item()


def _add_views(config: Configurator, views: list[View]) -> None:
    for view in views:
        config.add_route(view.__name__, f"/{view.__name__}")
        config.add_view(view, route_name=view.__name__)


def _reads(item_class: Any) -> list[View]:
    def ok(request: Request) -> Response:
        return Response()

    def read(request: Request) -> Response:
        return Response(request.dbsession.get_one(item_class, 1).name)

    def many(request: Request) -> Response:
        items = request.dbsession.scalars(sa.select(item_class).limit(1000)).all()
        return Response(str(len(items)))

    def held(request: Request) -> Response:
        request.items = request.dbsession.scalars(sa.select(item_class).limit(1000)).all()
        return Response(str(len(request.items)))

    return [ok, read, many, held]
