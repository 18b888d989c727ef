"""The orders of this module are written once, before its first test, and gone after its last."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient
from shop.extensions import auto
from shop.models import Order, OrderLine, Product
from werkzeug.test import TestResponse

from flask_autosession.testing import isolate

MANY = 250


@pytest.fixture(scope="module", autouse=True)
def orders(app: Flask) -> Iterator[None]:
    with isolate(app):
        with auto.unit():
            coffee = Product.create(name="coffee", price=890, stock=5)
            for _ in range(MANY):
                line = OrderLine(product=coffee, quantity=1, price=890)
                Order(email="ben@example.org", lines=[line]).save()
        yield


def test_all_orders_are_exported(client: FlaskClient) -> None:
    response = client.get("/orders.csv")
    assert response.mimetype == "text/csv"
    head, *rows = response.text.splitlines()
    assert head == "order,email,state,product,quantity"
    assert len(rows) == MANY


def test_the_newest_order_comes_last(
    client: FlaskClient, order: Callable[..., TestResponse]
) -> None:
    number = order(tea=2, mate=1).json["id"]
    rows = client.get("/orders.csv").text.splitlines()[1:]
    assert len(rows) == MANY + 2
    assert rows[-2:] == [
        f"{number},ada@example.org,packed,mate,1",
        f"{number},ada@example.org,packed,tea,2",
    ]
