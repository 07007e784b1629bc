"""Fused datasets that change their form on the way, and models found by what they came from."""

import shutil

import numpy as np
import pytest

from fusestore.data.dataset import FusedDataset, open_fused
from fusestore.errors import AlreadyExistsError, CorruptionError, NotFoundError
from fusestore.fuse import shared as fused_shared
from fusestore.fuse.manifest import FusedManifest, FusionPlan
from fusestore.fuse.shared import pack_fused, unpack_fused
from fusestore.storage.publish import publish as published
from fusestore.store.layout import Store
from fusestore.store.receipts import FileRecord
from fusestore.workflows.sharing import CopySettings, copy_artifacts
from fusestore.workflows.sharing.artifacts import paths_in
from fusestore.workflows.verification import verify_store
from tests.helpers.resealed_documents import content_of, sealed
from tests.helpers.tiny_job import hashes

MIXED = ["fused/mixed"]


@pytest.fixture
def source(store):
    """A store with the dataset `mixed` in the shared form, `mince` in the local one."""
    return Store.open(store)


@pytest.fixture
def empty(tmp_path):
    return Store.open(tmp_path / "empty")


@pytest.fixture
def bucket(s3_url):
    return Store.open(f"{s3_url}/bucket")


def of_mixed(unpacked):
    return {
        path.removeprefix("fused/mixed/"): digest
        for path, digest in unpacked.items()
        if path.startswith("fused/mixed/")
    }


def form_of(store, name):
    return FusedManifest.load(store.fused(name) / "manifest.json").form


def test_in_a_folder_it_arrives_in_the_local_form_and_opens(source, empty, unpacked, tmp_path):
    (result,) = copy_artifacts(source, empty, MIXED)
    assert (result.artifact, result.already_there) == ("fused/mixed", False)
    assert hashes(empty.fused("mixed")) == of_mixed(unpacked)
    assert form_of(empty, "mixed") == "local"
    dataset = open_fused(empty.location, "mixed")
    assert dataset.folder == empty.fused("mixed").path
    other = open_fused(source.location, "mixed", cache_dir=tmp_path / "kept")
    assert dataset.digest == other.digest
    for window in range(len(other)):
        for key, values in other[window].items():
            assert np.array_equal(values, dataset[window][key])
    assert verify_store(empty)["fused/mixed"] == []


def test_in_another_bucket_it_stays_as_it_is(source, bucket, tmp_path):
    copy_artifacts(source, bucket, MIXED)
    second = Store.open(f"{bucket.location.url}-2")
    copy_artifacts(bucket, second, MIXED)
    assert hashes(second.fused("mixed")) == hashes(source.fused("mixed"))
    assert form_of(second, "mixed") == "shared"
    assert len(open_fused(second.location, "mixed", cache_dir=tmp_path / "kept")) > 0


def test_a_target_that_has_the_other_form_has_it(source, empty, bucket):
    copy_artifacts(source, bucket, MIXED)
    copy_artifacts(source, empty, MIXED)
    for here, there in ((empty, bucket), (bucket, empty), (empty, source), (source, empty)):
        before = hashes(there.location)
        (result,) = copy_artifacts(here, there, MIXED, CopySettings(check=True))
        assert result.already_there
        assert (result.num_files, result.num_bytes) == (0, 0)
        assert hashes(there.location) == before


def other_plan(target, *, complete):
    """Leave a dataset of another plan under the name, finished in its own form or begun."""
    location = target.fused("mixed")
    manifest = FusedManifest.load(location / "manifest.json")
    plan = manifest.plan.model_copy(update={"vocab_size": 7})
    location.delete()
    if complete:
        changed = manifest.model_copy(update={"plan": plan, "plan_digest": plan.digest})
        changed.save(location / "manifest.json")
    plan.save(location / "fingerprint.json")
    return plan.digest


@pytest.mark.parametrize("complete", [True, False])
def test_another_dataset_of_the_name_is_refused_and_nothing_copied(source, empty, complete):
    ours = FusionPlan.load(source.fused("mixed") / "fingerprint.json").digest
    copy_artifacts(source, empty, MIXED)
    theirs = other_plan(empty, complete=complete)
    before = hashes(empty.location)
    for names in (["cache/wide", *MIXED], None):
        with pytest.raises(AlreadyExistsError, match=r"Nothing was copied") as refused:
            copy_artifacts(source, empty, names)
        assert ours in str(refused.value)
        assert theirs in str(refused.value)
        assert hashes(empty.location) == before


def test_the_local_form_does_not_replace_another_shared_one(source, empty, bucket):
    copy_artifacts(source, bucket, MIXED)
    copy_artifacts(source, empty, MIXED)
    other_plan(empty, complete=True)
    before = hashes(bucket.location)
    with pytest.raises(AlreadyExistsError, match="another fused dataset"):
        copy_artifacts(empty, bucket, MIXED)
    assert hashes(bucket.location) == before


@pytest.mark.parametrize(
    ("path", "data", "named"),
    [
        ("ids/c/0/0", b"something", "fingerprint.json"),
        ("fingerprint.json", b"{}", "fingerprint.json"),
        ("manifest.json", b"{}", "manifest.json"),
    ],
)
def test_files_that_nobody_claims_are_left_alone(source, empty, path, data, named):
    folder = empty.fused("mixed").path
    (folder / path).parent.mkdir(parents=True)
    (folder / path).write_bytes(data)
    if path == "manifest.json":
        shutil.copy(source.fused("mixed").path / "fingerprint.json", folder)
    before = hashes(empty.location)
    with pytest.raises(AlreadyExistsError, match=named):
        copy_artifacts(source, empty, ["cache/wide", *MIXED])
    assert hashes(empty.location) == before


