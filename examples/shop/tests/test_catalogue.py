from __future__ import annotations

from flask.testing import FlaskClient
from shop.models import Product

Shelf = dict[str, Product]


def test_the_catalogue_is_sorted_by_name(client: FlaskClient, shelf: Shelf) -> None:
    assert [product["name"] for product in client.get("/products").json] == ["mate", "tea"]


def test_one_product_is_shown(client: FlaskClient, shelf: Shelf) -> None:
    tea = shelf["tea"]
    assert client.get(f"/products/{tea.id}").json == {
        "id": tea.id,
        "name": "tea",
        "price": 420,
        "stock": 10,
    }


def test_a_product_that_does_not_exist_is_a_404_in_json(client: FlaskClient) -> None:
    response = client.get("/products/0")
    assert response.status_code == 404
    assert response.json["error"].startswith("The requested URL was not found")
