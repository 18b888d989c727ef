"""The pytest plugin, seen by the projects that use it."""

from __future__ import annotations

from .conftest import Project


def test_nothing_of_a_test_remains(project: Project) -> None:
    """What requests have committed in one test is not there in the next one, nor afterwards."""
    project.write(
        test_it="""
        import pytest

        @pytest.mark.parametrize("time", range(3))
        def test_commit(client, names, time):
            assert client.post("/things/a").status_code == 201
            assert client.post("/things/b?status=400").status_code == 400
            assert names() == ["a"]
        """
    )
    project.run().assert_outcomes(passed=3)
    assert project.names == []
