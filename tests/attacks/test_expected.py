"""`--expect` and `digest=`: a store made again with sound checksums is told from its author's."""

import shutil

import pytest

from fusestore.cache.reader import open_cache
from fusestore.data import StreamingFusedDataset
from fusestore.data.dataset import open_fused
from fusestore.errors import CorruptionError, InvalidInputError
from fusestore.store.layout import Store
from fusestore.store.manifest import canonical_json, digest_bytes
from fusestore.store.receipts import FileRecord
from fusestore.workflows.sharing import CopySettings, copy_artifacts
from fusestore.workflows.sharing.artifacts import paths_in, read_artifact
from fusestore.workflows.sharing.closure import with_needed
from tests.helpers.resealed_documents import content_of, relist, reseal
from tests.helpers.slow_rest import first

WHAT = "not what was expected"


def digests(command, store, tmp_path, *names, source=None):
    """What the author's `push` prints, to be given another way than the store."""
    arguments = ["push", *names, "--from", store, "--to", source or tmp_path / "published"]
    pushed = command.succeeds(*arguments).out
    return [line.split()[1] for line in pushed.splitlines() if line.startswith("  --expect ")]


def expecting(found):
    return [each for digest in found for each in ("--expect", digest)]


def forge(folder):
    """Other values in the first file of ids, with every checksum made again."""
    import google_crc32c

    chunk = folder / "ids/c/0/0"
    data = bytearray(chunk.read_bytes())
    data[0] ^= 1
    data[-4:] = google_crc32c.value(bytes(data[:-4])).to_bytes(4, "little")
    chunk.write_bytes(data)
    receipt = folder / "receipts/000000.json"
    record = FileRecord.of(bytes(data)).model_dump()
    reseal(receipt, lambda content: content["files"].update({"ids/c/0/0": record}))
    relist(folder, "ids/c/0/0", "receipts/000000.json")


@pytest.mark.parametrize(
    "name", first(2, ["cache/wide", "fused/mixed", "fused/mince", "corpus/addresses"])
)
def test_a_copy_is_held_to_its_authors_digests(command, store, tmp_path, name):
    published, target = tmp_path / "published", tmp_path / "target"
    if name == "fused/mixed":
        # The shared form, as it lies on object storage.
        found = [f"{name}=sha256:{content_checksum(store / name)}"]
        published = store
    else:
        found = digests(command, store, tmp_path, name)
    held = expecting(found)
    assert any(each.startswith(f"{name}=sha256:") for each in found)
    wrong = [each[:-1] + ("0" if each[-1] != "0" else "1") for each in found]
    message = command.fails("pull", name, "--from", published, "-s", target, *expecting(wrong))
    assert WHAT in message
    assert not target.exists()
    command.succeeds("pull", name, "--from", published, "--to", target, *held)
    assert command.succeeds("pull", name, "--from", published, "--to", target, *held)
    command.succeeds("verify", name, "--store", target)


def content_checksum(folder):
    return digest_bytes(canonical_json(content_of(folder / "manifest.json")))


def test_a_forged_dataset_verifies_and_is_refused(command, store, tmp_path):
    found = digests(command, store, tmp_path, "fused/mince")
    published = tmp_path / "published"
    forge(published / "fused/mince")
    command.succeeds("pull", "fused/mince", "--from", published, "--to", tmp_path / "fooled")
    message = command.fails(
        "pull", "fused/mince", "--from", published, "--to", tmp_path / "t", *expecting(found)
    )
    assert WHAT in message
    assert not (tmp_path / "t").exists()
    digest = found[0].partition("=")[2]
    for url in (published, tmp_path / "fooled"):
        with pytest.raises(CorruptionError, match=WHAT):
            open_fused(url, "mince", digest=digest)
        with pytest.raises(CorruptionError, match=WHAT):
            StreamingFusedDataset(url / "fused/mince", digest=digest)
    assert len(open_fused(store, "mince", digest=digest))
    assert len(list(StreamingFusedDataset(store / "fused/mince", digest=digest)))


