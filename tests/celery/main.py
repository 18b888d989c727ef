"""What a worker process imports: the application of the tests, on what its environment names."""

from __future__ import annotations

import json
import os

from ..world import Database
from .app import CeleryWorld
from .workers import settings

world = CeleryWorld(
    Database("postgresql", os.environ["WORKER_DATABASE"]),
    {
        **settings(os.environ["WORKER_BROKER"], os.environ["WORKER_QUEUE"]),
        **json.loads(os.environ["WORKER_SETTINGS"]),
    },
)
# As many applications do when they are imported: the worker's children are copies of a process
# that has used its connection.
world.use_connection()
celery = world.celery
