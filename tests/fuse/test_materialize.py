"""Fused datasets on disk: any Zarr reader opens them, and a stopped run goes on where it was."""

import numpy as np
import pytest
import zarr

from fusestore.errors import (
    FingerprintMismatchError,
    IncompatibleError,
    InvalidInputError,
    NonFiniteError,
    NotFoundError,
)
from fusestore.fuse.folder import FusedFolder
from fusestore.fuse.fusion import prepare
from fusestore.fuse.inputs import SourceInput
from fusestore.fuse.manifest import FusedManifest, FusionPlan
from fusestore.fuse.materialize import materialize
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.shard import fuse_rows
from fusestore.progress import ignore_progress
from fusestore.storage.location import Location

VOCAB = 20
ARRAYS = {
    "input_ids": "int32",
    "next_ids": "int32",
    "ids": "int32",
    "logprobs": "float32",
    "tail": "float32",
    "known": "float32",
    "kind": "uint8",
    "source": "int16",
    "document": "int32",
}


def make(helpers, seed=0, **choices):
    """Arguments of `prepare`: ten documents, a split of eight, three sources."""
    rng = np.random.default_rng(seed)

    def tokens():
        return helpers.table(
            [
                [(int(rng.integers(VOCAB)), end + 1) for end in range(int(rng.integers(3, 12)))]
                for _ in range(10)
            ]
        )

    target = tokens()

    def source(name, own, alignment=None, skipped=frozenset()):
        last = own.document_offsets[1:] - 1
        rows = helpers.random_rows(rng, own.num_tokens, 4, VOCAB, last)
        return SourceInput(
            name,
            helpers.cache(own, rows, skipped),
            f"cache-{name}",
            "corpus",
            None if alignment is None else rng.integers(-1, VOCAB, VOCAB).astype(np.int32),
            alignment,
        )

    def aligned(own):
        parts = []
        for document in range(10):
            size, goal = (len(t.document(document)[0]) for t in (own, target))
            position = np.where(np.arange(goal) < size, np.arange(goal), -1)
            parts.append((position.astype(np.int32), (position >= 0).astype(np.uint8)))
        return helpers.alignment(parts)

    second, third = tokens(), tokens()
    recipe = {
        "corpus": "c",
        "split": "train",
        "target": "t",
        "top_k": 3,
        "window_length": 7,
        "rows_per_shard": 16,
        "sources": [{"cache": "a"}, {"cache": "b"}, {"cache": "c"}],
        **choices,
    }
    return {
        "recipe": Recipe.parse(recipe),
        "sources": [
            source("c", third, aligned(third)),
            source("a", target),
            source("b", second, aligned(second), skipped=frozenset({2})),
        ],
        "target_tokens": target,
        "tokens_digest": "tokens",
        "documents": np.array([0, 1, 2, 4, 5, 6, 8, 9]),
        "vocab_size": VOCAB,
        "corpus_digest": "corpus",
    }


def fuse(location, *, progress=ignore_progress, **arguments):
    """Everything, in this process."""
    return materialize(FusedFolder(location, prepare(**arguments)), progress=progress)


def files(location):
    return {name: (location / name).read_bytes() for name in location.list_recursive()}


