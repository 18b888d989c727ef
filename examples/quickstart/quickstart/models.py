"""The models, and the two objects that every module of the application shares."""

from __future__ import annotations

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from flask_autosession import ActiveRecord, AutoSession


class Base(ActiveRecord, DeclarativeBase):
    """What all models have in common; type checkers learn of ``save()`` from here."""


db = SQLAlchemy(model_class=Base)
auto = AutoSession(db=db)


class Product(db.Model):
    """Something on the shelf."""

    __tablename__ = "autosession_quickstart_product"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    stock: Mapped[int]


class Order(db.Model):
    """So many of one product, sold."""

    __tablename__ = "autosession_quickstart_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    product_id: Mapped[int] = mapped_column(ForeignKey(Product.id))
    product: Mapped[Product] = relationship()
    quantity: Mapped[int]
