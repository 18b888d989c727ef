"""Orders: placed in a request, worked off by a task, exported as a stream."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, abort, current_app, request, stream_with_context, url_for
from sqlalchemy import select

from .extensions import auto, db
from .models import Order, OrderLine, Product
from .tasks import pack

bp = Blueprint("orders", __name__)


@bp.post("/orders")
def place() -> tuple[dict[str, Any], int, dict[str, str]]:
    """Place an order: all of it, or nothing."""
    email, products = read_order()
    order = Order(email=email).save()
    # Locked, so that orders at the same moment take turns; sorted, so that they never wait for each
    # other in a circle.
    for name, quantity in sorted(products.items()):
        product = db.first_or_404(
            select(Product).filter_by(name=name).with_for_update(),
            description=f"There is no {name}.",
        )
        OrderLine(order=order, product=product, quantity=quantity, price=product.price).save()
        product.update(stock=product.stock - quantity)
        if product.stock < 0:
            abort(409, f"Only {product.stock + quantity} of {name} left.")

    pack.delay_on_commit(order.id)

    @auto.on_commit
    def confirm() -> None:  # stands for an e-mail
        current_app.logger.info("Mail to %s: thank you for order %s.", order.email, order.id)

    return order.to_dict(), 201, {"Location": url_for(".show", order_id=order.id)}


@bp.get("/orders/<int:order_id>")
def show(order_id: int) -> dict[str, Any]:
    """Show what has become of an order."""
    return db.get_or_404(Order, order_id).to_dict()


@bp.get("/orders.csv")
def export() -> Response:
    """Send all orders, a row at a time, however many there are."""
    query = (
        select(Order.id, Order.email, Order.state, Product.name, OrderLine.quantity)
        .join(Order.lines)
        .join(OrderLine.product)
        .order_by(Order.id, Product.name)
        .execution_options(yield_per=100)
    )

    def rows() -> Iterator[str]:
        writer = csv.writer(Echo())
        yield writer.writerow(["order", "email", "state", "product", "quantity"])
        for row in db.session.execute(query):
            yield writer.writerow(row)

    return Response(stream_with_context(rows()), mimetype="text/csv")


class Echo:
    """Stand for a file, for a csv.writer whose writerow() shall return the row."""

    def write(self, row: str) -> str:
        return row


def read_order() -> tuple[str, dict[str, int]]:
    """Return what was sent, or answer 400."""
    match request.get_json():
        case {"email": str(email), "products": dict(products)} if products and all(
            isinstance(quantity, int) and 0 < quantity < 1000 for quantity in products.values()
        ):
            pass
        case _:
            abort(400, 'Send {"email": "ada@example.org", "products": {"tea": 2}}, 1 to 999 each.')
    return email, products
