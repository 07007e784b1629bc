"""JSON documents that are too large, too deep, or speak of what is not there."""

import json
import shutil

import pytest

import fusestore as fs
from fusestore.data import StreamingFusedDataset, open_fused
from fusestore.fuse.layout import fused_arrays
from fusestore.fuse.manifest import FusedManifest
from fusestore.storage.location import Location
from fusestore.store.foreign_json import MAX_DEPTH
from fusestore.store.inventory import list_artifacts
from fusestore.store.layout import Store
from fusestore.store.stored_size import file_bytes
from fusestore.workflows.sharing.artifacts import read_artifact
from fusestore.workflows.verification import verify_store
from tests.helpers.limits import refused, within_limits
from tests.helpers.range_server import RangeServer
from tests.helpers.resealed import KINDS, change, read_json, reseal, sealed, write_json
from tests.helpers.some_cases import first, some

BAD_DOCUMENTS = {
    "empty": b"",
    "list": b"[1]",
    "no keys": b"{}",
    "null": b"null",
    "deep": b'{"format_version": 1, "x": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "within the recursion of the parser": sealed(
        {"format_version": 1, "x": json.loads("[" * 200 + "]" * 200)}
    )[0],
    "no UTF-8": b"\xff" * 100,
    "half a pair": b'{"format_version": 1, "x": "\\ud800"}',
    "a long number": b'{"format_version": 1, "x": ' + b"9" * 401 + b"}",
    "a longer number": b'{"format_version": 1, "x": ' + b"9" * 10_000 + b"}",
    "infinity": b'{"format_version": 1, "x": 1e999}',
    "NaN": b'{"format_version": 1, "x": NaN}',
    "only a checksum": sealed({"format_version": 1})[0],
    "wrong types": sealed({"format_version": 1, "fingerprint": [], "plan": 3, "files": "x"})[0],
    "keys of a list": sealed({"format_version": 1, "files": {"a": [1, 2]}})[0],
    "a checksum that is none": b'{\n  "checksum": 5,\n  "format_version": 1\n}\n',
}

ARTIFACTS = (
    "corpora/addresses",
    "vocabularies/2fc7ebcd56fd74cb",
    "caches/exact",
    "vocabulary_maps/90d78994042a034f-3db84913482aecae-prefix",
    "alignments/wide--small",
    "fits/*",
    "fused/mince",
    "fused/mixed",
    "models/fused",
)


@pytest.mark.parametrize("name", some(BAD_DOCUMENTS, "no keys", "deep"))
def test_one_bad_manifest_leaves_the_others_listed(store, name):
    opened = Store.open(store)
    whole = {artifact.path for artifact in list_artifacts(opened)}
    bad = [next(store.glob(folder)) / "manifest.json" for folder in ARTIFACTS]
    for file in bad:
        file.write_bytes(BAD_DOCUMENTS[name])
    with within_limits():
        found = list_artifacts(opened)
        assert {artifact.path for artifact in found} == whole
        assert {each.path for each in found if each.damage} == {
            f"{each.kind.name}/{each.name}"
            for each in found
            if each.location.path / "manifest.json" in bad
        }
        sound = [findings for findings in verify_store(opened).values() if not findings]
        assert len(sound) == len(whole) - len(bad)
        for artifact in found:
            if artifact.damage:
                refused(lambda path=artifact.path: read_artifact(opened, path))
    refused(lambda: open_fused(store, "mince"))
    refused(lambda: StreamingFusedDataset(store / "fused/mixed", cache_dir=store))
    refused(lambda: fs.open_cache(store, "exact"))


