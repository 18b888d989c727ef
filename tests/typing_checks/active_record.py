"""What type checkers make of models that derive from ActiveRecord. Checked, never run."""

from __future__ import annotations

from typing import assert_type

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_autosession.model import ActiveRecord, swap_in


class Base(ActiveRecord, DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
swap_in(db)


class User(Base):
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Admin(User):
    def save(self) -> Admin:
        return super().save()


def methods_give_the_models_own_type() -> None:
    assert_type(User(name="a").save(), User)
    assert_type(User.create(name="a"), User)
    assert_type(User.create(name="a").update(name="b").save(), User)
    assert_type(User.get(1), User | None)
    assert_type(User.get_or_create({"name": "a"}, id=1), tuple[User, bool])
    assert_type(User.update_or_create(name="a"), tuple[User, bool])
    assert_type(Admin.create(name="a").update(name="b"), Admin)
    assert_type(Admin.get_or_create(name="a")[0].name, str)


def get_may_find_nothing() -> None:
    user = User.get(1)
    if user is not None:
        user.delete()


def any_key_can_be_a_column(data: dict[str, str]) -> None:
    User.create(**data).update(**data)
    User.get_or_create(data, **data)
