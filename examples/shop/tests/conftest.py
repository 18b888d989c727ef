"""An application for each test, with a database of its own in a temporary file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from shop import create_app
from shop.extensions import db
from shop.models import Product


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = create_app(
        {
            "TESTING": True,
            "SQLALCHEMY_DATABASE_URI": f"sqlite:///{tmp_path / 'shop.db'}",
            "CELERY": {"task_always_eager": True},  # no broker, no worker
        }
    )
    with app.app_context():
        db.create_all()
        Product(name="mate", price=650, stock=8).save()
        Product(name="tea", price=420, stock=10).save()
    yield app
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def runner(app: Flask) -> FlaskCliRunner:
    return app.test_cli_runner()


@pytest.fixture
def stock(client: FlaskClient) -> Callable[[], dict[str, int]]:
    """Look with another request, which sees what is committed and nothing else."""
    return lambda: {product["name"]: product["stock"] for product in client.get("/products").json}
