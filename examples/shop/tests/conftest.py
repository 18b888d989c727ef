"""What the tests share. What a test does to the database is undone at its end, by the plugin."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from shop import create_app
from shop.extensions import auto
from shop.models import Product
from werkzeug.test import TestResponse


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    """Make the application, once for all tests. The plugin makes the tables."""
    # A file, because the customers in test_rush.py need a connection each, and "sqlite://" has one.
    file = tmp_path_factory.mktemp("shop") / "shop.db"
    return create_app(
        {
            "TESTING": True,
            # A variable of its own: what the shop itself is told to use may be full of real orders.
            "SQLALCHEMY_DATABASE_URI": os.environ.get("TEST_DATABASE_URI", f"sqlite:///{file}"),
            "CELERY": {"task_always_eager": True},  # no broker, no worker
        }
    )


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def runner(app: Flask) -> FlaskCliRunner:
    return app.test_cli_runner()


@pytest.fixture
def shelf(app: Flask) -> dict[str, Product]:
    """Put two products on the shelf."""
    with auto.unit():
        mate = Product(name="mate", price=650, stock=8).save()
        tea = Product(name="tea", price=420, stock=10).save()
    return {"mate": mate, "tea": tea}


@pytest.fixture
def stock(client: FlaskClient, shelf: dict[str, Product]) -> Callable[[], dict[str, int]]:
    """Look with another request, which sees what is committed and nothing else."""
    return lambda: {product["name"]: product["stock"] for product in client.get("/products").json}


@pytest.fixture
def order(app: Flask, shelf: dict[str, Product]) -> Callable[..., TestResponse]:
    """Order so many of each product."""

    def order(email: str = "ada@example.org", **products: int) -> TestResponse:
        return app.test_client().post("/orders", json={"email": email, "products": products})

    return order
