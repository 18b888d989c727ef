"""What the worker does. Each task is a unit of work, committed before it counts as done."""

from __future__ import annotations

from celery import shared_task

from .extensions import db
from .models import Order


class PaymentError(Exception):
    """The bank did not take the money this time."""


# Acknowledged late: if the worker dies on the way, the message is delivered once more.
@shared_task(acks_late=True, autoretry_for=(PaymentError,), retry_backoff=True)
def pack(order_id: int) -> None:
    """Pack an order and take the money for it: both, or neither."""
    order = db.session.get_one(Order, order_id, with_for_update=True)
    if order.state == "packed":  # a message may come twice
        return
    order.update(state="packed")
    charge(order)  # if it raises, the order is not packed, and tried again later


def charge(order: Order) -> None:
    """Stand for a call to the bank, which takes the money once for each number of an order."""
    if order.email.endswith("@down.example"):
        raise PaymentError("the bank does not answer")
