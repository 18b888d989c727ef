"""The application that the stream tests serve: server-sent events that write while they are sent.

Run as a module it is served by Werkzeug, on the listening socket whose number it is given.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import sqlalchemy.orm.session
from flask import Flask, Response, stream_with_context
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.world import Database, World

DATABASE = "AUTOSESSION_STREAMS_DATABASE"


class Planned(Exception):
    """Raised by a generator on purpose."""


class Events:
    """One method for each way in which a stream ends. Rows are named ``marker:part``."""

    def __init__(self, world: World) -> None:
        self.world = world

    def event(self, marker: str, number: int) -> str:
        self.world.Thing(name=f"{marker}:{number}").save()
        return f"data: {number}\n\n"

    def whole(self, marker: str) -> Iterator[str]:
        yield self.event(marker, 0)
        yield self.event(marker, 1)

    def endless(self, marker: str) -> Iterator[str]:
        """Say something now and then, or else no server sees that its client has gone."""
        yield self.event(marker, 0)
        yield self.event(marker, 1)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(0.01)
            yield ": still here\n\n"

    def raises(self, marker: str) -> Iterator[str]:
        yield self.event(marker, 0)
        yield self.event(marker, 1)
        raise Planned

    def refused(self, marker: str) -> Iterator[str]:
        """Leave something behind that cannot be committed."""
        yield self.event(marker, 0)
        yield self.event(marker, 1)
        self.world.db.session.add(self.world.Thing(name=f"{marker}:view"))


def create_app() -> Flask:
    """Make the application for the database that the environment names."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    world = World(Database("postgresql", os.environ[DATABASE]))
    events = Events(world)

    @world.app.get("/<kind>/<marker>")
    def stream(kind: str, marker: str) -> Response:
        world.Thing(name=f"{marker}:view").save()
        generate = getattr(events, kind)
        return Response(stream_with_context(generate(marker)), mimetype="text/event-stream")

    @world.app.get("/state")
    def state() -> dict[str, Any]:
        pool: Any = world.db.engine.pool
        sessions = list(sqlalchemy.orm.session._sessions.values())
        return {
            "checked_out": pool.checkedout(),
            "sessions": sum(session.in_transaction() for session in sessions),
        }

    return world.app


if __name__ == "__main__":
    WSGIRequestHandler.protocol_version = "HTTP/1.1"  # which sends chunks, as gunicorn does
    make_server("127.0.0.1", 0, create_app(), threaded=True, fd=int(sys.argv[1])).serve_forever()
