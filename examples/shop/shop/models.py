"""The tables."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from .extensions import db


class Product(db.Model):
    """Something on the shelf."""

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    price: Mapped[int]
    """In cents."""
    stock: Mapped[int]

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name, "price": self.price, "stock": self.stock}


class Order(db.Model):
    """What somebody has bought: first ``placed``, then ``packed``."""

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(10), default="placed")
    lines: Mapped[list[OrderLine]] = relationship(back_populates="order")

    @property
    def total(self) -> int:
        """In cents."""
        return sum(line.quantity * line.price for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id, "state": self.state, "total": self.total}


class OrderLine(db.Model):
    """So many of one product, at the price of that day."""

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), index=True)
    order: Mapped[Order] = relationship(back_populates="lines")
    product_id: Mapped[int] = mapped_column(ForeignKey(Product.id))
    product: Mapped[Product] = relationship()
    quantity: Mapped[int]
    price: Mapped[int]
