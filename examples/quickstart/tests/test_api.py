"""The API, tested with pytest."""

from __future__ import annotations

import pytest
from flask import Flask
from flask.testing import FlaskClient
from quickstart.models import Order, Product, auto
from sqlalchemy import func, select


@pytest.fixture(autouse=True)
def tea(app: Flask) -> None:
    with auto.unit(app):
        Product(name="tea", stock=10).save()


def shelf(client: FlaskClient) -> dict[str, int]:
    return client.get("/products").json


def test_a_product_is_added(client: FlaskClient) -> None:
    assert client.post("/products", json={"name": "mate", "stock": 8}).status_code == 201
    assert shelf(client) == {"mate": 8, "tea": 10}


def test_a_name_is_taken_once(client: FlaskClient) -> None:
    assert client.post("/products", json={"name": "tea", "stock": 99}).status_code == 409
    assert shelf(client) == {"tea": 10}


def test_an_order_is_kept_with_what_it_takes_off_the_shelf(
    client: FlaskClient, db_session, commits
) -> None:
    assert client.post("/products/tea/orders", json={"quantity": 3}).json == {"left": 7}
    assert [unit.committed for unit in commits] == [True]
    assert db_session.scalars(select(Order.quantity)).all() == [3]
    assert shelf(client) == {"tea": 7}


@pytest.mark.parametrize(
    ("sent", "status"), [({"quantity": 11}, 409), ({"quantity": 1, "voucher": "XMAS"}, 500)]
)
def test_an_order_that_fails_is_taken_back(
    client: FlaskClient, db_session, commits, sent: dict[str, object], status: int
) -> None:
    assert client.post("/products/tea/orders", json=sent).status_code == status
    assert [unit.committed for unit in commits] == [False]
    assert db_session.scalar(select(func.count(Order.id))) == 0
    assert shelf(client) == {"tea": 10}


def test_of_a_batch_those_are_kept_that_can_be(client: FlaskClient) -> None:
    response = client.post("/products/batch", json={"coffee": 5, "tea": 1, "mate": 8})
    assert response.json == {"refused": ["tea"]}
    assert shelf(client) == {"coffee": 5, "mate": 8, "tea": 10}


def test_a_product_is_deleted(client: FlaskClient) -> None:
    assert client.delete("/products/tea").status_code == 204
    assert shelf(client) == {}
