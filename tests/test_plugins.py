"""Plugins register strategies, in this process, on the command line, and in helper processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusestore import plugins
from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.fuse.strategies import get_strategy, strategy_names
from fusestore.store.layout import Store
from tests.helpers import fork_server
from tests.helpers.small_store import make_small_store

MODULE = """
import numpy as np
from fusestore.fuse.strategies import register_strategy

@register_strategy("{name}")
def last(scores, fixed_weights):
    weights = np.zeros_like(scores)
    weights[:, -1] = 1.0
    return np.where(np.isnan(scores), 0.0, weights)
"""

READ = """
import sys
{head}

def main():
    import fusestore as fs
    from torch.utils.data import DataLoader
    {register}
    store, recipe, method = sys.argv[1:]
    dataset = fs.open_recipe(store, recipe)
    loader = DataLoader(
        dataset, num_workers=1, multiprocessing_context=method, collate_fn=len, batch_size=2
    )
    print("windows", sum(loader))

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The store's files as they are before anything is fused; not to be changed."""
    folder = tmp_path_factory.mktemp("small")
    return make_small_store(folder / "store", folder)


@pytest.fixture
def recipe(made, tmp_path):
    """Writes a recipe file with this strategy."""

    def write(name):
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps({**made.recipe(), "strategy": name}))
        return path

    return write


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made.root, tmp_path / "store")


@pytest.fixture
def _clean(monkeypatch):
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(plugins, "_expected", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv(plugins.ENVIRONMENT_VARIABLE, raising=False)


def python(*arguments, cwd, **variables):
    return subprocess.run(
        [fork_server.python(), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **variables},
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_import_the_module_that_registered(method, recipe, root, tmp_path):
    (tmp_path / "lasts.py").write_text(MODULE.format(name="last"))
    script = tmp_path / "read.py"
    # Imported in `main`, which no helper process runs.
    script.write_text(READ.format(head="", register="import lasts"))
    done = python(script, root, recipe("last"), method, cwd=tmp_path)
    assert done.stdout.startswith("windows "), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_have_what_a_script_registers(method, recipe, root, tmp_path):
    script = tmp_path / "read.py"
    script.write_text(READ.format(head=MODULE.format(name="last"), register=""))
    done = python(script, root, recipe("last"), method, cwd=tmp_path)
    assert done.stdout.startswith("windows "), done.stderr


@pytest.mark.slow
def test_what_cannot_reach_a_worker_is_said(recipe, root, tmp_path):
    script = tmp_path / "read.py"
    inner = MODULE.format(name="last").replace("\n", "\n    ")
    script.write_text(READ.format(head="", register=inner))
    done = python(script, root, recipe("last"), "spawn", cwd=tmp_path)
    assert done.returncode != 0
    assert "in a module that helper processes can import" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_the_command_line_imports_plugins(jobs, recipe, root, tmp_path):
    (tmp_path / "lasts.py").write_text(MODULE.format(name="last"))
    program = "from fusestore_cli.app import main; main()"
    fuse = ["fuse", recipe("last"), "-s", root, "-n", "mine", "--materialize", "--jobs", jobs]
    done = python("-c", program, *fuse, cwd=tmp_path)
    assert done.returncode == 1
    assert "No strategy is named 'last'" in done.stderr
    done = python("-c", program, "--plugin", "lasts", *fuse, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (Store.open(root).fused("mine") / "manifest.json").exists()


def test_the_environment_and_entry_points_name_plugins(tmp_path):
    for name in ("named", "entered"):
        (tmp_path / f"{name}.py").write_text(MODULE.format(name=name))
    information = tmp_path / "toy-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[fusestore.plugins]\ntoy = entered\n")
    code = """
from fusestore.fuse.strategies import get_strategy
get_strategy("named"), get_strategy("entered")
"""
    path = {"PYTHONPATH": str(tmp_path)}
    done = python("-c", code, cwd=Path.cwd(), FUSESTORE_PLUGINS="named", **path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "entered.py").write_text("1 / 0")
    done = python("-c", code, cwd=Path.cwd(), FUSESTORE_PLUGINS="named", **path)
    assert "'entered' of toy could not be imported: ZeroDivisionError" in done.stderr


@pytest.mark.usefixtures("_clean")
def test_a_plugin_that_cannot_be_imported(tmp_path, monkeypatch):
    with pytest.raises(NotFoundError, match="no module 'not_there_at_all' to import as a plugin"):
        plugins.load_plugins(["not_there_at_all"])
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_plugin.py").write_text("import not_there_either")
    with pytest.raises(InvalidInputError, match="'broken_plugin' could not be imported: Module"):
        plugins.load_plugins(["broken_plugin"])
    assert plugins.loaded_plugins() == ()
    plugins.expect_plugins(["broken_plugin", "not_there_at_all"])
    with pytest.raises(InvalidInputError, match=r"named 'absent'.*not_there_either"):
        get_strategy("absent")


@pytest.mark.usefixtures("_clean")
def test_plugins_are_remembered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "remembered_plugin.py").write_text(MODULE.format(name="remembered"))
    plugins.load_plugins(["remembered_plugin"])
    plugins.load_plugins(["remembered_plugin"])
    assert plugins.loaded_plugins() == ("remembered_plugin",)
    plugins.expect_plugins(["remembered_plugin", "other"])
    assert plugins.plugin_names() == ("remembered_plugin", "other")
    assert "remembered" in strategy_names()


def test_a_plugin_that_is_missing_is_wrong_usage(root, tmp_path):
    program = "from fusestore_cli.app import main; main()"
    done = python("-c", program, "--plugin", "no_such", "ls", "-s", root, cwd=tmp_path)
    assert done.returncode == 2
    assert "Invalid value for --plugin: There is no module 'no_such'" in done.stderr
