from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, Response
from flask.testing import FlaskClient
from kombu.exceptions import OperationalError
from shop import models, tasks
from werkzeug.test import TestResponse

Order = Callable[..., TestResponse]


@pytest.fixture
def charged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note for which orders the bank is called, and call it all the same."""
    called: list[int] = []
    charge = tasks.charge

    def note(order: models.Order) -> None:
        called.append(order.id)
        charge(order)

    monkeypatch.setattr(tasks, "charge", note)
    return called


def test_a_message_that_comes_twice_is_paid_once(order: Order, charged: list[int]) -> None:
    number = order(tea=1).json["id"]
    tasks.pack.delay(number)
    assert charged == [number]


def test_an_order_that_is_not_paid_is_tried_again_and_not_packed(
    client: FlaskClient, order: Order, charged: list[int]
) -> None:
    response = order("ben@down.example", tea=1)
    assert charged == [response.json["id"]] * 4
    assert client.get(response.location).json["state"] == "placed"


def test_an_order_that_is_taken_back_at_the_last_moment_is_no_task_and_no_mail(
    app: Flask, order: Order, on_commit_callbacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(response: Response) -> Response:
        response.status_code = 503
        return response

    monkeypatch.setitem(app.after_request_funcs, None, [fail])
    with on_commit_callbacks() as following:
        assert order(tea=1).status_code == 503
    assert following == []


def test_an_order_stands_when_the_broker_is_down(
    client: FlaskClient,
    order: Order,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OperationalError("there is no broker")

    monkeypatch.setattr(tasks.pack, "apply_async", fail)
    response = order(tea=1)
    assert client.get(response.location).json["state"] == "placed"
    assert "shop.tasks.pack" in caplog.text  # what has to be sent again
