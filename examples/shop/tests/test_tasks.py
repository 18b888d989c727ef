from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, Response
from flask.testing import FlaskClient
from kombu.exceptions import OperationalError
from shop import tasks
from shop.models import Order


@pytest.fixture
def charged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note for which orders the bank is called, and call it all the same."""
    called: list[int] = []
    charge = tasks.charge

    def note(order: Order) -> None:
        called.append(order.id)
        charge(order)

    monkeypatch.setattr(tasks, "charge", note)
    return called


def test_a_message_that_comes_twice_is_paid_once(
    app: Flask, client: FlaskClient, charged: list[int]
) -> None:
    client.post("/orders", json={"email": "ada@example.org", "products": {"tea": 1}})
    tasks.pack.delay(1)
    assert charged == [1]


def test_an_order_that_is_not_paid_is_tried_again_and_not_packed(
    client: FlaskClient, charged: list[int]
) -> None:
    client.post("/orders", json={"email": "ben@down.example", "products": {"tea": 1}})
    assert charged == [1, 1, 1, 1]
    assert client.get("/orders/1").json["state"] == "placed"


def test_an_order_that_is_taken_back_at_the_last_moment_is_no_task_and_no_mail(
    app: Flask, client: FlaskClient, charged: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    @app.after_request
    def fail(response: Response) -> Response:
        response.status_code = 503
        return response

    client.post("/orders", json={"email": "ada@example.org", "products": {"tea": 1}})
    assert charged == []
    assert "Mail to" not in caplog.text


def test_an_order_stands_when_the_broker_is_down(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OperationalError("there is no broker")

    monkeypatch.setattr(tasks.pack, "apply_async", fail)
    client.post("/orders", json={"email": "ada@example.org", "products": {"tea": 1}})
    assert client.get("/orders/1").json["state"] == "placed"
    assert "shop.tasks.pack" in caplog.text  # what has to be sent again
