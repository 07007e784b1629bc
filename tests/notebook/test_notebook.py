"""examples/notebook.ipynb: committed without outputs, and it runs from top to bottom."""

import ast
import os
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples/notebook.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(FILE, as_version=4)


def code_of(notebook):
    return {cell["id"]: cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"}


def test_it_is_a_valid_one_without_outputs(notebook):
    nbformat.validate(notebook)
    assert notebook["nbformat_minor"] >= 5
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            ast.parse(cell["source"])
    text = FILE.read_text(encoding="utf-8")
    assert not re.search(r"/home/|/tmp/|/root/|/Users/|[A-Z]:\\\\", text)
    assert notebook["metadata"].keys() == {"kernelspec", "language_info"}


def test_it_stands_alone(notebook):
    modules = {
        name.partition(".")[0]
        for source in code_of(notebook).values()
        for node in ast.walk(ast.parse(source))
        for name in (
            [node.module]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in getattr(node, "names", [])]
        )
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    beside = {path.stem for path in FILE.parent.glob("*.py")}
    assert not modules & beside, "a notebook is taken away alone"
    for target in re.findall(r"\]\(([^)]+)\)", FILE.read_text(encoding="utf-8")):
        assert (FILE.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_runs_from_top_to_bottom(notebook, tmp_path):
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook,
        timeout=500,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute(env={**os.environ, "IPYTHONDIR": str(tmp_path / "ipython")})
    shown = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if output["output_type"] == "execute_result":
                shown[cell["id"]] = output["data"]
    for name in ("corpus", "cache", "alignment", "forecast", "fused", "store"):
        assert "<table>" in shown[name]["text/html"], name
    assert "Cache smollm2" in shown["cache"]["text/html"]
    assert "cache/smollm2, document 0" in shown["cache"]["text/html"]
    assert "fused/demo" in shown["store"]["text/html"]
    assert "shape: (8, 6)" in shown["polars"]["text/plain"]
    assert "probability" in shown["polars"]["text/plain"]
    masses = re.search(r"array\(\[([^]]+)\]", shown["xarray"]["text/plain"])[1]
    assert all(0 < float(mass) < 1 for mass in masses.split(","))
    assert "inside" in shown["aligned"]["text/plain"]
    assert "label_logprob" not in shown["fused-rows"]["text/plain"]
    losses = ast.literal_eval(shown["training"]["text/plain"])
    assert len(losses) >= 2
    assert losses[-1] < losses[0]
