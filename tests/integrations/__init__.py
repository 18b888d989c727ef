"""The extension beside the real packages that its users have installed already."""

from __future__ import annotations

from typing import Any

from tests.world import Database, World


class Site(World):
    """An application whose models other packages may add to, with tables of its own."""

    def __init__(self, database: Database, **config: Any) -> None:
        super().__init__(database, SECRET_KEY="of the tests", **config)

    def create_tables(self) -> None:
        """Create the tables that packages and tests have declared beside the common ones."""
        self.db.metadata.create_all(self.database.engine)

    def close(self) -> None:
        self.db.metadata.drop_all(self.database.engine)
        super().close()
