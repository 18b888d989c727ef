"""The toolkit without pytest's fixtures: unittest, under pytest and by itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .conftest import Project

on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

CASES = """
import unittest

from conftest import Thing, auto, create_app, db
from flask_autosession.testing import IsolationError, capture_on_commit_callbacks, isolate
from flask_autosession.testing import record_units


class EachTest(unittest.TestCase):
    def setUp(self):
        self.app = create_app()
        self.enterContext(isolate(self.app))
        self.client = self.app.test_client()

    def test_commit(self):
        self.client.post("/things/a")
        self.client.post("/things/b?status=400")
        self.assertEqual(self.client.get("/things").json, ["a"])

    def test_commit_again(self):
        with record_units(self.app) as ended:
            self.client.post("/things/a")
        self.assertEqual([one.committed for one in ended], [True])

    def test_callbacks(self):
        done = []
        with capture_on_commit_callbacks(self.app, run=False) as callbacks, auto.unit(self.app):
            auto.on_commit(lambda: done.append(1))
            Thing(name="a").save()
        self.assertEqual((done, len(callbacks)), ([], 1))


class EachClass(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.app = create_app()
        cls.enterClassContext(isolate(cls.app))
        cls.enterClassContext(cls.app.app_context())
        cls.thing = Thing(name="class").save()

    def setUp(self):
        self.enterContext(isolate(self.app))
        self.client = self.app.test_client()

    def test_update(self):
        self.thing.update(name="updated")
        self.assertEqual(self.client.get("/things").json, ["updated"])

    def test_commit(self):
        self.assertEqual(self.thing.name, "class")
        Thing(name="more").save()
        db.session.commit()
        self.assertEqual(self.client.get("/things").json, ["class", "more"])

    def test_request(self):
        self.client.post("/things/more")
        self.assertEqual(self.client.get("/things").json, ["class", "more"])


class Strategies(unittest.TestCase):
    def test_all(self):
        app = create_app()
        for strategy in "rollback", "truncate", "recreate":
            for _ in range(2):
                with self.subTest(strategy), isolate(app, strategy):
                    app.test_client().post("/things/a")
                    self.assertEqual(app.test_client().get("/things").json, ["a"])

    def test_leak(self):
        app = create_app()
        with self.assertRaisesRegex(IsolationError, "an app context of 'project'"):
            with isolate(app):
                app.app_context().push()


if __name__ == "__main__":
    unittest.main()
"""


def test_unittest_by_itself(project: Project) -> None:
    """``enterContext(isolate(app))`` isolates a test, ``enterClassContext`` a class's data."""
    project.write(test_it=CASES)
    # conftest.py is a module like another one here, but for what pytest it uses.
    conftest = project.pytester.path / "conftest.py"
    text, _, _ = conftest.read_text().partition("@pytest.fixture")
    conftest.write_text(
        text.replace("import pytest\n", "import sys\nsys.modules['pytest'] = None\n")
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "unittest", "-v", "test_it"],
        cwd=project.pytester.path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "Ran 8 tests" in run.stderr
    assert project.names == []
    with project.database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS toolkit_thing")


@on_sqlite
def test_unittest_under_pytest(project: Project) -> None:
    """The same classes pass under the plugin, which isolates each of their tests once more."""
    # But for the class that wants real connections, which the plugin's own isolation rules out.
    project.write(test_it=CASES.replace("Strategies(unittest.TestCase)", "Strategies"))
    result = project.run()
    result.assert_outcomes(passed=6)
    assert (project.names, project.tables) == ([], ["thing"])


@on_sqlite
def test_unittest_without_isolate_under_pytest(project: Project) -> None:
    """Under the plugin a ``TestCase`` needs nothing; its markers and failures work as elsewhere."""
    project.write(
        test_it="""
        import unittest

        import pytest
        from conftest import create_app


        class Cases(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.app = create_app()

            def setUp(self):
                self.client = self.app.test_client()
                self.client.post("/things/set_up")

            def tearDown(self):
                self.client.post("/things/tear_down")

            def test_a(self):
                self.client.post("/things/a")
                self.assertEqual(self.client.get("/things").json, ["set_up", "a"])

            def test_b(self):
                self.client.post("/things/a")
                self.assertEqual(self.client.get("/things").json, ["set_up", "a"])

            @pytest.mark.autosession("truncate")
            def test_truncate(self):
                self.client.post("/things/a")
                self.assertEqual(self.client.get("/things").json, ["set_up", "a"])

            def test_fails(self):
                self.fails()

            @unittest.skip("why not")
            def test_skipped(self):
                pass

            @unittest.expectedFailure
            def test_expected(self):
                self.fail()

            def test_leak(self):
                self.app.app_context().push()
        """
    )
    result = project.run()
    result.assert_outcomes(passed=3, failed=2, skipped=1, xfailed=1)
    result.stdout.fnmatch_lines(["*The test has left behind: an app context of 'project'*"])
    assert project.names == []


def test_it_is_importable_without_pytest() -> None:
    """``flask_autosession.testing`` needs neither pytest nor anything else that is optional."""
    forbidden = "pytest", "_pytest", "factory", "flask_migrate", "celery", "xdist"
    code = (
        "import sys\n"
        f"for name in {forbidden}: sys.modules[name] = None\n"
        "from flask_autosession.testing import *\n"
        "isolate, IsolationError, record_units, capture_on_commit_callbacks, EndedUnit\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