def test_plain_zarr_reads_what_was_fused(helpers, tmp_path):
    arguments = make(helpers, strategy="uniform", granularity="window")
    location = Location.parse(tmp_path / "fused")
    seen = []
    manifest = fuse(location, **arguments, progress=lambda *step: seen.append(step))
    group = zarr.open_group(str(tmp_path / "fused"), mode="r")

    fusion = prepare(**arguments)
    size = fusion.num_tokens
    expected, _ = fuse_rows(fusion, 0, size)
    for name, dtype in ARRAYS.items():
        assert group[name].dtype == np.dtype(dtype)
        np.testing.assert_array_equal(group[name][:], getattr(expected, name), strict=True)
    assert group["ids"].shape == (size, 3)
    assert np.array_equal(np.asarray(group["input_ids"]), fusion.read(0, 8).token_ids)
    assert seen == [(min(stop, size), size) for stop in range(0, size + 16, 16)]
    assert manifest.num_tokens == size
    assert manifest.num_windows == -(-size // 7)
    assert group.attrs["plan_digest"] == manifest.plan_digest


def test_a_file_is_raw_values_and_a_checksum(helpers, tmp_path):
    location = Location.parse(tmp_path)
    manifest = fuse(location, **make(helpers))
    raw = (location / "logprobs/c/0/0").read_bytes()
    assert len(raw) == 16 * 3 * 4 + 4
    group = zarr.open_group(str(tmp_path), mode="r")
    mapped = np.frombuffer(raw[:-4], "<f4").reshape(16, 3)
    np.testing.assert_array_equal(mapped, group["logprobs"][:16])
    sizes = {path: len(data) for path, data in files(location).items() if path != "manifest.json"}
    assert manifest.num_bytes == sum(size for path, size in sizes.items() if "/c/" in path)
    assert {path: record.num_bytes for path, record in manifest.files.items()} == sizes
    (tmp_path / "tail/c/0").write_bytes(b"\x01" + (tmp_path / "tail/c/0").read_bytes()[1:])
    with pytest.raises(Exception, match=r"(?i)checksum"):
        group["tail"][:]


def test_a_split_smaller_than_a_shard_is_one_unpadded_file(helpers, tmp_path):
    location = Location.parse(tmp_path)
    manifest = fuse(location, **make(helpers, rows_per_shard=1000))
    assert (location / "tail/c/0").size() == 4 * manifest.num_tokens + 4
    assert (location / "tail/c").list() == ["0"]


def test_a_complete_dataset_is_not_computed_again(helpers, tmp_path):
    location = Location.parse(tmp_path)
    first = fuse(location, **make(helpers))
    before = files(location)
    arguments = make(helpers)
    assert fuse(location, **arguments) == first
    assert all(not source.cache.reads for source in arguments["sources"])
    assert files(location) == before
    assert FusedManifest.load(location / "manifest.json") == first
    assert FusionPlan.load(location / "fingerprint.json").digest == first.plan_digest


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(helpers, tmp_path, stop_after):
    whole = Location.parse(tmp_path / "whole")
    fuse(whole, **make(helpers))
    expected = files(whole)

    class StoppedError(Exception):
        pass

    def stop(done, total):
        del total
        if done >= 16 * stop_after:
            raise StoppedError

    location = Location.parse(tmp_path / "stopped")
    with pytest.raises(StoppedError):
        fuse(location, **make(helpers), progress=stop)
    assert not (location / "manifest.json").exists()
    (location / "ids/c/0/0").delete()
    (location / "ids/c/0").delete()
    kept = (tmp_path / "stopped/tail/c/1").stat().st_mtime_ns if stop_after > 1 else None
    fuse(location, **make(helpers))
    assert files(location) == expected
    if kept is not None:
        assert (tmp_path / "stopped/tail/c/1").stat().st_mtime_ns == kept


def test_statistics_do_not_depend_on_shards(helpers, tmp_path):
    one = fuse(Location.parse(tmp_path / "a"), **make(helpers, rows_per_shard=1000))
    many = fuse(Location.parse(tmp_path / "b"), **make(helpers, rows_per_shard=5))
    assert one.kinds == many.kinds
    assert sum(one.kinds.values()) == one.num_tokens
    assert sum(source.documents_won for source in one.sources) == pytest.approx(1.0)
    for left, right in zip(one.sources, many.sources, strict=True):
        for name, value in left.model_dump().items():
            assert getattr(right, name) == pytest.approx(value), name
    assert [source.cache for source in one.sources] == ["a", "b", "c"]
    assert [source.documents for source in one.sources] == [8, 7, 8]
    assert one.sources[0].positions_span == 1.0
    assert one.sources[0].unmapped_mass in (None, 0.0)


def test_another_recipe_or_cache_under_the_same_name_is_refused(helpers, tmp_path):
    location = Location.parse(tmp_path)
    fuse(location, **make(helpers))
    before = files(location)
    with pytest.raises(FingerprintMismatchError, match=r"top_k: 3 stored, 2 requested"):
        fuse(location, **make(helpers, top_k=2))
    arguments = make(helpers)
    arguments["sources"][0] = SourceInput(
        **{**vars(arguments["sources"][0]), "cache_digest": "newer"}
    )
    with pytest.raises(FingerprintMismatchError, match="newer"):
        fuse(location, **arguments)
    assert files(location) == before


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a["sources"].pop(0), NotFoundError, "'c', which was not given"),
        (lambda a: a.update(corpus_digest="other"), IncompatibleError, "corpus"),
        (lambda a: a.update(vocab_size=2), InvalidInputError, "top_k is 3"),
        (lambda a: a.update(vocab_size=5), IncompatibleError, "names target token|up to id"),
        (lambda a: a.update(documents=np.array([], np.int64)), InvalidInputError, "no tokens"),
        (lambda a: a.update(documents=np.array([10])), InvalidInputError, "10"),
        (
            lambda a: a.update(target_tokens=a["target_tokens"].take(np.arange(9))),
            IncompatibleError,
            "segmentations differ",
        ),
    ],
)
def test_inputs_that_do_not_belong_together_leave_nothing_behind(
    helpers, tmp_path, change, error, message
):
    arguments = make(helpers)
    change(arguments)
    with pytest.raises(error, match=message):
        fuse(Location.parse(tmp_path / "fused"), **arguments)
    assert not (tmp_path / "fused").exists()


