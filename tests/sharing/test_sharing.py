"""Artifacts copied between stores: whole and identical, or unfinished and never opened."""

import json
import shutil

import pytest

from fusestore.cache.reader import open_cache
from fusestore.corpus.corpus import open_corpus
from fusestore.data.dataset import open_fused
from fusestore.errors import (
    AlreadyExistsError,
    CorruptionError,
    InvalidInputError,
    NotFoundError,
)
from fusestore.store import copy
from fusestore.store.layout import Store
from fusestore.store.manifest import canonical_json, digest_bytes
from fusestore.workflows.sharing import CopySettings, copy_artifacts, sync_stores
from fusestore.workflows.sharing import run as sharing_run
from fusestore.workflows.sharing.artifacts import folder_of, paths_in, read_artifact
from fusestore.workflows.verification import verify_store
from tests.helpers.places import PLACES
from tests.helpers.tiny_job import hashes


@pytest.fixture
def source(store):
    return Store.open(store)


@pytest.fixture
def empty(tmp_path):
    return Store.open(tmp_path / "empty")


def copied(results):
    return [result.artifact for result in results if not result.already_there]


def there_and_back(original, place, empty, names, unpacked):
    there = copy_artifacts(original, place, names)
    assert copied(there) == [result.artifact for result in there]
    arriving = unpacked if place.location.is_local else hashes(original.location)
    assert hashes(place.location).items() <= arriving.items()
    back = copy_artifacts(place, empty, names, CopySettings(jobs=2))
    assert sorted(copied(back)) == sorted(copied(there))
    assert hashes(empty.location).items() <= unpacked.items()
    again = copy_artifacts(original, place, names, CopySettings(check=True))
    assert copied(again) == []
    assert {result.num_bytes for result in again} == {0}


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_to_any_storage_and_back(first_store, place, empty, unpacked):
    names = ["cache/wide", "fused/mixed", "model/fused", "model/merged"]
    there_and_back(Store.open(first_store), place, empty, names, unpacked)


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    ["local", *(pytest.param(place, marks=pytest.mark.slow) for place in ("memory", "s3"))],
    indirect=True,
)
def test_everything_to_any_storage_and_back(first_store, place, empty, unpacked):
    there_and_back(Store.open(first_store), place, empty, None, unpacked)
    assert hashes(empty.location) == unpacked
    assert not any(verify_store(place).values())


def test_only_what_was_asked_for(source, empty):
    # The vocabulary comes along: only capturing could make it again.
    assert copied(copy_artifacts(source, empty, ["cache/wide"]))[-1] == "cache/wide"
    kinds = {name.partition("/")[0] for name in paths_in(empty)}
    assert kinds == {"cache", "vocabulary"}
    assert len(open_cache(empty, "wide")[:]) > 0


def test_inputs_come_first(source, empty):
    # The model knows its dataset by the digest of its plan, in either form.
    names = copied(copy_artifacts(source, empty, ["model/fused"], CopySettings(inputs=True)))
    order = ["corpus", "cache", "map", "alignment", "fused", "model"]
    first = [next(i for i, name in enumerate(names) if name.startswith(kind)) for kind in order]
    assert first == sorted(first)
    (statistical,) = [name for name in paths_in(source) if "-statistical-" in name]
    (fit,) = [name for name in paths_in(source) if name.startswith("fit/")]
    chats = open_cache(source, "chatml"), open_cache(source, "instructions")
    own, other = (cache.fingerprint.tokenizer_digest[:16] for cache in chats)
    assert set(paths_in(source)) - set(names) == {
        *("cache/drawn", "cache/exact", "cache/nucleus", "cache/patchy"),
        *(statistical, "alignment/drawn--small", "fused/mixed", "model/merged"),
        *(fit, "fused/learned"),
        *("corpus/chats", "cache/chatml", "cache/instructions", "fused/answers"),
        *(f"vocabulary/{own}", f"vocabulary/{other}", f"map/{other}-{own}-prefix"),
        "alignment/instructions--chatml",
    }
    assert hashes(empty.location).items() <= hashes(source.location).items()


