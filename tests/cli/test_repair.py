"""`fusestore verify --repair`: exactly what is damaged is made again, to the same bytes."""

import shutil

import pytest

from fusestore.cache.writer import CacheWriter
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.workflows.repair import repair_store
from fusestore.workflows.verification import verify_store
from tests.helpers.store_files import artifact_of, one_of_each
from tests.helpers.tiny_job import hashes

FROM_OUTSIDE = ("corpora/addresses/documents.parquet", "corpora/addresses/manifest.json", "models/")
"""What no store can recompute."""


@pytest.fixture
def models(job):
    return [str(job / "small"), str(job / "wide")]


def flip(path, part=2):
    data = bytearray(path.read_bytes())
    data[len(data) // part] ^= 4
    path.write_bytes(data)


def damaged_each(store, files, models, damage):
    """Each file damaged by itself and repaired: the store is what it was."""
    whole = hashes(Location.parse(store))
    for path in files:
        name = path.relative_to(store).as_posix()
        if name.startswith(FROM_OUTSIDE):
            continue
        damage(path)
        done = repair_store(Store.open(store), artifact_of(store, path), models=models)
        assert [repair.problem for repair in done.values()] == [None], name
        assert hashes(Location.parse(store)) == whole, name


def largest(store):
    """The largest file of each kind of artifact, which is data."""
    for folder in ("corpora", "vocabularies", "caches", "vocabulary_maps", "alignments", "fused"):
        files = [path for path in (store / folder).rglob("*") if path.is_file()]
        if folder == "corpora":
            files = [path for path in files if "tokens" in path.parts]
        yield max(files, key=lambda path: path.stat().st_size)


def one_of_each_kind(store):
    """One file of each kind in each kind of artifact: of two caches, the first one's files."""
    found = {}
    for name, path in one_of_each(store).items():
        kind, _, *file = name.split("/")
        found.setdefault((kind, *file), path)
    return found.values()


@pytest.mark.slow
def test_every_kind_of_file_is_repaired(store, models):
    damaged_each(store, one_of_each_kind(store), models, flip)


@pytest.mark.slow
def test_every_kind_of_lost_file_is_repaired(store, models):
    damaged_each(store, one_of_each_kind(store), models, lambda path: path.unlink())


@pytest.mark.slow
def test_much_damage_at_once(command, store, models):
    """One of everything, repaired in the order in which artifacts are made."""
    whole = hashes(Location.parse(store))
    for path in largest(store):
        flip(path, 3)
    (store / "caches/wide/receipts/000000.json").unlink()
    (store / "fused/mince/fingerprint.json").unlink()
    shown = command("verify", "--store", store)
    assert shown.code == 1
    lines = shown.out.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("  ") and not line.startswith("    "):
            assert "--repair" in lines[number + 1]
    arguments = [part for model in models for part in ("--model", model)]
    done = command.succeeds("verify", "--store", store, "--repair", *arguments)
    assert "not repaired" not in done.out
    assert hashes(Location.parse(store)) == whole
    assert "sound" in command.succeeds("verify", "--store", store, "--repair").out


def test_only_bad_shards_are_computed(store, models, monkeypatch):
    written = []
    write = CacheWriter.write_shard
    monkeypatch.setattr(
        CacheWriter,
        "write_shard",
        lambda self, shard, rows: written.append(shard) or write(self, shard, rows),
    )
    flip(store / "caches/wide/ids/c/1/0")
    (store / "caches/wide/tail/c/2").unlink()
    done = repair_store(Store.open(store), "cache/wide", models=models)
    assert done["cache/wide"].problem is None
    assert sorted(written) == [1, 2]


def unrepaired(store, path, models):
    """The reason, once nothing was changed."""
    before = hashes(Location.parse(store))
    (repair,) = repair_store(Store.open(store), path, models=models).values()
    assert repair.problem is not None
    assert hashes(Location.parse(store)) == before
    return repair.problem


def test_without_the_model_it_says_which(command, store, models):
    flip(store / "caches/wide/ids/c/1/0")
    problem = unrepaired(store, "cache/wide", [])
    assert "--model was not given" in problem
    problem = unrepaired(store, "cache/wide", models[:1])
    assert "no --model has it" in problem
    assert models[0] in problem
    told = command("verify", "-s", store, "--repair", "-m", store / "nothing")
    assert told.code == 1
    assert f"not repaired: Model folder {store / 'nothing'} does not exist" in told.out


def test_a_shard_that_comes_out_otherwise_is_left(store, models, monkeypatch):
    from fusestore.capture.row_capturer import RowCapturer

    rows = RowCapturer.rows

    def other(self, *args):
        made, bad = rows(self, *args)
        made.label_logprob[0] -= 0.25
        return made, bad

    monkeypatch.setattr(RowCapturer, "rows", other)
    flip(store / "caches/wide/ids/c/1/0")
    assert "rounds in another way" in unrepaired(store, "cache/wide", models)


@pytest.mark.parametrize(
    ("path", "name", "says"),
    [
        ("models/fused/model.safetensors", "model/fused", "fusestore train"),
        ("corpora/addresses/documents.parquet", "corpus/addresses", "from the same inputs"),
    ],
)
def test_what_comes_from_outside_is_named(command, store, models, path, name, says):
    # Not in the middle: bytes of a Parquet file that no reader needs can be made again.
    flip(store / path, 3)
    assert says in unrepaired(store, name, models)
    told = command("verify", name, "--store", store).out
    assert "run the same `fusestore" in told


def test_damaged_inputs_are_never_used(store, models):
    """The alignment is damaged and so is the vocabulary it would be made from."""
    part = store / "alignments/wide--small/source_pos/c/0"
    flip(part)
    for path in (store / "vocabularies").glob("*/*.parquet"):
        flip(path)
    name = artifact_of(store, part)
    assert "does not match its checksum" in unrepaired(store, name, models)


def test_nothing_says_what_it_was(store, models):
    for folder in ("caches/wide", "fused/mince", "alignments/wide--small"):
        for file in ("manifest.json", "fingerprint.json"):
            if (store / folder / file).exists():
                flip(store / folder / file)
    for name in ("cache/wide", "fused/mince", "alignment/wide--small"):
        assert "is sound" in unrepaired(store, name, models)
        assert all(verify_store(Store.open(store), name).values())


@pytest.mark.slow
def test_documents_are_built_again_from_the_inputs(command, store, job):
    """The remedy that `verify` tells."""
    whole = hashes(Location.parse(store))
    shutil.copytree(store, store.parent / "other")
    for file in ("documents.parquet", "manifest.json", "receipts/documents.json"):
        (store / "corpora/addresses" / file).unlink()
        command.succeeds(
            "corpus", job / "texts.jsonl", "--store", store, "--name", "addresses",
            "--split-column", "split", "--max-length", "128",
            "-t", job / "small", "-t", job / "wide",
        )  # fmt: skip
        assert hashes(Location.parse(store)) == whole


def test_repair_and_quick_exclude_each_other(command, store):
    assert command("verify", "--store", store, "--repair", "--quick").code == 2
