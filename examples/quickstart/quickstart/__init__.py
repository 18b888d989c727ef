"""A small shop with a JSON API: the application factory.

Nothing in this package commits, rolls back or closes a session.
"""

from __future__ import annotations

from flask import Flask

from .api import api
from .models import auto


def create_app(database_uri: str) -> Flask:
    """Make the application.

    Further configuration is taken from the environment: ``FLASK_AUTOSESSION_ENABLED=0`` sets
    ``AUTOSESSION_ENABLED``, for instance.

    :param database_uri: The database, in SQLAlchemy's notation.
    """
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config["SQLALCHEMY_DATABASE_URI"] = database_uri
    auto.init_app(app)
    app.register_blueprint(api)
    return app
