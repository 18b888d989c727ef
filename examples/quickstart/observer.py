"""Looks at the application from outside: as a client, through another connection, by signals."""

from __future__ import annotations

import json
import logging
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import sqlalchemy as sa
from flask import Flask
from promises import Fact, Promise
from quickstart.models import Order, Product

from flask_autosession import unit_committed, unit_rolled_back


class Observer(logging.Handler):
    """Sends requests and notes what comes of them.

    :param app: The application, which runs in other threads of this process.
    :param url: Where it is served.
    :param engine: An engine of our own, not the application's.
    """

    def __init__(self, app: Flask, url: str, engine: sa.Engine) -> None:
        super().__init__()
        self.reasons: list[str] = []
        self.log: list[str] = []
        self._url, self._engine = url, engine
        self._units: list[str] = []
        # Straight to the loopback address, whatever http_proxy says.
        self._opener = build_opener(ProxyHandler({}))
        unit_committed.connect(self._committed, app)
        unit_rolled_back.connect(self._rolled_back, app)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what is logged: it explains a row that is not as promised."""
        self.log.append(self.format(record))

    def observe(self, promise: Promise) -> Fact:
        """Send a promise's request and return what came of it."""
        for notes in (self.log, self.reasons, self._units):
            notes.clear()
        status, answer = self._send(promise)
        # The unit has ended before the first byte of the response was sent.
        return Fact(status, tuple(self._units), self._look(), answer)

    def _committed(self, app: Flask) -> None:
        self._units.append("committed")

    def _rolled_back(self, app: Flask, reason: str) -> None:
        self._units.append("rolled back")
        self.reasons.append(reason.partition(" at ")[0])

    def _send(self, promise: Promise) -> tuple[int, Any]:
        request = Request(self._url + promise.path, method=promise.method)
        if promise.body is not None:
            request.data = json.dumps(promise.body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            response = self._opener.open(request, timeout=30)
        except HTTPError as error:
            response = error
        except OSError as error:
            return 0, f"no response: {error}"
        with response:
            text = response.read().decode()
        try:
            return response.status, json.loads(text) if text else None
        except ValueError:
            return response.status, text

    def _look(self) -> str:
        products = sa.select(Product.name, Product.stock).order_by(Product.id)
        orders = sa.select(Order.quantity, Product.name).join(Order.product).order_by(Order.id)
        with self._engine.connect() as connection:
            shelf = ", ".join(f"{name} {stock}" for name, stock in connection.execute(products))
            sold = ", ".join(f"{count} {name}" for count, name in connection.execute(orders))
        return (shelf or "nothing") + (f"; order: {sold}" if sold else "")
