"""A small shop with a JSON API: the application factory.

Nothing in this package commits, rolls back or closes a session.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Flask
from werkzeug.exceptions import HTTPException

from flask_autosession.celery import celery_init_app

from . import catalogue, commands, orders
from .extensions import auto


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Make the application.

    :param config: What takes precedence over the defaults and the ``FLASK_`` variables of the
        environment, in tests for example.
    """
    app = Flask(__name__)
    app.config.from_mapping(
        SQLALCHEMY_DATABASE_URI="sqlite:///shop.db",  # in the instance folder
        CELERY={"broker_url": "redis://127.0.0.1:6379/0"},
    )
    app.config.from_prefixed_env()
    app.config.from_mapping(config)
    app.logger.setLevel("INFO")

    auto.init_app(app)  # initialises db as well
    celery_init_app(app)

    for module in (catalogue, commands, orders):
        app.register_blueprint(module.bp)
    app.register_error_handler(HTTPException, to_json)
    return app


def to_json(error: HTTPException) -> tuple[dict[str, Any], int]:
    """Answer every error in JSON. What the view has done is taken back by then."""
    return {"error": error.description}, error.code or 500
