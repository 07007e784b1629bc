"""A renamed artifact is the same artifact, and what was made from it stays usable."""

import pytest

import fusestore as fs
from fusestore.errors import AlreadyExistsError, CorruptionError, InvalidInputError, StorageError
from fusestore.storage.publish import publish, publish_new
from fusestore.store.inventory import list_artifacts
from fusestore.store.layout import Store
from fusestore.workflows.managing import renaming
from fusestore.workflows.sharing import CopySettings, copy_artifacts
from fusestore.workflows.sharing import run as sharing_run
from tests.helpers.renamed import check_sound, rename_all, renamed_path
from tests.helpers.storages import S3_IS_SLOW
from tests.helpers.tiny_job import hashes


def rows_of(dataset):
    return [{key: each.tolist() for key, each in dataset[i].items()} for i in range(len(dataset))]


@S3_IS_SLOW
def test_every_byte_and_every_user_stay(some):
    before = hashes(some.location)
    rename_all(some)
    assert hashes(some.location) == {renamed_path(path): each for path, each in before.items()}
    check_sound(some)
    details = fs.open_store(some.location).describe("second")
    assert {"corpus/places", "cache/breit", "alignment/first"} < set(map(str, details.inputs))


@pytest.mark.slow
def test_a_store_through_rename_gc_and_pull_loses_nothing(some, tmp_path):
    before = hashes(some.location)
    rename_all(some)
    garbage = fs.open_store(some.location).collect_garbage(fs.GarbageSettings(older_than=0))
    assert garbage.items == ()
    back = Store.open(tmp_path / "back")
    copy_artifacts(some, back, ["model/third", "nucleus"], CopySettings(inputs=True))
    assert hashes(back.location) == {renamed_path(path): each for path, each in before.items()}
    assert len(list_artifacts(back)) == 10
    check_sound(back)


@pytest.mark.parametrize("complete", [True, False])
def test_shards_are_made_from_renamed_inputs(store, complete):
    """Of an unfinished dataset when they are read, of a complete one by a repair."""
    expected = rows_of(fs.open_fused(store, "mince"))
    opened = Store.open(store)
    sound = hashes(opened.location / "fused/mince")
    if complete:
        chunks = (store / "fused/mince/logprobs/c").rglob("*")
        file = next(path for path in chunks if path.is_file())
        file.write_bytes(bytes(file.stat().st_size))
    else:
        (store / "fused/mince/manifest.json").unlink()
        for receipt in (store / "fused/mince/receipts").iterdir():
            receipt.unlink()
    rename_all(opened)
    fs.open_store(store).rename("cache/small", "klein")
    if complete:
        repaired = fs.open_store(store).repair("second")
        assert repaired["fused/second"].problem is None
        assert hashes(opened.location / "fused/second") == sound
    assert rows_of(fs.open_fused(store, "second")) == expected


def test_interrupted_copies_leave_one_complete_artifact(s3_url, lineage_of_a_model, monkeypatch):
    store = Store.open(f"{s3_url}/some")
    copy_artifacts(lineage_of_a_model, store, ["cache/wide"])
    before = hashes(store.cache("wide"))
    writes = 0

    def fails_at(count):
        def write(location, data):
            nonlocal writes
            writes += 1
            if writes == count:
                raise StorageError("cut off")
            publish_new(location, data)

        return write

    states = []
    # Each attempt goes one document further: fingerprint, three receipts, manifest.
    for count in (1, 2, 2, 2, 2):
        writes = 0
        with monkeypatch.context() as patch:
            patch.setattr(sharing_run, "publish_new", fails_at(count))
            with pytest.raises(StorageError, match="cut off"):
                renaming.rename_artifact(store, "cache/wide", "breit")
        assert hashes(store.cache("wide")) == before
        assert not (store.cache("breit") / "manifest.json").exists()
        states.append(len(store.cache("breit").sizes()))
    assert states == sorted(states)
    with monkeypatch.context() as patch:
        patch.setattr(renaming, "remove_folder", fails_at(1))
        writes = 0
        with pytest.raises(StorageError, match="cut off"):
            renaming.rename_artifact(store, "cache/wide", "breit")
    # Between copy and removal there are both, and the older one is removed by hand.
    assert hashes(store.cache("breit")) == hashes(store.cache("wide")) == before
    with pytest.raises(AlreadyExistsError, match="has cache/breit already"):
        renaming.rename_artifact(store, "cache/wide", "breit")
    fs.open_store(store.location).remove("cache/wide")
    assert hashes(store.cache("breit")) == before


@S3_IS_SLOW
def test_a_note_of_a_person_moves_too(some):
    publish(some.cache("wide") / "README.md", b"mine")
    fs.open_store(some.location).rename("cache/wide", "breit")
    assert (some.cache("breit") / "README.md").read_bytes() == b"mine"
    assert some.cache("wide").sizes() == {}


@S3_IS_SLOW
def test_refusals_change_nothing(some):
    before = hashes(some.location)
    store = fs.open_store(some.location)
    vocabulary = some.names("vocabularies")[0]
    for arguments, error, problem in (
        (("cache/wide", "small"), AlreadyExistsError, "has cache/small already"),
        (("cache/wide", "fused/wide2"), InvalidInputError, "stays a cache"),
        (("cache/wide", "../x"), InvalidInputError, "stays a cache"),
        (("cache/wide", "a b"), InvalidInputError, "cannot be a name"),
        (("cache/wide", "wide"), InvalidInputError, "this name already"),
        ((f"vocabulary/{vocabulary}", "mine"), InvalidInputError, "says what it is"),
    ):
        with pytest.raises(error, match=problem):
            store.rename(*arguments)
    publish(some.cache("wide") / "leases/writer-0123456789abcdef", b"000000000000 1 7\n")
    with pytest.raises(InvalidInputError, match="being written by process 1 of another machine"):
        store.rename("cache/wide", "breit")
    (some.cache("wide") / "leases").delete()
    assert hashes(some.location) == before


def test_damage_is_not_spread(s3_url, lineage_of_a_model):
    store = Store.open(f"{s3_url}/some")
    copy_artifacts(lineage_of_a_model, store, ["cache/wide"])
    publish(store.cache("wide") / "zarr.json", b"damaged")
    before = hashes(store.location)
    with pytest.raises(CorruptionError, match="is damaged and was not renamed"):
        fs.open_store(store.location).rename("cache/wide", "breit")
    assert hashes(store.location) == before
