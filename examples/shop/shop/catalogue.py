"""What there is to buy."""

from __future__ import annotations

from typing import Any

from flask import Blueprint
from sqlalchemy import select

from .extensions import db
from .models import Product

bp = Blueprint("catalogue", __name__)


@bp.get("/products")
def index() -> list[dict[str, Any]]:
    """List all products."""
    products = db.session.scalars(select(Product).order_by(Product.name))
    return [product.to_dict() for product in products]


@bp.get("/products/<int:product_id>")
def show(product_id: int) -> dict[str, Any]:
    """Show one product."""
    return db.get_or_404(Product, product_id).to_dict()
