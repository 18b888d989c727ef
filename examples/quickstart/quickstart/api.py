"""The JSON API. Each view just writes; its response decides whether that is kept."""

from __future__ import annotations

from typing import Any, TypeVar

from flask import Blueprint, abort, request
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from werkzeug.exceptions import HTTPException

from .models import Order, Product, auto, db

T = TypeVar("T")
Answer = tuple[dict[str, Any], int]

api = Blueprint("api", __name__)


@api.get("/products")
def list_products() -> Answer:
    """Read without any ceremony."""
    products = db.session.scalars(select(Product).order_by(Product.name))
    return {product.name: product.stock for product in products}, 200


@api.post("/products")
def add_product() -> Answer:
    """Write one row. A name that is taken raises IntegrityError right here, in save()."""
    product = Product(name=given("name", str), stock=given("stock", int)).save()
    return {"id": product.id}, 201


@api.post("/products/batch")
def add_products() -> Answer:
    """Write many rows, each behind a savepoint: one that fails does not take the others along."""
    refused = []
    for name in body():
        try:
            with auto.savepoint():
                Product(name=name, stock=given(name, int)).save()
        except IntegrityError:
            refused.append(name)
    return {"refused": refused}, 200


@api.put("/products/<name>")
def change_product(name: str) -> Answer:
    """Assign an attribute and leave it at that."""
    product = find_product(name)
    product.stock = given("stock", int)
    return {product.name: product.stock}, 200


@api.delete("/products/<name>")
def delete_product(name: str) -> tuple[str, int]:
    """Delete a row."""
    find_product(name).delete()
    return "", 204


@api.post("/products/<name>/orders")
def order(name: str) -> Answer:
    """Write first, then find out whether it may stand."""
    product, quantity = find_product(name), given("quantity", int)
    if quantity < 1:
        abort(400)
    # Counted by the database, so that two orders at the same moment add up.
    product.update(stock=Product.stock - quantity)
    Order(product=product, quantity=quantity).save()
    if product.stock < 0:
        return {"error": f"only {product.stock + quantity} left"}, 409
    if "voucher" in body():
        redeem(given("voucher", str))
    return {"left": product.stock}, 201


@api.app_errorhandler(IntegrityError)
def conflict(error: IntegrityError) -> Answer:
    """Say it in the API's own way. The rows are gone before this function is called."""
    return {"error": "Conflict"}, 409


@api.app_errorhandler(HTTPException)
def failure(error: HTTPException) -> Answer:
    """Answer every error in JSON, those that nobody expected too."""
    return {"error": error.name}, error.code or 500


def find_product(name: str) -> Product:
    """Return the product of that name, or answer 404."""
    return db.first_or_404(select(Product).where(Product.name == name))


def body() -> dict[str, Any]:
    """Return the JSON object that was sent, whatever its content type says, or answer 400."""
    sent = request.get_json(force=True)
    if not isinstance(sent, dict):
        abort(400)
    return sent


def given(key: str, kind: type[T]) -> T:
    """Return one value of the JSON object that was sent, or answer 400."""
    value = body().get(key)
    if not isinstance(value, kind):
        abort(400)
    return value


def redeem(voucher: str) -> None:
    """Stand for a call to somebody else's server, on the day that it is down."""
    raise ConnectionError("the voucher service does not answer")
