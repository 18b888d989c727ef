"""Django, with ``ATOMIC_REQUESTS``, and with ``transaction.atomic()`` around what writes.

Django knows one set of settings in a process, and one database of the name ``default``. Here are
two applications: each puts its own in place before it is sent requests, which is not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import django
import sqlalchemy as sa
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from benchmarks.contenders import Contender
from benchmarks.workloads import ROWS

View = Callable[[HttpRequest], HttpResponse]
BACKENDS = {"sqlite": "django.db.backends.sqlite3", "postgresql": "django.db.backends.postgresql"}

settings.configure(DEBUG=False, ALLOWED_HOSTS=["localhost"], MIDDLEWARE=[], USE_TZ=True)
django.setup()


class Item(models.Model):
    """What all the requests are about."""

    id = models.AutoField(primary_key=True)
    name = models.CharField(max_length=50)

    class Meta:
        app_label = "bench"
        db_table = "item"


def make(uri: str) -> Contender:
    """Make the application whose every request is a transaction."""

    def insert(request: HttpRequest) -> HttpResponse:
        Item.objects.create(name="a")
        return HttpResponse(status=201)

    def insert_id(request: HttpRequest) -> HttpResponse:
        return JsonResponse({"id": Item.objects.create(name="a").id}, status=201)

    def conflict(request: HttpRequest) -> HttpResponse:
        Item.objects.create(name="a")
        # An exception would do, but not the status: Django commits whatever is returned.
        transaction.set_rollback(True)
        return HttpResponse(status=409)

    return _make(uri, [insert, insert_id, conflict], atomic_requests=True)


def make_by_hand(uri: str) -> Contender:
    """Make the application that opens a transaction where it writes."""

    def insert(request: HttpRequest) -> HttpResponse:
        with transaction.atomic():
            Item.objects.create(name="a")
        return HttpResponse(status=201)

    def insert_id(request: HttpRequest) -> HttpResponse:
        with transaction.atomic():
            item = Item.objects.create(name="a")
        return JsonResponse({"id": item.id}, status=201)

    def conflict(request: HttpRequest) -> HttpResponse:
        with transaction.atomic():
            Item.objects.create(name="a")
            transaction.set_rollback(True)
        return HttpResponse(status=409)

    return _make(uri, [insert, insert_id, conflict], atomic_requests=False)


def ok(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def read(request: HttpRequest) -> HttpResponse:
    return HttpResponse(Item.objects.get(pk=1).name)


def many(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(len(list(Item.objects.all()[:1000]))))


def held(request: HttpRequest) -> HttpResponse:
    request.items = list(Item.objects.all()[:1000])
    return HttpResponse(str(len(request.items)))


def _make(uri: str, writes: list[View], *, atomic_requests: bool) -> Contender:
    databases = connections.configure_settings(
        {"default": _database(uri) | {"ATOMIC_REQUESTS": atomic_requests}}
    )
    connections.settings = databases
    connection = connections.create_connection("default")
    urls = ModuleType("urls")
    views = [ok, read, many, held, *writes]
    urls.urlpatterns = [path(view.__name__, view) for view in views]  # type: ignore[attr-defined]

    def enter() -> None:
        connections.settings = databases
        connections["default"] = connection
        settings.ROOT_URLCONF = urls

    def count() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM item")
            number: int = cursor.fetchone()[0]
            return number

    enter()
    with connection.schema_editor() as editor:
        editor.create_model(Item)
    Item.objects.bulk_create([Item(name=f"item {number}") for number in range(ROWS)])
    return Contender(WSGIHandler(), count, lambda: _close(connection), enter)


def _database(uri: str) -> dict[str, Any]:
    url = sa.make_url(uri)
    return {
        "ENGINE": BACKENDS[url.get_backend_name()],
        "NAME": url.database or ":memory:",
        "USER": url.username or "",
        "PASSWORD": url.password or "",
        "HOST": url.host or "",
        "PORT": url.port or "",
        "CONN_MAX_AGE": None,  # the others keep their connections, too
    }


def _close(connection: BaseDatabaseWrapper) -> None:
    # SQLite's wrapper of it does nothing for a database in memory.
    BaseDatabaseWrapper.close(connection)
