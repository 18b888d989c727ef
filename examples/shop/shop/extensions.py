"""The two objects that all modules share."""

from __future__ import annotations

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase

from flask_autosession import ActiveRecord, AutoSession


class Base(ActiveRecord, DeclarativeBase):
    """What all models have in common; type checkers learn of ``save()`` from here."""


db = SQLAlchemy(model_class=Base)
auto = AutoSession(db=db)
