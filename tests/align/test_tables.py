"""Stored alignments and vocabulary maps, on a local folder and on S3."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from fusestore.align.kinds import ALIGNMENT_KINDS
from fusestore.align.map_tables import (
    CountedCorpus,
    load_vocabulary_map,
    stored_vocabulary_map,
    vocabulary_map_folder,
)
from fusestore.align.statistics import count_pairs
from fusestore.align.tables import open_alignment, write_alignment
from fusestore.align.tokens import align_table
from fusestore.align.vocabulary import map_vocabulary
from fusestore.corpus.tokens import TokenTable
from fusestore.corpus.vocabulary import Vocabulary
from fusestore.errors import (
    CorruptionError,
    FingerprintMismatchError,
    IncompatibleError,
    NotFoundError,
)
from fusestore.storage.store import Store
from fusestore.storage.urls import Location

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
    settings = {
        "source_cache_digest": "c" * 64,
        "source_corpus_digest": "d" * 64,
        "target_corpus_digest": "d" * 64,
        "tokens_per_part": 20,
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
    assert len(alignment.manifest.parts) > 2
    offsets = tokens(2).document_offsets
    for start, stop in [(0, 12), (0, 0), (2, 3), (5, 6), (3, 9), (11, 12)]:
        rows = slice(offsets[start], offsets[stop])
        found = alignment.for_documents(start, stop)
        assert np.array_equal(found[0], position[rows])
        assert np.array_equal(found[1], kind[rows])
        assert (found[0].dtype, found[1].dtype) == (np.int32, np.uint8)
    shares = np.bincount(kind, minlength=3) / len(kind)
    assert alignment.coverage == pytest.approx(dict(zip(ALIGNMENT_KINDS, shares, strict=True)))
    assert [total for _, total in seen] == [len(kind)] * len(alignment.manifest.parts)
    assert seen[-1][0] == len(kind)


def test_parts_are_plain_parquet(tmp_path):
    location = Location.parse(tmp_path / "x")
    alignment = write(location)
    table = pl.concat(
        pl.read_parquet(tmp_path / "x" / part.name) for part in alignment.manifest.parts
    )
    assert table.columns == ["document", "target_pos", "source_pos", "kind"]
    first = table.filter(pl.col("document") == 4)
    assert first["target_pos"].to_list() == list(range(len(first)))
    assert (table["source_pos"].is_null() == (table["kind"] == "none")).all()


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(tmp_path):
    whole, broken = Location.parse(tmp_path / "whole"), Location.parse(tmp_path / "broken")
    write(whole)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(broken, progress=stop)
    with pytest.raises(NotFoundError, match=r"not finished \(1 parts are there\)"):
        open_alignment(broken)
    # A part that is not whole is made again.
    (broken / "part-00001.parquet").path.write_bytes(b"PAR1")
    write(broken)
    assert contents(broken) == contents(whole)
    before = (broken / "part-00000.parquet").path.stat().st_mtime_ns
    write(broken)
    assert (broken / "part-00000.parquet").path.stat().st_mtime_ns == before


def test_other_settings_under_the_same_name_are_refused(folder):
    write(folder / "x")
    before = contents(folder / "x")
    with pytest.raises(FingerprintMismatchError, match="method is 'hybrid' there and 'span' here"):
        write(folder / "x", method="span")
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


def test_a_damaged_or_missing_part_is_an_error(tmp_path):
    location = Location.parse(tmp_path / "x")
    write(location)
    path = (location / "part-00001.parquet").path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"part-00001.*checksum"):
        open_alignment(location).for_documents(0, 12)
    path.unlink()
    with pytest.raises(CorruptionError, match=r"part-00001.*missing"):
        open_alignment(location).for_documents(0, 12)
    with pytest.raises(IndexError, match="which has 12"):
        open_alignment(location).for_documents(0, 13)


def test_a_map_that_pairs_must_agree_with_is_part_of_the_fingerprint(tmp_path):
    location = Location.parse(tmp_path / "x")
    mapped = map_vocabulary(SOURCE, TARGET)
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
    with pytest.raises(FingerprintMismatchError, match="tie_break is 'prefix' there"):
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
    with pytest.raises(FingerprintMismatchError, match="corpus_digest is 'dddd"):
        stored_vocabulary_map(location, SOURCE, TARGET, "statistical", corpus=other)
    plain = vocabulary_map_folder(store, "a" * 64, "b" * 64, "mined", "d" * 64)
    assert plain.name.endswith("-mined")