def lists(megabytes):
    return b'{"format_version": 1, "x": [' + b"[]," * (megabytes * 2**20 // 3) + b"[]]}"


def objects(megabytes):
    return b'{"format_version": 1, "x": [' + b'{"a":1},' * (megabytes * 2**17) + b"1]}"


def one_text(megabytes, filler=b"x"):
    return b'{"format_version": 1, "x": "' + filler * (megabytes * 2**20 // len(filler)) + b'"}'


def keys(number):
    return sealed({"format_version": 1, **{f"k{index}": index for index in range(number)}})[0]


LARGE = {
    "lists": lambda: lists(40),
    "fewer lists": lambda: lists(2),
    "objects": lambda: objects(40),
    "text": lambda: one_text(40),
    "emoji": lambda: one_text(30, "😀".encode()),
    "white space": lambda: one_text(7, b"x") + b" " * 2**20,
    "keys": lambda: keys(100_000),
}


@pytest.mark.parametrize("name", some(LARGE, "lists"))
def test_a_document_takes_no_gigabytes(store, name):
    file = store / "caches/exact/manifest.json"
    file.write_bytes(LARGE[name]())
    opened = Store.open(store)
    with within_limits():
        damaged = [each.path for each in list_artifacts(opened) if each.damage]
        assert damaged == ["cache/exact"]
    refused(lambda: fs.open_cache(store, "exact"))
    with within_limits():
        assert verify_store(opened, "cache/exact", quick=True)["cache/exact"]


@pytest.mark.parametrize(
    "path",
    some(
        [
            "caches/exact/manifest.json",
            "caches/exact/receipts/000000.json",
            "fused/mince/manifest.json",
            "fused/mince/ids/zarr.json",
            "fused/mixed/local/manifest.json",
            "vocabularies/2fc7ebcd56fd74cb/vocabulary.parquet",
            "vocabulary_maps/90d78994042a034f-3db84913482aecae-prefix/map.parquet",
            "corpora/addresses/tokens/2fc7ebcd56fd74cb/manifest.json",
            "alignments/wide--small/unmatched.parquet",
        ],
        "fused/mince/ids/zarr.json",
    ),
)
def test_a_file_of_three_gigabytes_is_not_read_whole(store, path, tmp_path):
    with (store / path).open("r+b") as file:
        file.truncate(3 * 2**30)
    opened = Store.open(store)
    with within_limits():
        list_artifacts(opened)
        artifact = path_in("/".join(path.split("/")[:2]))
        assert verify_store(opened, artifact)[artifact]
    if path.startswith("fused/mince"):
        refused(lambda: open_fused(store, "mince")[0])
    if path.startswith("fused/mixed"):
        refused(lambda: open_fused(store, "mixed", cache_dir=tmp_path)[0])


COUNTS = (10**12, 2**62, 2**63 - 1, 2**63, 10**400, -1, 2.5, None)


@pytest.mark.parametrize("count", some(COUNTS, 10**12), ids=lambda count: str(count)[:12])
@pytest.mark.parametrize(
    ("folder", "keys"),
    first(
        4,
        [
            ("caches/exact", ["fingerprint__num_tokens"]),
            ("fused/mince", ["num_tokens", "plan__num_tokens"]),
            ("fused/mixed", ["num_tokens", "plan__num_tokens"]),
            ("alignments/wide--small", ["fingerprint__num_documents"]),
            ("caches/exact", ["fingerprint__num_documents"]),
            ("caches/exact", ["fingerprint__top_k", "fingerprint__model__vocab_size"]),
            ("caches/exact", ["fingerprint__rows_per_shard", "fingerprint__rows_per_chunk"]),
            ("caches/instructions", ["fingerprint__kept__num_rows", "fingerprint__num_tokens"]),
            ("caches/exact", ["num_bytes"]),
            ("fused/mince", ["plan__recipe__top_k"]),
            ("fused/mince", ["plan__recipe__rows_per_shard"]),
            ("fused/mixed", ["plan__recipe__top_k"]),
            ("fused/answers", ["num_windows"]),
            ("fused/answers", ["plan__recipe__window_length"]),
            ("alignments/wide--small", ["fingerprint__num_target_tokens"]),
            ("vocabulary_maps/90d78994042a034f-3db84913482aecae-prefix", ["num_source_ids"]),
            ("vocabularies/2fc7ebcd56fd74cb", ["num_tokens"]),
            ("corpora/addresses", ["num_documents"]),
            ("corpora/addresses", ["num_bytes"]),
        ],
    ),
    ids=lambda value: value.split("/")[0] if isinstance(value, str) else value[0],
)
def test_numbers_of_what_is_not_there(first_store, tmp_path, folder, keys, count):
    """Whatever a manifest says, nothing loops over it and no memory is taken for it."""
    root = tmp_path / "store"
    for name in {folder, "vocabularies/2fc7ebcd56fd74cb"}:
        shutil.copytree(first_store / name, root / name)
    file = root / folder / "manifest.json"
    if count in (10**400, 2.5):
        before = file.read_bytes()
        content = read_json(file)
        inside = content
        *above, last = keys[0].split("__")
        for key in above:
            inside = inside[key]
        inside[last] = count
        file.write_bytes(json.dumps(content).encode())
        assert file.read_bytes() != before
    else:
        change(file, **dict.fromkeys(keys, count))
        reseal_quietly(root / folder)
    opened = Store.open(root)
    path = next(each.path for each in list_artifacts(opened) if folder.endswith(each.name))
    with within_limits():
        findings = verify_store(opened, path)[path]
        verify_store(opened, path, quick=True)
    # A size that says nothing else of the artifact may be anything.
    assert findings or keys in (["num_bytes"], ["plan__recipe__window_length"])
    for read in readers(root, folder, tmp_path):
        with within_limits():
            try:
                read()
            except fs.FusestoreError:
                continue


def reseal_quietly(folder):
    try:
        reseal(folder)
    except (ValueError, TypeError, fs.FusestoreError):
        write_json(folder / "manifest.json", read_json(folder / "manifest.json"))


def readers(root, folder, tmp_path):
    kind, name = folder.split("/")
    if kind == "caches":
        yield lambda: fs.open_cache(root, name)[:]
        yield lambda: fs.open_cache(root, name).document(0)
        yield lambda: fs.open_cache(root, name).tokens
    elif kind == "fused":
        yield lambda: open_fused(root, name, cache_dir=tmp_path / "open")[0]
        yield lambda: open_fused(root, name, cache_dir=tmp_path / "open").order(0, 0)
        yield lambda: list(StreamingFusedDataset(root / folder, cache_dir=tmp_path / "cache"))
    yield lambda: fs.sharing.copy_artifacts(
        Store.open(root), Store.open(tmp_path / "copy"), [path_in(folder)]
    )


def path_in(folder):
    kind, name = folder.split("/")
    return f"{KINDS[kind]}/{name}"


@pytest.mark.parametrize("num_bytes", some([52 * 10**12, 2**63 - 1], 2**63 - 1))
def test_a_copy_ends_where_the_file_ends(store, tmp_path, num_bytes):
    """Each empty piece beyond the end was read as if it were one."""
    for folder in ("caches/exact", "fused/mince", "models/fused"):
        for file in (store / folder).rglob("*.json"):
            content = read_json(file)
            for record in content.get("files", {}).values():
                record["num_bytes"] = num_bytes
            if "files" in content:
                write_json(file, content)
        path = path_in(folder)
        refused(
            lambda path=path: fs.sharing.copy_artifacts(
                Store.open(store), Store.open(tmp_path / "copy"), [path]
            )
        )


def test_a_depth_that_we_read(tmp_path):
    file = tmp_path / "x.json"
    deep = json.loads("[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2))
    file.write_bytes(sealed({"format_version": 1, "x": deep})[0])
    from fusestore.store.manifest import manifest_content

    assert manifest_content(file.read_bytes(), "x")["x"] == deep
    assert Location.parse(file).exists()


@pytest.mark.parametrize("lies_about_files", [False, True])
def test_a_stream_of_billions_of_windows_ends_when_it_is_opened(
    first_store, tmp_path, lies_about_files
):
    """Nobody has such files, and no memory is taken for an order of their windows."""
    root = tmp_path / "fused/mince"
    shutil.copytree(first_store / "fused/mince", root)
    manifest = FusedManifest.load(Location.parse(root / "manifest.json"))
    count = 2**31 - 2
    recipe = manifest.plan.recipe.model_copy(update={"window_length": 1, "rows_per_shard": count})
    plan = manifest.plan.model_copy(update={"recipe": recipe, "num_tokens": count})
    files = dict(manifest.files)
    if lies_about_files:
        for spec in fused_arrays(count, recipe.top_k, count):
            name = spec.file_name(0)
            files[name] = files[name].model_copy(update={"num_bytes": file_bytes(spec) + 4})
    changes = {"plan": plan, "plan_digest": plan.digest, "num_tokens": count, "files": files}
    (root / "manifest.json").write_bytes(manifest.model_copy(update=changes).to_bytes())
    says = "the dataset's manifest says" if lies_about_files else "it lists .* bytes"
    with RangeServer(tmp_path) as server:
        url = f"{server.url}/fused/mince"
        refused(lambda: StreamingFusedDataset(url, cache_dir=tmp_path / "cache"), says)