def replaced(source, **changes):
    return SourceInput(**{**vars(source), **changes})


def test_identity_alignment_needs_the_targets_own_tokens(helpers, tmp_path):
    arguments = make(helpers)
    arguments["sources"][0] = replaced(arguments["sources"][0], alignment=None)
    with pytest.raises(IncompatibleError, match=r"'c' is given without an alignment.*align"):
        fuse(Location.parse(tmp_path / "fused"), **arguments)


def test_an_alignment_for_other_tokens_is_refused(helpers, tmp_path):
    arguments = make(helpers)
    arguments["sources"][0] = replaced(
        arguments["sources"][0], alignment=arguments["sources"][2].alignment
    )
    arguments["sources"][0].alignment.documents[0][0][0] = 99
    with pytest.raises(IncompatibleError, match=r"alignment of source '.' does not fit"):
        fuse(Location.parse(tmp_path / "fused"), **arguments)


def test_padding_ids_beyond_the_map_join_the_tail_when_the_width_is_known(helpers, tmp_path):
    arguments = make(helpers)
    short = arguments["sources"][0].target_id[:-5]
    arguments["sources"][0] = replaced(arguments["sources"][0], target_id=short)
    arguments["recipe"] = Recipe.parse({**arguments["recipe"].model_dump(), "strategy": "uniform"})
    with pytest.raises(IncompatibleError, match=r"Source 'c'.*belongs to another tokenizer"):
        fuse(Location.parse(tmp_path / "a"), **arguments)
    arguments["sources"][0] = replaced(arguments["sources"][0], vocab_size=VOCAB)
    manifest = fuse(Location.parse(tmp_path / "b"), **arguments)
    assert manifest.sources[2].unmapped_mass > 0


def test_padding_ids_of_the_targets_own_model_join_the_tail(helpers):
    source = make(helpers)["sources"][1]
    assert source.projection_map(3).tolist() == [0, 1, 2]
    assert replaced(source, vocab_size=5).projection_map(3).tolist() == [0, 1, 2, -1, -1]


def test_nan_in_a_cache_names_the_source(helpers, tmp_path):
    arguments = make(helpers)
    for source in arguments["sources"]:
        source.cache.rows.logprobs[:] = np.nan
    with pytest.raises(NonFiniteError, match="Source '"):
        fuse(Location.parse(tmp_path), **arguments)


def test_the_target_policy_needs_the_targets_own_cache(helpers, tmp_path):
    choices = {"unaligned": "target", "target_cache": "own", "kinds": ["mined"]}
    arguments = make(helpers, **choices)
    with pytest.raises(NotFoundError, match="'own', which was not given"):
        fuse(Location.parse(tmp_path / "a"), **arguments)
    with pytest.raises(IncompatibleError, match="not the target's own"):
        fuse(Location.parse(tmp_path / "a"), **arguments, target_cache=arguments["sources"][0])
    own = replaced(arguments["sources"][1], name="own")
    manifest = fuse(Location.parse(tmp_path / "b"), **arguments, target_cache=own)
    assert manifest.kinds["target"] == manifest.num_tokens


def test_the_same_bytes_on_object_storage(helpers, tmp_path, s3_url):
    local = Location.parse(tmp_path)
    fuse(local, **make(helpers))
    remote = Location.parse(f"{s3_url}/fused/demo")
    manifest = fuse(remote, **make(helpers))
    assert files(remote) == files(local)
    assert fuse(remote, **make(helpers)) == manifest
