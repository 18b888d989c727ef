from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

Order = Callable[..., TestResponse]
Stock = Callable[[], dict[str, int]]
NOTHING = "order,email,state,product,quantity\r\n"


def test_an_order_is_placed_and_packed(client: FlaskClient, order: Order, stock: Stock) -> None:
    response = order(tea=2, mate=1)
    assert response.status_code == 201
    assert response.json == {"id": response.json["id"], "state": "placed", "total": 1490}
    assert client.get(response.location).json == {**response.json, "state": "packed"}
    assert stock() == {"mate": 7, "tea": 8}


def test_an_order_is_one_unit_of_work(order: Order, on_commit_callbacks, commits) -> None:
    with on_commit_callbacks(run=False) as following:
        order(tea=2, mate=1)
    assert [(unit.name, unit.committed) for unit in commits] == [("POST /orders 201", True)]
    assert len(following) == 2  # the message for the worker, and the mail


def test_out_of_stock_nothing_is_kept_and_nothing_follows(
    client: FlaskClient, order: Order, stock: Stock, on_commit_callbacks, commits
) -> None:
    with on_commit_callbacks() as following:
        response = order(mate=1, tea=11)
    assert (response.status_code, response.json) == (409, {"error": "Only 10 of tea left."})
    assert [unit.committed for unit in commits] == [False]
    assert following == []
    assert stock() == {"mate": 8, "tea": 10}
    assert client.get("/orders.csv").text == NOTHING


def test_an_unknown_product_keeps_nothing(order: Order, stock: Stock) -> None:
    response = order(mate=1, milk=1)
    assert (response.status_code, response.json) == (404, {"error": "There is no milk."})
    assert stock() == {"mate": 8, "tea": 10}


@pytest.mark.parametrize(
    "sent",
    [
        [],
        {"products": {"tea": 1}},
        {"email": "ada@example.org", "products": {}},
        {"email": "ada@example.org", "products": {"tea": 0}},
        {"email": "ada@example.org", "products": {"tea": "1"}},
    ],
)
def test_what_is_no_order_is_refused(client: FlaskClient, sent: Any) -> None:
    response = client.post("/orders", json=sent)
    assert response.status_code == 400
    assert response.json["error"].startswith("Send ")


def test_a_mail_is_sent_for_each_order(order: Order, caplog: pytest.LogCaptureFixture) -> None:
    number = order(tea=1).json["id"]
    assert f"Mail to ada@example.org: thank you for order {number}." in caplog.messages
