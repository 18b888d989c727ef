"""Run these tests by ``python -m pytest`` in the folder above, with Flask-AutoSession[testing].

What a test does to the database is undone at its end, by the plugin, which makes the tables too.
"""

from __future__ import annotations

import pytest
from flask import Flask
from flask.testing import FlaskClient
from quickstart import create_app


@pytest.fixture(scope="session")
def app() -> Flask:
    return create_app("sqlite://")


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()
