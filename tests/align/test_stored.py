"""Stored alignments and vocabulary maps, on a local folder and on S3."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pytest

from fusestore.align.alignment_writer import write_alignment
from fusestore.align.kinds import ALIGNMENT_KINDS, ALIGNMENT_METHODS
from fusestore.align.report.aligned_table import ALIGNMENT_SCHEMA
from fusestore.align.report.totals import document_blocks
from fusestore.align.report.unmatched import read_unmatched
from fusestore.align.stored import open_alignment
from fusestore.align.tokens.pairing import align_table
from fusestore.align.vocabulary.statistics import count_pairs
from fusestore.align.vocabulary.stored_map import (
    CountedCorpus,
    load_vocabulary_map,
    stored_vocabulary_map,
    vocabulary_map_folder,
)
from fusestore.align.vocabulary.vocabulary_map import map_vocabulary
from fusestore.errors import (
    CorruptionError,
    FingerprintMismatchError,
    IncompatibleError,
    NotFoundError,
)
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import TokenTable
from fusestore.tokenizers.vocabulary import Vocabulary

WORDS = (b" a", b"b", b"cd", b" ef", b"abcd")
SOURCE = Vocabulary("a" * 64, WORDS, ("text",) * 5, ())
TARGET = Vocabulary("b" * 64, (b" ab", *WORDS[1:]), ("text",) * 5, ())


def tokens(seed):
    """Twelve documents of 0 to 30 bytes, cut at random; the third is empty."""
    lengths = np.random.default_rng(0).integers(4, 30, 12)
    lengths[2] = 0
    rng = np.random.default_rng(seed)
    ends = [np.union1d(rng.integers(1, n, 8), [n]) if n else np.empty(0, int) for n in lengths]
    flat = np.concatenate(ends).astype(np.int32)
    return TokenTable(
        rng.integers(0, 5, len(flat)).astype(np.int32),
        flat,
        np.cumsum([0, *(len(end) for end in ends)]),
    )


def write(location, target_seed=2, **changes):
    settings: dict[str, Any] = {
        "source_cache_digest": "c" * 64,
        "source_corpus_digest": "d" * 64,
        "target_corpus_digest": "d" * 64,
        "rows_per_shard": 20,
    }
    return write_alignment(
        location, tokens(1), tokens(target_seed), SOURCE, TARGET, **settings | changes
    )


def contents(location):
    return {name: (location / name).read_bytes() for name in location.list_recursive()}


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    if request.param == "local":
        return Location.parse(tmp_path / "store")
    return Location.parse(request.getfixturevalue("s3_url"))


def test_what_is_read_is_what_was_aligned(folder):
    seen = []
    written = write(folder / "x", progress=lambda done, total: seen.append((done, total)))
    position, kind = align_table(tokens(1), tokens(2), SOURCE, TARGET)
    alignment = open_alignment(folder / "x")
    assert alignment.manifest == written.manifest
    assert len(alignment.manifest.fingerprint.plan) > 2
    offsets = tokens(2).document_offsets
    for start, stop in [(0, 12), (0, 0), (2, 3), (5, 6), (3, 9), (11, 12)]:
        rows = slice(offsets[start], offsets[stop])
        found = alignment.for_documents(start, stop)
        assert np.array_equal(found[0], position[rows])
        assert np.array_equal(found[1], kind[rows])
        assert (found[0].dtype, found[1].dtype) == (np.int32, np.uint8)
    shares = np.bincount(kind, minlength=len(ALIGNMENT_KINDS)) / len(kind)
    assert alignment.coverage == pytest.approx(dict(zip(ALIGNMENT_KINDS, shares, strict=True)))
    assert [total for _, total in seen] == [len(kind)] * len(alignment.manifest.fingerprint.plan)
    assert seen[-1][0] == len(kind)


def test_any_zarr_reader_and_the_memory_map_read_the_arrays(tmp_path):
    import zarr

    from fusestore.data.mapped import MappedArray

    alignment = write(Location.parse(tmp_path / "x"))
    position, kind = align_table(tokens(1), tokens(2), SOURCE, TARGET)
    group = zarr.open_group(str(tmp_path / "x"), mode="r")
    assert group.attrs["fusestore"] == {"kind": "alignment", "format_version": 1}
    for name, expected in (
        ("source_pos", position),
        ("kind", kind),
        ("document_offsets", tokens(2).document_offsets),
    ):
        mapped = MappedArray(tmp_path / "x" / name)
        assert np.array_equal(np.asarray(group[name]), expected)
        assert np.array_equal(mapped.read(0, len(mapped)), expected)
    assert group["kind"].attrs["names"] == list(ALIGNMENT_KINDS)
    assert np.array_equal(alignment.document_offsets, tokens(2).document_offsets)


def test_reading_needs_neither_polars_nor_numba_nor_zarr(tmp_path):
    write(Location.parse(tmp_path / "x"))
    code = (
        "import sys; from fusestore.align.stored import open_alignment; "
        "from fusestore.storage.location import Location; "
        "position, kind = open_alignment(Location.parse(sys.argv[1])).for_documents(0, 12); "
        "heavy = {'polars', 'numba', 'zarr', 'obstore', 'torch'}; "
        "print(len(position), sorted(heavy & {*sys.modules}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x"], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == f"{tokens(2).num_tokens} []"


def test_the_table_of_documents(tmp_path):
    alignment = write(Location.parse(tmp_path / "x"))
    table = alignment.to_polars(range(12))
    assert table.schema == ALIGNMENT_SCHEMA
    first = table.filter(pl.col("document") == 4)
    assert first["target_pos"].to_list() == list(range(len(first)))
    assert (table["source_pos"].is_null() == (table["kind"] == "none")).all()
    assert alignment.to_polars(4).equals(first)
    position, _ = alignment.for_documents(0, 12)
    assert table["source_pos"].fill_null(-1).to_list() == position.tolist()


def test_summary_counts_what_stays_unmatched(tmp_path):
    alignment = write(Location.parse(tmp_path / "x"))
    source, target = tokens(1), tokens(2)
    unmatched = {"source": Counter(), "target": Counter()}
    for document in range(12):
        source_ids, target_ids = source.document(document)[0], target.document(document)[0]
        position, _ = alignment.for_documents(document, document + 1)
        unmatched["target"].update(target_ids[position < 0].tolist())
        used = set(position.tolist())
        unmatched["source"].update(t for i, t in enumerate(source_ids.tolist()) if i not in used)
    table = read_unmatched(alignment)
    sides = (("source", source, SOURCE), ("target", target, TARGET))
    for side, tokens_of_side, vocabulary in sides:
        rows = table.filter(pl.col("side") == side)
        assert dict(rows.select("token_id", "unmatched").iter_rows()) == unmatched[side]
        keys = list(rows.select(-pl.col("unmatched"), "token_id").iter_rows())
        assert keys == sorted(keys)
        total = Counter(tokens_of_side.token_ids.tolist())
        columns = rows.select("token_id", "bytes", "text", "total")
        for token, data, text, count in columns.iter_rows():
            assert data == vocabulary.token_bytes[token]
            assert text == data.decode()
            assert count == total[token]
    assert alignment.manifest.unused_source_tokens == unmatched["source"].total()
    assert alignment.manifest.counts["none"] == unmatched["target"].total()


def test_summary_compares_the_methods(tmp_path):
    sample = write(Location.parse(tmp_path / "x")).manifest.sample
    assert (sample.num_documents, sample.num_tokens) == (12, tokens(2).num_tokens)
    answers = {
        method: align_table(tokens(1), tokens(2), SOURCE, TARGET, method)[0]
        for method in ALIGNMENT_METHODS
    }
    for method, answer in answers.items():
        assert sample.aligned[method] == np.sum(answer >= 0)
        for other, theirs in answers.items():
            assert sample.same[method][other] == np.sum(answer == theirs)


def test_blocks_hold_few_tokens_or_one_document():
    lengths = np.array([3, 0, 30, 2, 2, 2, 2, 9, 0])
    table = TokenTable(
        np.zeros(lengths.sum(), np.int32),
        np.zeros(lengths.sum(), np.int32),
        np.concatenate([[0], np.cumsum(lengths)]),
    )
    blocks = list(document_blocks(table, table, 6))
    assert [start for start, _ in blocks] == [0, *(stop for _, stop in blocks[:-1])]
    assert blocks[-1][1] == len(lengths)
    assert all(stop - start == 1 or lengths[start:stop].sum() <= 6 for start, stop in blocks)


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(tmp_path, stop_at):
    whole, broken = Location.parse(tmp_path / "whole"), Location.parse(tmp_path / "broken")
    write(whole)
    seen = []

    def stop(done, total):
        seen.append(done)
        if len(seen) == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(broken, progress=stop)
    with pytest.raises(NotFoundError, match=rf"is not finished \({stop_at} shards are\)"):
        open_alignment(broken)
    before = (broken / "kind/c/0").path.stat().st_mtime_ns
    write(broken)
    assert contents(broken) == contents(whole)
    assert (broken / "kind/c/0").path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "name", ["source_pos/c/1", "receipts/000001.json", "document_offsets/c/0", "kind/zarr.json"]
)
def test_what_a_run_left_damaged_is_made_again(tmp_path, name):
    whole, broken = Location.parse(tmp_path / "whole"), Location.parse(tmp_path / "broken")
    write(whole)
    write(broken)
    (broken / "manifest.json").delete()
    data = bytearray((broken / name).read_bytes())
    data[len(data) // 2] ^= 1
    (broken / name).path.write_bytes(data)
    write(broken)
    assert contents(broken) == contents(whole)
    (broken / "manifest.json").delete()
    (broken / name).delete()
    write(broken)
    assert contents(broken) == contents(whole)


def test_a_shard_of_another_fingerprint_is_not_kept(tmp_path):
    """Its own checksums are right, so only the receipt tells."""
    whole, mixed = Location.parse(tmp_path / "whole"), Location.parse(tmp_path / "mixed")
    write(whole)
    write(mixed, method="exact")
    for name in ("manifest.json", "fingerprint.json"):
        (mixed / name).delete()
    write(mixed)
    assert contents(mixed) == contents(whole)


def test_other_settings_under_the_same_name_are_refused(folder):
    write(folder / "x")
    before = contents(folder / "x")
    with pytest.raises(FingerprintMismatchError, match="method: 'span' stored, 'hybrid' requested"):
        write(folder / "x", method="hybrid")
    with pytest.raises(FingerprintMismatchError, match="target_tokens_digest"):
        write(folder / "x", target_seed=3)
    assert contents(folder / "x") == before


def test_another_corpus_is_refused_and_leaves_nothing(tmp_path):
    location = Location.parse(tmp_path / "x")
    with pytest.raises(IncompatibleError, match=r"dddddddd.*eeeeeeee"):
        write(location, target_corpus_digest="e" * 64)
    with pytest.raises(IncompatibleError, match="documents"):
        write_alignment(
            location, tokens(1).take([0]), tokens(2), SOURCE, TARGET,
            source_cache_digest="", source_corpus_digest="", target_corpus_digest="",
        )  # fmt: skip
    assert not location.exists()
    with pytest.raises(NotFoundError, match="There is no alignment"):
        open_alignment(location)


@pytest.mark.parametrize("array", ["source_pos", "kind"])
def test_a_damaged_or_missing_file_is_an_error(tmp_path, array):
    location = Location.parse(tmp_path / "x")
    write(location)
    path = (location / array / "c/1").path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=rf"{array}/c/1.*checksum"):
        open_alignment(location).for_documents(0, 12)
    path.write_bytes(data[:-1])
    with pytest.raises(CorruptionError, match=rf"{array}/c/1 has"):
        open_alignment(location).for_documents(0, 12)
    path.unlink()
    with pytest.raises(CorruptionError, match=rf"{array}/c/1 is missing"):
        open_alignment(location).for_documents(0, 12)
    with pytest.raises(IndexError, match="which has 12"):
        open_alignment(location).for_documents(0, 13)
    (location / "unmatched.parquet").path.write_bytes(b"PAR1")
    with pytest.raises(CorruptionError, match=r"unmatched.*checksum"):
        read_unmatched(open_alignment(location))
    (location / "unmatched.parquet").delete()
    with pytest.raises(CorruptionError, match=r"unmatched.*missing"):
        read_unmatched(open_alignment(location))


def test_a_map_that_pairs_must_agree_with_is_part_of_the_fingerprint(tmp_path):
    location = Location.parse(tmp_path / "x")
    mapped = map_vocabulary(SOURCE, TARGET, "mined")
    alignment = write(location, vocabulary_map=mapped, method="mined")
    assert alignment.manifest.fingerprint.vocabulary_map_digest == mapped.digest
    with pytest.raises(FingerprintMismatchError, match="vocabulary_map_digest"):
        write(location, method="mined")


def test_a_vocabulary_map_is_stored_once_and_read_back(folder):
    location = folder / "map"
    made = stored_vocabulary_map(location, SOURCE, TARGET)
    before = contents(location)
    for read in (stored_vocabulary_map(location, SOURCE, TARGET), load_vocabulary_map(location)):
        assert read.digest == made.digest
        assert read.to_polars().equals(made.to_polars())
    assert contents(location) == before
    with pytest.raises(FingerprintMismatchError, match="tie_break: 'prefix' stored"):
        stored_vocabulary_map(location, SOURCE, TARGET, tie_break="first")
    (location / "map.parquet").delete()
    with pytest.raises(CorruptionError, match="missing"):
        load_vocabulary_map(location)


def test_a_statistical_map_is_kept_by_its_corpus_and_counts_once(folder):
    counted = []

    def count():
        counted.append(1)
        return count_pairs(tokens(1), tokens(2))

    store = Store.open(folder)
    location = vocabulary_map_folder(store, "a" * 64, "b" * 64, "statistical", "d" * 64)
    assert location.name == f"{'a' * 16}-{'b' * 16}-statistical-{'d' * 16}"
    corpus = CountedCorpus("d" * 64, count)
    made = stored_vocabulary_map(location, SOURCE, TARGET, "statistical", corpus=corpus)
    read = stored_vocabulary_map(location, SOURCE, TARGET, "statistical", corpus=corpus)
    assert len(counted) == 1
    assert read.digest == made.digest
    assert read.to_polars().equals(made.to_polars())
    assert "statistical" in made.to_polars()["kind"].to_list()
    other = CountedCorpus("e" * 64, count)
    with pytest.raises(FingerprintMismatchError, match="corpus_digest: 'dddd"):
        stored_vocabulary_map(location, SOURCE, TARGET, "statistical", corpus=other)
    plain = vocabulary_map_folder(store, "a" * 64, "b" * 64, "mined", "d" * 64)
    assert plain.name.endswith("-mined")