def test_an_input_that_is_gone_is_named(source, empty):
    source.cache("wide").delete()
    with pytest.raises(NotFoundError, match=r"fused/mince was made from a cache .* not in"):
        copy_artifacts(source, empty, ["fused/mince"], CopySettings(inputs=True))
    assert not empty.location.exists()
    assert copied(copy_artifacts(source, empty, ["fused/mince"])) == ["fused/mince"]
    assert len(open_fused(empty.location, "mince")) > 0


def test_an_unfinished_artifact_is_refused(source, empty):
    (source.cache("wide") / "manifest.json").delete()
    with pytest.raises(NotFoundError, match=r"cache/wide .* is not complete"):
        copy_artifacts(source, empty, ["cache/wide"])
    assert not empty.location.exists()
    copy_artifacts(source, empty, None)
    assert set(paths_in(empty)) == set(paths_in(source)) - {"cache/wide"}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("cache/none", "There is no cache/none"),
        ("vocabulary/none", "There is no vocabulary/none"),
        ("cache", "There is no artifact cache"),
        ("cash/wide", "'cash' is no kind of artifact. Did you mean 'cache'"),
        ("cache/../corpora/addresses", "cannot be a name"),
        ("vocabulary/../x", "cannot be a name"),
    ],
)
def test_no_such_artifact(source, empty, name, problem):
    with pytest.raises((NotFoundError, InvalidInputError), match=problem):
        copy_artifacts(source, empty, ["corpus/addresses", name])
    assert not empty.location.exists()


def test_a_store_is_not_copied_onto_itself(source):
    with pytest.raises(InvalidInputError, match="two different"):
        copy_artifacts(source, source, None)


def rewrite(file, **changes):
    """Change fields of a manifest and make its checksum right again."""
    content = json.loads(file.read_bytes())
    content.pop("checksum")
    content |= changes
    content["checksum"] = digest_bytes(canonical_json(content))
    file.write_bytes(canonical_json(content))


