"""The store kept of this format is read by this version, and by a reader without our code."""

import ast
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import fusestore as fs
from fusestore.store.layout import Store
from fusestore.tokenizers.vocabulary_table import load_vocabulary
from fusestore.workflows.verification import verify_store
from tests.kept_store import plain_reader
from tests.kept_store.make import digest_of, make, read_with_fusestore
from tests.kept_store.plain_cache import read_document
from tools.schemas import OTHER_DOCUMENTS, documents

HERE = Path(__file__).parent
OWN = {"tests.kept_store.plain_cache", "tests.kept_store.plain_alignment"}
KEPT = sorted(path.name for path in HERE.glob("format-*"))


@pytest.fixture(params=KEPT)
def kept(request):
    """A store that is committed, never to be changed."""
    return HERE / request.param


@pytest.fixture(scope="module")
def expected_of():
    return {name: json.loads((HERE / name / "expected.json").read_bytes()) for name in KEPT}


def same(found, expected):
    """Bit for bit, but for the sign of a zero; a NaN equals a NaN."""
    assert {name: digest_of(values) for name, values in found.items()} == expected


def test_there_is_a_store_of_this_version():
    assert f"format-{fs.version.FORMAT_VERSION}" in KEPT


def test_ours_reads_the_same_numbers(kept, expected_of, tmp_path):
    found = read_with_fusestore(Store.open(kept / "store"), tmp_path)
    same(found, expected_of[kept.name])


def test_a_plain_reader_reads_the_same_numbers(kept, expected_of):
    same(plain_reader.read_store(kept / "store"), expected_of[kept.name])


@pytest.mark.parametrize("file", ["plain_reader.py", "plain_cache.py", "plain_alignment.py"])
def test_the_plain_reader_has_nothing_of_ours(file):
    modules = set()
    for node in ast.walk(ast.parse((HERE / file).read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    outside = {name.partition(".")[0] for name in modules - OWN}
    assert outside <= {*sys.stdlib_module_names, "numpy", "polars", "zarr"}


def test_a_merged_model_names_what_it_was_merged_of(kept):
    models = kept / "store/models"
    merged = read_document(models / "merged/manifest.json")["merge"]
    assert merged["model_digests"][1] == plain_reader.model_digest(models / "fused")


def test_it_is_sound(kept):
    assert not any(verify_store(Store.open(kept / "store")).values())


def test_it_holds_everything_a_store_can(kept):
    """Every kind of manifest that has a schema, train-state apart: that lies in no store."""
    schemas = documents().keys() - OTHER_DOCUMENTS.keys()
    files = [file.relative_to(kept / "store").as_posix() for file in kept.rglob("store/**/*.json")]
    for name in schemas:
        for pattern in _alternatives(documents()[name].file):
            assert any(_fits(file, pattern) for file in files), pattern


def _alternatives(path):
    """`fused/<fused>/[local/]manifest.json` without what is in brackets, and with it."""
    return {re.sub(r"\[.*\]", "", path), path.replace("[", "").replace("]", "")}


def _fits(file, pattern):
    """Whether a path fits `corpora/<corpus>/manifest.json`."""
    parts, wanted = file.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(
        part == want or ("<" in want and Path(part).suffix == Path(want).suffix)
        for part, want in zip(parts, wanted, strict=True)
    )


def test_every_file_is_documented(kept):
    """The list of files in docs/store.md, and of a cache's in docs/format.md, is complete."""
    docs = HERE.parent.parent / "docs"
    listed = re.findall(r"^(\S+/\S+)$", (docs / "store.md").read_text(), re.MULTILINE)
    patterns = [
        re.escape(line).replace("…", ".+").replace("<", "(").replace(">", ")") for line in listed
    ]
    patterns = [re.sub(r"\([a-z]+\)", "[A-Za-z0-9._-]+", pattern) for pattern in patterns]
    missing = [
        path
        for path in (p.relative_to(kept / "store").as_posix() for p in kept.rglob("store/**/*"))
        if (kept / "store" / path).is_file()
        and not any(re.fullmatch(pattern, path) for pattern in patterns)
    ]
    assert missing == []


def test_nothing_of_this_machine_is_in_it(kept):
    for path in kept.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"/tmp/" not in data, path
            assert b"/home/" not in data, path


def test_it_is_small(kept):
    assert sum(path.stat().st_size for path in kept.rglob("*") if path.is_file()) < 520_000


def test_it_can_be_worked_with(kept, tmp_path):
    """An old store is not only read: a vocabulary loads, a shared copy is the same."""
    store = Store.open(shutil.copytree(kept / "store", tmp_path / "store"))
    for name in store.names("vocabularies"):
        manifest = json.loads((store.vocabulary(name) / "manifest.json").read_bytes())
        vocabulary = load_vocabulary(store, manifest["fingerprint"]["tokenizer_digest"])
        assert len(vocabulary) == manifest["num_tokens"]
    results = fs.sharing.copy_artifacts(store, Store.open(tmp_path / "copy"), None)
    assert len(results) == sum(1 for _ in verify_store(store))
    assert not any(verify_store(Store.open(tmp_path / "copy")).values())


@pytest.mark.slow
def test_a_store_made_now_reads_the_same_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSESTORE_HOME", str(tmp_path / "home"))
    (tmp_path / "made").mkdir()
    make(tmp_path / "made")
    expected = json.loads((tmp_path / "made/expected.json").read_bytes())
    same(plain_reader.read_store(tmp_path / "made/store"), expected)
    assert not any(verify_store(Store.open(tmp_path / "made/store")).values())
    kept = HERE / f"format-{fs.version.FORMAT_VERSION}"
    assert layout(tmp_path / "made/store") == layout(kept / "store"), f"{kept.name} is to be remade"


def layout(store):
    """Every file, with the keys that its JSON document has at any depth.

    A fit is named by a digest of rows, which differ from processor to processor.
    """
    return {
        re.sub("^fits/[0-9a-f]{16}/", "fits/<digest>/", path.relative_to(store).as_posix()): (
            path.suffix == ".json" and keys(json.loads(path.read_bytes()))
        )
        for path in store.rglob("*")
        if path.is_file()
    }


def keys(content):
    """The content of a document without its values."""
    return (
        {name: keys(value) for name, value in content.items()} if isinstance(content, dict) else 0
    )