def test_files_behind_a_sound_manifest_are_checked_too(store, tmp_path):
    """The manifest is the author's, but a file was exchanged, with its CRC-32C made again."""
    digest = content_checksum(store / "fused/mince")
    other = tmp_path / "other"
    shutil.copytree(store / "fused/mince", other)
    forge(other)
    shutil.copy(other / "ids/c/0/0", store / "fused/mince/ids/c/0/0")
    assert open_fused(store, "mince")[0]
    with pytest.raises(CorruptionError, match="damaged"):
        open_fused(store, "mince", digest=digest)
    with pytest.raises(CorruptionError, match="damaged"):
        StreamingFusedDataset(store / "fused/mince", digest=digest)


def test_an_exchanged_copy_is_noticed_again(command, store, tmp_path):
    """A copy that lies there already is not believed: its files are read."""
    found = expecting(digests(command, store, tmp_path, "fused/mince"))
    arguments = ["pull", "fused/mince", "--from", tmp_path / "published", "--to", tmp_path / "t"]
    command.succeeds(*arguments, *found)
    file = tmp_path / "t/fused/mince/ids/c/0/0"
    whole = file.read_bytes()
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    command.succeeds(*arguments, *found)
    assert file.read_bytes() == whole


def test_a_cache_is_held_to_its_digest(store, tmp_path):
    digest = content_checksum(store / "caches/wide")
    assert len(open_cache(store, "wide", digest=f"sha256:{digest}"))
    with pytest.raises(CorruptionError, match=WHAT):
        open_cache(store, "wide", digest="0" * 64)
    with pytest.raises(InvalidInputError, match="is no digest"):
        open_cache(store, "wide", digest=digest[:16])
    reseal(store / "caches/wide/receipts/000000.json", lambda content: content.update(stop=99))
    with pytest.raises(CorruptionError, match="do not match its manifest"):
        open_cache(store, "wide", digest=digest)


def test_tokens_of_a_corpus_are_not_covered_and_not_copied(store, tmp_path):
    target = tmp_path / "target"
    digest = f"corpus/addresses={content_checksum(store / 'corpora/addresses')}"
    copy_artifacts(
        Store.open(store), Store.open(target), ["corpus/addresses"], CopySettings(expect=(digest,))
    )
    assert (target / "corpora/addresses/documents.parquet").exists()
    assert not (target / "corpora/addresses/tokens").exists()


@pytest.mark.parametrize(
    ("expect", "message"),
    first(
        2,
        [
            (["nonsense"], "is no digest"),
            (["cache/wide=12"], "is no digest"),
            (["0" * 64], "No digest is expected of vocabulary/"),
            (["cache/small=" + "0" * 64], "which is not copied"),
        ],
    ),
)
def test_what_cannot_be_expected(store, tmp_path, expect, message):
    with pytest.raises(InvalidInputError, match=message):
        copy_artifacts(
            Store.open(store), Store.open(tmp_path / "t"), ["cache/wide"],
            CopySettings(expect=tuple(expect)),
        )  # fmt: skip
    assert not (tmp_path / "t").exists()


def test_the_digest_of_a_manifest_covers_every_file(store):
    """For each kind: a change of any file that a held copy takes changes the manifest."""
    opened = Store.open(store)
    for path in paths_in(opened):
        artifact = read_artifact(opened, path)
        held = artifact.path
        names = {name for group in artifact.groups for name in group.files}
        listed = artifact.manifest.data.decode()
        receipts = [group.receipt for group in artifact.groups if group.receipt is not None]
        covered = {name for name in names if f'"{name}"' in listed}
        # A cache names its receipts by one digest, and a corpus its documents by what they say.
        if held.startswith(("cache/", "corpus/")):
            assert "content_digest" in listed or "documents_digest" in listed
        else:
            assert covered == names, held
            assert all(f'"{receipt.path}"' in listed for receipt in receipts)
    assert with_needed(opened, ["cache/wide"])[-1] == "cache/wide"


def test_show_prints_what_copies_can_be_held_to(command, store):
    shown = command.succeeds("show", "fused/mince", "--store", store)
    checksum = content_checksum(store / "fused/mince")
    assert f"manifest:  {checksum}" in shown.out
    as_json = command.succeeds("show", "fused/mince", "--store", store, "--json").json
    assert as_json["manifest_digest"] == checksum
