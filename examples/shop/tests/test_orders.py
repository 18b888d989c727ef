from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

Stock = Callable[[], dict[str, int]]
NOTHING = "order,email,state,product,quantity\r\n"


def order(client: FlaskClient, **products: int) -> Any:
    return client.post("/orders", json={"email": "ada@example.org", "products": products})


def test_an_order_is_placed_and_packed(client: FlaskClient, stock: Stock) -> None:
    response = order(client, tea=2, mate=1)
    assert response.status_code == 201
    assert response.json == {"id": 1, "state": "placed", "total": 1490}
    assert client.get(response.location).json == {"id": 1, "state": "packed", "total": 1490}
    assert stock() == {"mate": 7, "tea": 8}


def test_out_of_stock_nothing_is_kept(
    client: FlaskClient, stock: Stock, caplog: pytest.LogCaptureFixture
) -> None:
    response = order(client, mate=1, tea=11)
    assert (response.status_code, response.json) == (409, {"error": "Only 10 of tea left."})
    assert stock() == {"mate": 8, "tea": 10}
    assert client.get("/orders.csv").text == NOTHING
    assert "Mail to" not in caplog.text


def test_an_unknown_product_keeps_nothing(client: FlaskClient, stock: Stock) -> None:
    response = order(client, mate=1, milk=1)
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


def test_a_mail_is_sent_for_each_order(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    order(client, tea=1)
    assert "Mail to ada@example.org: thank you for order 1." in caplog.messages


def test_orders_are_exported(client: FlaskClient) -> None:
    order(client, tea=2, mate=1)
    response = client.get("/orders.csv")
    assert response.mimetype == "text/csv"
    assert response.text.splitlines()[1:] == [
        "1,ada@example.org,packed,mate,1",
        "1,ada@example.org,packed,tea,2",
    ]