class Stopped(Exception):  # noqa: N818 - it stands for a killed process
    """The process ends here."""


def test_interrupted_unpacking_goes_on(source, empty, unpacked, monkeypatch):
    """After any number of files it is unfinished; what is there is not written again."""
    whole = of_mixed(unpacked)
    write = published
    written = []

    def stop_after(count):
        def publish(location, data):
            if len(written) == count:
                raise Stopped
            written.append(location)
            write(location, data)

        monkeypatch.setattr(fused_shared, "publish", publish)

    for count in range(0, len(whole) - 2, 4):
        empty.location.delete()
        written.clear()
        stop_after(count)
        with pytest.raises(Stopped):
            copy_artifacts(source, empty, MIXED)
        assert paths_in(empty) == {"fused/mixed": False}
        with pytest.raises(NotFoundError):
            FusedDataset(empty.fused("mixed").path)
        before = set(written)
        written.clear()
        stop_after(-1)
        (result,) = copy_artifacts(source, empty, MIXED)
        assert not result.already_there
        assert not before.intersection(written)
        assert hashes(empty.fused("mixed")) == whole


def test_a_damaged_shared_form_does_not_arrive(source, empty):
    file = source.fused("mixed").path / "logprobs/c/0/0"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(CorruptionError, match="mixed"):
        copy_artifacts(source, empty, ["vocabulary/" + a_vocabulary(source), *MIXED])
    assert paths_in(empty)["fused/mixed"] is False
    assert paths_in(empty)["vocabulary/" + a_vocabulary(source)]


def a_vocabulary(store):
    return next(n for n in paths_in(store) if n.startswith("vocabulary/")).partition("/")[2]


def rewrite_local(source, change):
    """Change local/manifest.json of the shared form, and all that vouches for it."""
    folder = source.fused("mixed").path
    inner = content_of(folder / "local/manifest.json")
    change(inner)
    data = sealed(inner)
    (folder / "local/manifest.json").write_bytes(data)
    outer = content_of(folder / "manifest.json")
    outer["files"]["local/manifest.json"] = FileRecord.of(data).model_dump()
    (folder / "manifest.json").write_bytes(sealed(outer))


def test_a_shared_form_writes_nothing_outside_its_folder(source, empty):
    """Its checksums are right: whoever made it wanted another file written."""
    evil = b"evil"
    (source.fused("mixed").path / "evil").write_bytes(evil)
    record = FileRecord.of(evil).model_dump()
    rewrite_local(source, lambda inner: inner["files"].update({"../evil": record}))
    with pytest.raises(CorruptionError, match=r"lists a file '\.\./evil'"):
        copy_artifacts(source, empty, MIXED)
    assert not empty.location.exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda inner: inner["files"].pop("ids/c/0/0"), "does not list 'ids/c/0/0'"),
        (lambda inner: inner["plan"].update(vocab_size=7), "is not the manifest of the dataset"),
        (lambda inner: inner.update(form="shared"), "is not the manifest of the dataset"),
    ],
)
def test_a_shared_form_that_holds_something_else(source, empty, change, problem):
    rewrite_local(source, change)
    with pytest.raises(CorruptionError, match=problem):
        copy_artifacts(source, empty, MIXED)
    assert not empty.location.exists()


def test_a_shared_form_without_the_local_manifest(source, empty):
    manifest = source.fused("mixed").path / "manifest.json"
    content = content_of(manifest)
    del content["files"]["local/manifest.json"]
    manifest.write_bytes(sealed(content))
    with pytest.raises(CorruptionError, match=r"does not list local/manifest\.json"):
        unpack_fused(source.fused("mixed"), empty.fused("mixed"))


def test_a_merged_model_is_shared_alone(source, bucket, empty):
    """What it was merged from is known by digest, and comes from outside the store."""
    (result,) = copy_artifacts(source, bucket, ["model/merged"], CopySettings(inputs=True))
    assert result.artifact == "model/merged"
    copy_artifacts(bucket, empty, ["model/merged"])
    assert hashes(empty.location) == {
        path: digest
        for path, digest in hashes(source.location).items()
        if path.startswith("models/merged/")
    }
    assert verify_store(empty) == {"model/merged": []}


def test_a_trained_model_finds_its_dataset_in_the_shared_form(source, empty, tmp_path, unpacked):
    """By the digest of the plan: whatever the dataset's name and form are now."""
    renamed = source.fused("renamed")
    pack_fused(source.fused("mince"), renamed)
    source.fused("mince").delete()
    results = copy_artifacts(source, empty, ["model/fused"], CopySettings(inputs=True))
    names = {result.artifact for result in results}
    assert {"model/fused", "fused/renamed", "cache/small", "alignment/wide--small"} <= names
    assert {
        path.removeprefix("fused/mince/"): digest
        for path, digest in unpacked.items()
        if path.startswith("fused/mince/")
    } == hashes(empty.fused("renamed"))
    renamed.delete()
    with pytest.raises(NotFoundError, match=r"model/fused was made from a fused dataset with"):
        copy_artifacts(
            source, Store.open(tmp_path / "other"), ["model/fused"], CopySettings(inputs=True)
        )
    assert not (tmp_path / "other").exists()
