"""The same API, tested with unittest: ``python -m unittest discover tests`` in the folder above."""

# ruff: noqa: PT009
from __future__ import annotations

import unittest

from quickstart import create_app
from quickstart.models import Product, auto

from flask_autosession.testing import isolate

app = create_app("sqlite://")


class ShelfTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.enterClassContext(isolate(app))  # the tea is there for all tests of this class
        with auto.unit(app):
            Product(name="tea", stock=10).save()

    def setUp(self) -> None:
        self.enterContext(isolate(app))  # what a test does is undone at its end
        self.client = app.test_client()

    def shelf(self) -> dict[str, int]:
        return self.client.get("/products").json

    def test_stock_is_changed(self) -> None:
        self.assertEqual(self.client.put("/products/tea", json={"stock": 6}).json, {"tea": 6})
        self.assertEqual(self.shelf(), {"tea": 6})

    def test_a_product_is_deleted(self) -> None:
        self.assertEqual(self.client.delete("/products/tea").status_code, 204)
        self.assertEqual(self.shelf(), {})

    def test_out_of_stock_sells_nothing(self) -> None:
        response = self.client.post("/products/tea/orders", json={"quantity": 11})
        self.assertEqual(response.json, {"error": "only 10 left"})
        self.assertEqual(self.shelf(), {"tea": 10})
