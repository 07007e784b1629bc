"""Nothing is written outside the folder that was named, whatever names a store holds.

Faults 1, 2 and 23 of the trial, and their kind: keys of listings, paths of manifests and receipts,
and symbolic links.
"""

import shutil
import urllib.request
import uuid
from pathlib import Path
from urllib.parse import quote

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusestore.cache.reader import open_cache
from fusestore.data import StreamingFusedDataset
from fusestore.data.dataset import open_fused
from fusestore.errors import FusestoreError, InvalidInputError
from fusestore.models.model import Model
from fusestore.storage.foreign_names import inside, listed_inside
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.store.receipts import Receipt
from fusestore.workflows.sharing import copy_artifacts
from tests.helpers.resealed_documents import content_of, record, relist, reseal, sealed
from tests.helpers.slow_rest import first

OUT = "../../../../outside"
EVIL = b'{"evil": true}'


def files_below(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def put(s3_endpoint, bucket_url, key, data):
    """An object under any key: clients would tidy it."""
    bucket = bucket_url.removeprefix("s3://")
    url = f"{s3_endpoint}/{bucket}/{quote(key).replace('..', '%2E%2E')}"
    kind = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(url, data, kind, method="PUT")  # noqa: S310 - of this process
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
        assert answer.status == 200


def upload(s3_endpoint, s3_url, folder, prefix):
    for path, data in files_below(folder).items():
        put(s3_endpoint, s3_url, f"{prefix}/{path}", data)


# Fault 1: every listed key was written to the folder, joined to its path.


@pytest.mark.parametrize("form", first(1, ["{up}/victim", "/{victim}"]))
def test_keys_of_a_bucket_write_nothing_elsewhere(store, tmp_path, s3_url, s3_endpoint, form):
    victim = tmp_path / "victim"
    upload(s3_endpoint, s3_url, store / "fused/mince", "store/fused/mince")
    key = form.format(up="/".join([".."] * 12) + str(tmp_path), victim=str(victim).lstrip("/"))
    put(s3_endpoint, s3_url, f"store/fused/mince/{key}", EVIL)
    opened = open_fused(f"{s3_url}/store", "mince", cache_dir=tmp_path / "cache")
    assert len(opened)
    assert not victim.exists()
    # Only what the manifest lists.
    copied = files_below(opened.folder)
    assert copied.keys() == {*content_of(store / "fused/mince/manifest.json")["files"],
                             "manifest.json"}  # fmt: skip
    with pytest.raises(FusestoreError):
        Location.parse(f"{s3_url}/store/fused/mince").sizes()


def test_keys_of_another_storage_are_refused_too(tmp_path):
    name = uuid.uuid4().hex
    memory = fsspec.filesystem("memory")
    memory.store[f"/{name}/a/../../b"] = (
        memory.pipe_file(f"/{name}/good", b"1") or memory.store[f"/{name}/good"]
    )
    with pytest.raises(InvalidInputError, match="no path inside"):
        Location.parse(f"memory://{name}").listed()


# Fault 2: manifests listed receipts outside, and `pull` wrote them there.


def a_receipt(artifact):
    """A sound receipt that seals no files."""
    first = min((artifact / "receipts").glob("[0-9]*.json"))
    content = content_of(first)
    content["files"] = {}
    return sealed(content)


@pytest.mark.parametrize(
    "path",
    first(4, [
        f"receipts/{OUT}.json", "receipts/a/../../../../../outside.json", "/tmp/outside.json",
        "receipts//outside.json", "receipts/..\\..\\outside.json", "receipts/./x.json",
        "receipts/x\0.json", "C:outside.json", "receipts/x.json ", "receipts/nul.json",
    ]),
)  # fmt: skip
@pytest.mark.parametrize("artifact", first(1, ["fused/mince", "alignments/wide--small"]))
def test_a_manifest_that_lists_a_path_elsewhere(store, tmp_path, artifact, path):
    folder = store / artifact
    data = a_receipt(folder)
    reseal(folder / "manifest.json", lambda content: content["files"].update({path: record(data)}))
    if "\0" not in path:
        (folder / "receipts/a").mkdir()
        target = folder / path if not path.startswith("/") else tmp_path / "unused"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    before = {name for name in files_below(tmp_path) if not name.startswith("target/")}
    name = artifact.replace("alignments", "alignment")
    with pytest.raises(InvalidInputError):
        copy_artifacts(Store.open(store), Store.open(tmp_path / "target"), [name])
    assert {name for name in files_below(tmp_path) if not name.startswith("target/")} == before
    assert not Path("/tmp/outside.json").exists()


@pytest.mark.parametrize("path", first(1, [OUT, "/etc/passwd", "a\\..\\..\\b"]))
def test_a_receipt_that_lists_a_path_elsewhere(store, tmp_path, path):
    file = store / "alignments/wide--small/receipts/000000.json"
    reseal(file, lambda content: content["files"].update({path: record(b"")}))
    relist(store / "alignments/wide--small", "receipts/000000.json")
    with pytest.raises(InvalidInputError):
        copy_artifacts(
            Store.open(store), Store.open(tmp_path / "target"), ["alignment/wide--small"]
        )
    with pytest.raises(InvalidInputError, match="no path inside"):
        Receipt.load(Location.parse(file))


@pytest.mark.slow
def test_a_manifest_of_tokens_under_a_key_elsewhere(store, tmp_path, s3_url, s3_endpoint):
    upload(s3_endpoint, s3_url, store, "store")
    (tokens, *_) = (store / "corpora").glob("*/tokens/*/manifest.json")
    corpus = tokens.parents[2].name
    key = f"store/corpora/{corpus}/tokens/{OUT}/manifest.json"
    put(s3_endpoint, s3_url, key, tokens.read_bytes())
    target = tmp_path / "deep/below/target"
    with pytest.raises(FusestoreError):
        copy_artifacts(Store.open(f"{s3_url}/store"), Store.open(target), [f"corpus/{corpus}"])
    assert not list(tmp_path.rglob("outside*"))


@pytest.mark.parametrize(
    "paths",
    [
        ("ids/c/0/0", "IDS/c/0/0"), ("straße", "STRASSE"), ("\u00e9", "e\u0301"), ("a", "a/b"),
        ("A/x", "a/y"), ("ﬁ", "FI"),
    ],
)  # fmt: skip
def test_two_names_of_one_file_are_refused(paths):
    with pytest.raises(InvalidInputError, match=r"Do not trust this store"):
        listed_inside("folder", paths)
    listed_inside("folder", ["ids/c/0/0", "ids/c/0/1", "ids/zarr.json", "Straße", "b"])


def test_a_manifest_with_two_names_of_one_file_is_not_copied(store, tmp_path):
    folder = store / "fused/mince"
    (folder / "ZARR.json").write_bytes(EVIL)
    reseal(
        folder / "manifest.json",
        lambda content: content["files"].update({"ZARR.json": record(EVIL)}),
    )
    target = tmp_path / "target"
    with pytest.raises(InvalidInputError, match="one file or folder"):
        copy_artifacts(Store.open(store), Store.open(target), ["fused/mince"])
    assert not target.exists()


@given(st.text(st.sampled_from("./a\\\0é"), max_size=8))
def test_no_name_leads_out_of_a_location(name):
    """Whatever is accepted lies below the folder, by the rules of this system."""
    folder = Path("/some/folder")
    try:
        inside(folder, name)
    except InvalidInputError:
        with pytest.raises(InvalidInputError):
            _ = Location("/some/folder") / name
        return
    resolved = Path(folder, name).resolve()
    assert resolved.is_relative_to(folder)
    assert resolved != folder
    assert (Location("/some/folder") / name).url == f"/some/folder/{name}"


# Fault 23: names of artifacts were joined to paths unchecked.


@pytest.mark.parametrize(
    "name", first(2, ["../x/y", "x\0y", "..", "a/../../x", "/etc", "", "a\\b", "C:x"])
)
def test_names_of_artifacts_are_names(command, store, name):
    for opener in (open_fused, open_cache):
        with pytest.raises(InvalidInputError):
            opener(store, name)
    with pytest.raises(InvalidInputError):
        StreamingFusedDataset(f"{store}/fused/x\0")
    if name and "\0" not in name:
        for line in ("verify vocabulary/{}", "rm cache/{}", "show cache/{}", "mv cache/{} new"):
            outcome = command(*line.format(name).split(), "--store", store)
            assert outcome.code in (1, 2)
            assert "defect" not in outcome.err


# Symbolic links of a local store, as a stranger's archive unpacks them.


@pytest.fixture
def linked(store, tmp_path):
    """A store in which a file and a folder are links to what lies outside it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    chunk = store / "fused/mince/ids/c/0/0"
    shutil.copyfile(chunk, outside / "chunk")
    chunk.unlink()
    chunk.symlink_to(outside / "chunk")
    shutil.copytree(store / "caches/wide", outside / "wide")
    shutil.rmtree(store / "caches/wide")
    (store / "caches/wide").symlink_to(outside / "wide")
    return store, outside


OUT_BY_A_LINK = "leads out of"


def test_what_is_behind_a_link_is_not_read(command, linked):
    store, _ = linked
    with pytest.raises(InvalidInputError, match=OUT_BY_A_LINK):
        open_fused(store, "mince")[0]
    with pytest.raises(InvalidInputError, match=OUT_BY_A_LINK):
        open_cache(store, "wide")
    assert "damaged" in command.succeeds("ls", "--store", store).out
    found = " ".join(command("verify", "fused/mince", "-s", store).out.split())
    assert "ids/c/0/0: is a symbolic link that leads out of the store" in found
    assert command("verify", "cache/wide", "-s", store).code == 1


@pytest.mark.parametrize("artifact", first(1, ["fused/mince", "cache/wide"]))
def test_what_is_behind_a_link_is_not_shared(command, linked, tmp_path, artifact):
    store, _ = linked
    for verb in ("push", "pull"):
        message = command.fails(verb, artifact, "--from", store, "--to", tmp_path / "target")
        assert OUT_BY_A_LINK in " ".join(message.split())


def test_removing_follows_no_link(command, linked):
    store, outside = linked
    before = files_below(outside)
    command.succeeds("gc", "--store", store, "--older-than", "0")
    command.succeeds("rm", "fused/mince", "cache/wide", "--cascade", "--yes", "--store", store)
    assert files_below(outside) == before
    assert not (store / "fused/mince").exists()
    assert not (store / "caches/wide").is_symlink()


@pytest.mark.slow
def test_renaming_moves_a_link_and_nothing_behind_it(command, linked):
    store, outside = linked
    before = files_below(outside)
    command("mv", "fused/mince", "new", "--store", store)
    assert command("mv", "cache/wide", "new", "--store", store).code == 1
    assert files_below(outside) == before


@pytest.mark.parametrize(
    "where", first(2, ["fused", "fused/mince/ids/c", "fused/mince", "fused/mince/ids"])
)
def test_nothing_is_written_behind_a_link(command, store, tmp_path, where):
    """The target of a pull is a store that a stranger prepared."""
    target, outside = tmp_path / "target", tmp_path / "outside"
    outside.mkdir()
    (target / where).parent.mkdir(parents=True)
    (target / where).symlink_to(outside)
    message = command.fails("pull", "fused/mince", "--from", store, "--to", target)
    assert OUT_BY_A_LINK in " ".join(message.split())
    assert list(outside.iterdir()) == []


def test_a_store_may_be_a_link_and_hold_links_inside(command, store, tmp_path):
    chunk = store / "fused/mince/ids/c/0/0"
    chunk.rename(store / "fused/mince/moved")
    chunk.symlink_to(store / "fused/mince/moved")
    (tmp_path / "link").symlink_to(store)
    assert len(open_fused(tmp_path / "link", "mince")[0])
    command.succeeds("verify", "fused/mince", "--store", tmp_path / "link")


def test_a_file_of_a_model_that_is_a_link_is_not_copied_into_others(store, tmp_path):
    """`train` copies a license: of ~/.ssh/id_rsa, if it were a link to it."""
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    (store / "models/fused/LICENSE").symlink_to(secret)
    with pytest.raises(InvalidInputError, match=OUT_BY_A_LINK):
        _ = Model.open("fused", store=Store.open(store)).folder
