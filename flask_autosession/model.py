"""The model base whose methods flush and never commit, and its swap into ``db.Model``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.associationproxy import AssociationProxy
from sqlalchemy.ext.hybrid import hybrid_property

_Attrs: TypeAlias = Mapping[str, Any]
_Rule: TypeAlias = Callable[[type["ActiveRecord"], str], bool]
_M = TypeVar("_M", bound="ActiveRecord")

# FOR NO KEY UPDATE on PostgreSQL, which lets others insert rows that refer to the locked one.
_TO_CHANGE: Mapping[str, bool] = {"key_share": True}


class ActiveRecord:
    """Gives a model the methods that write it, which flush and leave the commit to the unit.

    :class:`~flask_autosession.AutoSession` puts them on ``db.Model`` by itself. Deriving the
    base from it, ``class Base(ActiveRecord, DeclarativeBase)``, lets type checkers see them.
    All that write, but ``delete()``, go through ``save()``: override that to add to each.

    .. versionadded:: 0.1.0
    """

    __fsa__: ClassVar[SQLAlchemy]

    def save(self) -> Self:
        """Add the object to the session and flush the whole session.

        :return: The object itself, which now has its primary key.
        """
        session = _session(type(self))
        session.add(self)
        session.flush()
        return self

    def update(self, /, **attrs: Any) -> Self:
        """Set attributes and :meth:`save`. All names are checked before any is set.

        :param attrs: The values, by the names of columns, relationships, synonyms, composites,
            association proxies, and of hybrids and properties that have a setter.
        :return: The object itself.
        :raises TypeError: A name is no attribute of the model that can be set.
        """
        _check(type(self), "update", attrs, _settable)
        _assign(self, attrs)
        self.save()
        return self

    def delete(self) -> None:
        """Delete the object's row and flush the whole session.

        :raises sqlalchemy.exc.InvalidRequestError: The object was never saved.
        """
        session = _session(type(self))
        session.delete(self)
        session.flush()

    @classmethod
    def create(cls, /, **attrs: Any) -> Self:
        """Make an object and :meth:`save` it. What ``__init__`` does not take is set after it.

        :param attrs: The values, by the names that :meth:`update` or ``__init__`` takes.
        :return: The new object.
        :raises TypeError: A name is neither of them, or ``__init__`` misses a value.
        """
        _check(cls, "create", attrs, _creatable)
        return _create(cls, attrs)

    @classmethod
    def get(cls, ident: Any, /) -> Self | None:
        """Look an object up by its primary key, in the session first.

        :param ident: The key's value; a tuple or a dict if it has several columns.
        :return: The object, or None.
        """
        return _session(cls).get(cls, ident)

    @classmethod
    def get_or_create(cls, defaults: _Attrs | None = None, /, **by: Any) -> tuple[Self, bool]:
        """Find the one object that has these values, or create it.

        Where a unique constraint stands on them, any number of callers at the same time get
        the same row. For those who come second only a savepoint is rolled back.

        :param defaults: What a new object gets besides, as for :meth:`create`.
        :param by: The values to look for, by the names of mapped attributes.
        :return: The object, and whether it was created.
        :raises TypeError: A name is none that can be looked up, or set.
        :raises sqlalchemy.exc.MultipleResultsFound: More than one row has these values.
        :raises sqlalchemy.exc.IntegrityError: The new row violates another constraint.
        """
        attrs = {**by, **(defaults or {})}
        _check(cls, "get_or_create", attrs, _creatable)
        _check(cls, "get_or_create", by, _searchable)
        return _get_or_insert(cls, by, attrs, lock=False)

    @classmethod
    def update_or_create(cls, defaults: _Attrs | None = None, /, **by: Any) -> tuple[Self, bool]:
        """Find the one object that has these values and update it, or create it.

        A row that is found stays locked (``SELECT ... FOR UPDATE``) to the end of the unit, so
        that nobody else's update of it is overwritten unseen. Else as :meth:`get_or_create`.

        :param defaults: What the object gets, found or new, as for :meth:`update`.
        :param by: The values to look for, by the names of mapped attributes.
        :return: The object, and whether it was created.
        :raises: What :meth:`get_or_create` raises.
        """
        changes = dict(defaults or {})
        _check(cls, "update_or_create", changes, _settable)
        _check(cls, "update_or_create", by, _searchable)
        found, created = _get_or_insert(cls, by, {**by, **changes}, lock=True)
        if not created:
            _assign(found, changes)
            found.save()
        return found, created


def swap_in(db: SQLAlchemy) -> None:
    """Give ``db.Model``, and all models declared from it so far or later, the methods.

    A name that the base, a model or a mixin of a model defines itself stays theirs.

    :param db: Flask-SQLAlchemy's extension object.

    .. versionadded:: 0.1.0
    """
    base: type[Any] = db.Model
    for name in vars(ActiveRecord):
        if not name.startswith("_") and not hasattr(base, name):
            # As an attribute: __bases__ of a class right under object cannot be assigned.
            setattr(base, name, _Swapped(base, name))


class _Swapped:
    # In ``class User(db.Model, CrudMixin)`` a bare function on db.Model would come before the
    # mixin's, and take from the model what it had before the swap. This one gives way.

    def __init__(self, base: type[object], name: str) -> None:
        self._base, self._name = base, name
        self._own = vars(ActiveRecord)[name]

    def __get__(self, obj: object | None, owner: type[object]) -> Any:
        behind = getattr(super(self._base, owner if obj is None else obj), self._name, None)
        return self._own.__get__(obj, owner) if behind is None else behind


def _session(cls: type[ActiveRecord]) -> sa_orm.Session:
    if not hasattr(cls, "__fsa__"):
        raise RuntimeError(f"{cls.__name__} has no session: derive the model from db.Model.")
    return cls.__fsa__.session()


def _check(cls: type[ActiveRecord], method: str, names: Iterable[str], usable: _Rule) -> None:
    bad = [name for name in names if not usable(cls, name)]
    if bad:
        known = [name for name in dir(cls) if usable(cls, name)]
        near = [repr(n) for name in bad for n in difflib.get_close_matches(name, known, n=1)]
        raise TypeError(
            f"{cls.__name__}.{method}() got {', '.join(map(repr, bad))}: {cls.__name__} has no such"
            f" attribute, or does not let it be {'looked up' if usable is _searchable else 'set'}."
            " Nothing was changed." + (f" Did you mean {', '.join(near)}?" if near else "")
        )


def _settable(cls: type[ActiveRecord], name: str) -> bool:
    prop = sa_orm.class_mapper(cls).attrs.get(name)
    if isinstance(prop, sa_orm.RelationshipProperty):
        return not prop.viewonly
    if isinstance(prop, sa_orm.ColumnProperty):
        # column_property() of an expression can be assigned, but the flush passes over it.
        return isinstance(prop.columns[0], sa.Column)
    if isinstance(prop, sa_orm.SynonymProperty) and not _settable(cls, prop.name):
        return False
    # Synonyms and composites keep the property behind them, whose setter may be missing.
    descriptor = getattr(prop, "descriptor", None) or inspect.getattr_static(cls, name, None)
    kinds: tuple[Any, ...] = (property, hybrid_property, AssociationProxy)
    return isinstance(descriptor, kinds) and getattr(descriptor, "fset", True) is not None


def _searchable(cls: type[ActiveRecord], name: str) -> bool:
    # A plain property compares to False in Python, and so would never find its row.
    return _settable(cls, name) and name in sa_orm.class_mapper(cls).all_orm_descriptors


def _creatable(cls: type[ActiveRecord], name: str) -> bool:
    return _settable(cls, name) or name in _parameters(cls)[0]


def _parameters(cls: type[ActiveRecord]) -> tuple[set[str], bool]:
    """Give the names that ``__init__`` takes, and whether it takes any other (``**kwargs``)."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _create(cls: type[_M], attrs: _Attrs) -> _M:
    named, takes_any = _parameters(cls)
    obj = cls(**{name: attrs[name] for name in attrs if takes_any or name in named})
    _assign(obj, {name: attrs[name] for name in attrs if not takes_any and name not in named})
    obj.save()
    return obj