@pytest.mark.parametrize(
    ("name", "file", "changes"),
    [
        ("cache/wide", "caches/wide/fingerprint.json", {"on_nan": "skip"}),
        ("cache/wide", "caches/wide/manifest.json", {"scores": {}}),
        ("cache/wide", "caches/wide/receipts/000000.json", {"files": {}}),
        ("corpus/addresses", "corpora/addresses/manifest.json", {"forced_cuts": 77}),
        ("fused/mince", "fused/mince/fingerprint.json", {"vocab_size": 7}),
        ("model/fused", "models/fused/manifest.json", {"num_tokens": 7}),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_something_else_of_the_same_name_is_left_alone(
    source, tmp_path, first_store, name, file, changes, finished
):
    other = Store.open(shutil.copytree(first_store, tmp_path / "other"))
    rewrite(tmp_path / "other" / file, **changes)
    if not finished and not file.endswith("manifest.json"):
        (tmp_path / "other" / file).parent.joinpath("manifest.json").unlink(missing_ok=True)
    before = hashes(other.location)
    with pytest.raises(AlreadyExistsError) as refused:
        copy_artifacts(source, other, ["corpus/addresses", name])
    found = read_artifact(source, name)
    documents = [found.fingerprint, found.manifest, *(group.receipt for group in found.groups)]
    ours = next(d for d in documents if d is not None and file.endswith(d.path))
    theirs = json.loads((tmp_path / "other" / file).read_bytes())["checksum"]
    assert ours.identity in str(refused.value)
    assert theirs in str(refused.value)
    assert hashes(other.location) == before


@pytest.mark.parametrize("name", ["corpus/addresses", "model/fused"])
def test_unfinished_files_of_something_else_are_left_alone(source, empty, name):
    """A corpus and a model claim their name only at the end: what lies there is read."""
    path = min(read_artifact(source, name).groups[0].files)
    file = folder_of(empty, name).path / path
    file.parent.mkdir(parents=True)
    file.write_bytes(b"something else")
    with pytest.raises(AlreadyExistsError, match=path):
        copy_artifacts(source, empty, [name])
    assert hashes(empty.location) == {
        file.relative_to(empty.location.path).as_posix(): digest_bytes(b"something else")
    }


def test_another_encoding_of_the_same_content_is_left_alone(source, tmp_path, first_store):
    """Another version of Polars writes the same vocabulary in other bytes."""
    import polars as pl

    from fusestore.store.receipts import FileRecord

    other = Store.open(shutil.copytree(first_store, tmp_path / "other"))
    name = next(name for name in paths_in(source) if name.startswith("vocabulary/"))
    table = folder_of(other, name) / "vocabulary.parquet"
    frame = pl.read_parquet(table.path)
    metadata = pl.read_parquet_metadata(table.path)
    metadata.pop("ARROW:schema", None)
    frame.write_parquet(table.path, compression="lz4", metadata=metadata)
    record = FileRecord.of(table.read_bytes()).model_dump()
    manifest = table.path.with_name("manifest.json")
    files = json.loads(manifest.read_bytes())["files"]
    rewrite(manifest, files={**files, table.name: record})
    before = hashes(other.location)
    assert copied(copy_artifacts(source, other, [name])) == []
    assert hashes(other.location) == before
    assert not any(verify_store(other).values())


def test_a_damaged_file_is_named_and_not_copied(source, empty, first_store):
    damaged = source.cache("wide").path / "ids/c/0/0"
    sound = damaged.read_bytes()
    damaged.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(CorruptionError, match=r"1 damaged files .*ids/c/0/0 is damaged"):
        copy_artifacts(source, empty, ["corpus/addresses", "cache/wide"])
    assert open_corpus(empty, "addresses").manifest.num_documents > 0
    with pytest.raises(NotFoundError, match="not complete"):
        open_cache(empty, "wide")
    there = hashes(empty.location)
    assert "caches/wide/ids/c/0/0" not in there
    assert "caches/wide/receipts/000000.json" not in there
    assert there.items() <= hashes(Store.open(first_store).location).items()
    damaged.write_bytes(sound)
    (result,) = [r for r in copy_artifacts(source, empty, ["cache/wide"]) if not r.already_there]
    assert (result.num_files, result.num_bytes) == (1, len(sound))
    assert hashes(empty.cache("wide")) == hashes(source.cache("wide"))


@pytest.mark.parametrize("file", ["receipts/000000.json", "fingerprint.json", "manifest.json"])
def test_a_damaged_document_is_named(source, empty, file):
    path = source.cache("wide").path / file
    path.write_bytes(path.read_bytes().replace(b"wide", b"wild").replace(b'"start"', b'"stort"'))
    with pytest.raises(CorruptionError, match=file):
        copy_artifacts(source, empty, ["cache/wide"])
    assert not empty.location.exists()


def test_files_missing_at_the_target_are_copied_again(source, tmp_path, first_store):
    other = Store.open(shutil.copytree(first_store, tmp_path / "other"))
    before = hashes(other.location)
    gone = [
        other.cache("wide").path / "tail/c/0",
        next(other.alignment("wide--small").path.glob("*.parquet")),
        other.model("fused").path / "model.safetensors",
        next((other.corpus("addresses").path / "tokens").glob("*/token_ids/c/0")),
    ]
    for path in gone:
        path.unlink()
    results = copy_artifacts(source, other, None)
    assert sum(result.num_files for result in results) == len(gone)
    assert hashes(other.location) == before


def test_check_reads_back_and_replaces_what_is_damaged(source, tmp_path, first_store):
    other = Store.open(shutil.copytree(first_store, tmp_path / "other"))
    before = hashes(other.location)
    for path in (
        other.cache("wide").path / "logprobs/c/0/0",
        other.fused("mince").path / "ids/c/0/0",
    ):
        data = path.read_bytes()
        path.write_bytes(data[:10] + bytes([data[10] ^ 4]) + data[11:])
    assert copied(copy_artifacts(source, other, None)) == []
    results = copy_artifacts(source, other, None, CopySettings(check=True))
    assert copied(results) == ["cache/wide", "fused/mince"]
    assert hashes(other.location) == before


@pytest.mark.parametrize(
    "path", ["../evil", "/etc/passwd", "a/../../evil", "", "a//b", "a\\b", "\0"]
)
def test_a_path_outside_the_artifact_is_refused(source, empty, path):
    manifest = source.model("fused").path / "manifest.json"
    files = json.loads(manifest.read_bytes())["files"]
    rewrite(manifest, files={**files, path: {"num_bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(InvalidInputError, match="no path inside its folder"):
        copy_artifacts(source, empty, ["model/fused"])
    assert not empty.location.exists()


class Stopped(Exception):  # noqa: N818 - it stands for a killed process
    """The process ends here."""


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (5, "cache/wide"),
        *(
            pytest.param(step, name, marks=pytest.mark.slow)
            for step in (5, 1)
            for name in ("corpus/addresses", "cache/wide", "fused/mince")
            if (step, name) != (5, "cache/wide")
        ),
    ],
)
def test_stopped_after_any_write_nothing_opens_and_it_goes_on(
    source, tmp_path, monkeypatch, name, step, first_store
):
    """Every prefix of the writes, in their order, is unfinished; the next run ends the same."""
    whole = hashes(read_artifact(source, name).location)
    budget = 0
    while True:
        target = Store.open(tmp_path / f"after-{budget}")
        stop_after(monkeypatch, budget)
        try:
            copy_artifacts(source, target, [name], CopySettings(jobs=1))
        except Stopped:
            pass
        else:
            break
        finally:
            monkeypatch.undo()
        written = hashes(target.location) if target.location.exists() else {}
        assert written.items() <= hashes(Store.open(first_store).location).items()
        if target.location.exists():
            assert not paths_in(target).get(name, False)
        copy_artifacts(source, target, [name])
        assert hashes(read_artifact(target, name).location) == whole
        budget += step
    assert budget >= len(whole) - 1


def stop_after(monkeypatch, writes):
    """Lets that many files be published, then ends everything."""
    left = writes

    def counted(original):
        def write(*arguments):
            nonlocal left
            if left == 0:
                raise Stopped
            left -= 1
            original(*arguments)

        return write

    for module, function in ((copy, "copy_file"), (sharing_run, "publish_new")):
        monkeypatch.setattr(module, function, counted(getattr(module, function)))


def test_a_storage_that_lies_about_sizes_is_not_believed(source, empty, monkeypatch):
    from fusestore.errors import StorageError

    def cut(origin, target, record):
        from fusestore.storage.publish import publish

        publish(target, origin.read_bytes()[: record.num_bytes // 2])

    monkeypatch.setattr(copy, "copy_file", cut)
    with pytest.raises(StorageError, match="bytes after copying"):
        copy_artifacts(source, empty, ["model/fused"])
    with pytest.raises(NotFoundError):
        read_artifact(empty, "model/fused")


def test_sync_goes_both_ways(source, tmp_path, first_store):
    other = Store.open(shutil.copytree(first_store, tmp_path / "other"))
    source.cache("wide").delete()
    other.model("fused").delete()
    (other.fused("mince") / "manifest.json").delete()
    results = sync_stores(source, other)
    assert {(r.artifact, r.target) for r in results if not r.already_there} == {
        ("cache/wide", str(source.location)),
        ("model/fused", str(other.location)),
        ("fused/mince", str(other.location)),
    }
    whole = hashes(Store.open(first_store).location)
    assert hashes(source.location) == hashes(other.location) == whole
    assert copied(sync_stores(source, other)) == []


def test_sync_with_a_store_that_is_not_there_yet(source, empty):
    sync_stores(source, empty, ["cache/small"])
    assert {name.partition("/")[0] for name in paths_in(empty)} == {"cache", "vocabulary"}
    (source.cache("wide") / "manifest.json").delete()
    with pytest.raises(NotFoundError, match="not complete"):
        sync_stores(source, empty, ["cache/wide"])