def _assign(obj: ActiveRecord, attrs: _Attrs) -> None:
    for name, value in attrs.items():
        setattr(obj, name, value)


def _find(cls: type[_M], by: _Attrs, lock: Mapping[str, bool] | None = None) -> _M | None:
    # At a second look, what the session holds may be older than what another one wrote.
    query = sa.select(cls).filter_by(**by).execution_options(populate_existing=lock is not None)
    if lock:
        # The model's own tables: PostgreSQL cannot lock the outer join of lazy="joined".
        query = query.with_for_update(of=sa_orm.class_mapper(cls).tables, **lock)
    return _session(cls).scalars(query).unique().one_or_none()


def _get_or_insert(cls: type[_M], by: _Attrs, attrs: _Attrs, *, lock: bool) -> tuple[_M, bool]:
    # Or else begin_nested() would flush what is pending, whose failure is no lost race.
    _session(cls).flush()
    found = _find(cls, by)
    if found is not None and lock:
        # Not at the first look: on MariaDB, locks on a gap deadlock with inserts into it.
        found = _find(cls, by, _TO_CHANGE)
    if found is not None:
        return found, False
    try:
        # Made inside, since the flush before it warns of an object that is related to another.
        with _session(cls).begin_nested():
            return _create(cls, attrs), True
    except IntegrityError:
        # A lock shows the row in spite of a REPEATABLE READ snapshot, MariaDB's default. Not
        # before it is needed, and shared, as after the failed INSERT: else deadlocks follow.
        for again in (_TO_CHANGE,) if lock else ({}, {"read": True}):
            if (found := _find(cls, by, again)) is not None:
                return found, False
        raise
