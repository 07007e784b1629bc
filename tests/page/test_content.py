"""What the page shows is what the store holds; parts that cannot be made are absent."""

import base64
import gzip
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusestore.cache.reader import open_cache
from fusestore.cache.rows import Rows
from fusestore.fuse.folder import PLAN_FILE
from fusestore.fuse.manifest import FusionPlan
from fusestore.fuse.resolve import find_inputs
from fusestore.fuse.shard import fuse_rows
from fusestore.report.page.row_sample import effective_k, sampled_rows, tail_histogram
from fusestore.report.page.settings import ReportSettings
from fusestore.report.page.token_rows import (
    NO_VALUE,
    disagreement,
    document_rows_of,
    token_places,
)
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.workflows.store_report import chosen_documents, sampled_fusion, write_report
from tests.helpers.tiny_job import hashes, write_fusion

ENTRIES = 3


@pytest.fixture(scope="module")
def opened(first_store):
    return Store.open(first_store)


@pytest.fixture(scope="module")
def fusion(opened):
    plan = FusionPlan.load(opened.fused("mince") / PLAN_FILE)
    recipe = plan.recipe.model_copy(update={"split": "held_out"})
    return find_inputs(opened, recipe, plan=plan.model_copy(update={"recipe": recipe}))


@pytest.fixture(scope="module")
def rows(fusion):
    return document_rows_of(fusion, 2, ENTRIES)


def test_rows_of_the_target_are_its_caches(opened, fusion, rows):
    cached = open_cache(opened, "small").document(rows.document)
    target = [source.cache for source in fusion.recipe.sources].index("small")
    # Equal entries are ordered by id only once they are projected.
    assert (rows.ids[:-1, target, :, None] == cached.ids[:-1, None]).any(axis=2).all()
    # The mass of a stored row is 1 only up to its grid; that of a projected one is.
    assert np.allclose(rows.logprobs[:-1, target], cached.logprobs[:-1, :ENTRIES], atol=0.01)
    assert np.allclose(rows.labels[:-1, target], cached.label_logprob[:-1], atol=1e-6)
    assert np.isnan(rows.labels[-1]).all()


def test_the_fused_row_is_that_of_the_fusion(fusion, rows):
    fused, _ = fuse_rows(fusion, int(fusion.offsets[2]), int(fusion.offsets[3]))
    shown = np.isfinite(rows.logprobs[:, -1])
    assert np.array_equal(rows.ids[:, -1][shown], fused.ids[:, :ENTRIES][shown])
    assert np.array_equal(rows.logprobs[:, -1], fused.logprobs[:, :ENTRIES])
    used = rows.weights.any(axis=1)
    assert used.sum() == np.isin(fused.kind, [1, 2, 3]).sum() > 10
    # mince: one source has all weight, and where it stands alone the fused row is its own.
    assert np.array_equal(rows.weights.sum(axis=1), used.astype(float))
    for position in np.flatnonzero(used):
        winner = rows.weights[position].argmax()
        assert fused.source[position] == winner
        assert rows.kinds[position, winner] == fused.kind[position]
        if not np.isnan(rows.labels[position, winner]):
            assert rows.labels[position, -1] == pytest.approx(
                rows.labels[position, winner], abs=1e-4
            )


def test_packed_rows_are_read_back(fusion, rows):
    occurring, places = token_places([rows], fusion.vocab_size)
    assert set(rows.token_ids) | set(rows.ids.ravel()) | {0} == set(occurring)
    for wide, index in ((False, "<u2"), (True, "<u4")):
        data = gzip.decompress(base64.b64decode(rows.pack(places, wide)))
        count, columns = rows.labels.shape
        read = np.frombuffer(data, index, count * (1 + columns * ENTRIES))
        assert np.array_equal(occurring[read[:count]], rows.token_ids)
        assert np.array_equal(occurring[read[count:]].reshape(rows.ids.shape), rows.ids)
        codes = np.frombuffer(data, "<u2", count * columns * (ENTRIES + 1), read.nbytes)
        logprobs = codes[: rows.logprobs.size].reshape(rows.logprobs.shape)
        there = np.isfinite(rows.logprobs)
        assert np.array_equal(logprobs != NO_VALUE, there)
        assert np.abs(logprobs[there] / -1000 - rows.logprobs[there]).max() <= 0.00051


@st.composite
def _sparse_rows(draw):
    """Probabilities of at most five of eight tokens, without repetition; the rest is the tail."""
    ids = draw(st.permutations(range(8)))[:5]
    parts = np.array(draw(st.lists(st.integers(0, 9), min_size=6, max_size=6).filter(any)), float)
    shares = (parts + 1e-9) / (parts + 1e-9).sum()
    logs = np.where(parts > 0, np.log(shares), -np.inf).astype(np.float32)
    return np.array([ids], np.int32), logs[None, :5], logs[5:]


@given(_sparse_rows(), _sparse_rows())
def test_disagreement_is_the_least_total_variation(left, right):
    def dense(rows):
        ids, logprobs, tail = rows
        result = np.zeros(9)
        result[ids[0]] = np.exp(logprobs[0].astype(float))
        result[8] = np.exp(float(tail[0]))
        return result

    expected = np.abs(dense(left) - dense(right)).sum() / 2
    assert disagreement(left, right)[0] == pytest.approx(expected, abs=1e-5)
    assert disagreement(left, left)[0] == pytest.approx(0, abs=1e-5)


def test_the_spread_of_rows():
    logs = np.log([[0.25, 0.25, 0.25], [0.5, 0.5, 1e-30]]).astype(np.float32)
    tail = np.log([0.25, 1e-30]).astype(np.float32)
    rows = Rows(np.zeros((2, 3), np.int32), logs, tail, np.zeros(2, np.float32))
    assert effective_k(rows) == pytest.approx([4, 2], abs=1e-4)
    histogram = tail_histogram(rows)
    assert sum(histogram.shares) == 1
    assert histogram.mean == pytest.approx(0.125)


def test_a_sample_of_rows_is_spread_over_documents(opened):
    cache = open_cache(opened, "wide")
    assert len(sampled_rows(cache, 10**9)) == len(cache)
    sample = sampled_rows(cache, 300)
    assert 200 < len(sample) <= 300
    assert np.isfinite(sample.logprobs).any(axis=1).all()


def test_documents_are_spread_and_bounded(fusion):
    lengths = np.diff(fusion.offsets)
    assert chosen_documents(fusion, 100, 10**9) == list(np.flatnonzero(lengths))
    assert chosen_documents(fusion, 2, 10**9) == [0, len(lengths) // 2]
    assert chosen_documents(fusion, 100, 1) == [0]
    sample = sampled_fusion(fusion, fusion.num_tokens // 2)
    assert 0 < sample.num_tokens < fusion.num_tokens
    assert sampled_fusion(fusion, fusion.num_tokens) is fusion


def test_the_command_writes_what_it_prints_and_changes_nothing(command, store, tmp_path):
    before = hashes(Location.parse(str(store)))
    file = tmp_path / "page" / "report.html"
    report = command.succeeds("report", "-s", store, "-o", file, "--json").json
    assert hashes(Location.parse(str(store))) == before
    assert "<h2" in file.read_text(encoding="utf-8")
    assert [source["cache"] for source in report["sources"]] == ["small", "wide"]
    assert report["sources"][0]["num_rows"] > 2000
    assert {part["part"] for part in report["absent"]} == {"Training"}
    assert report["viewer"]["split"] == "held_out"
    assert report["viewer"]["documents_of_split"] == 7
    forecast = command.succeeds(
        *("forecast", "-s", store, "--source", "small", "--source", "wide", "-t", "small"),
        *("--compare", "mince", "--json"),
    ).json
    own = [source["own_bits_per_byte"] for source in forecast["sources"]]
    shown = [source["own_bits_per_byte"] for source in report["forecast"]["sources"]]
    scores = [source["scores"][0] for source in report["sources"]]
    assert own == shown == pytest.approx([score["bits_per_byte"] for score in scores])
    used = {each["artifact"]: each["inputs"] for each in report["artifacts"]}
    assert used["alignment/wide--small"][:2] == ["corpus/addresses", "cache/wide"]
    (alignment,) = report["alignments"]
    assert sum(alignment["coverage"].values()) == pytest.approx(1)


def test_parts_that_cannot_be_made_are_absent(store, tmp_path):
    file = str(tmp_path / "report.html")
    settings = ReportSettings(forecast=False)
    shutil.rmtree(store / "alignments")
    report = write_report(Store.open(store), file, settings)
    assert (report.viewer, report.forecast) == (None, None)
    assert "fusestore align" in report.reason("Token viewer")
    shutil.rmtree(store / "fused")
    shutil.rmtree(store / "caches")
    report = write_report(Store.open(store), file)
    assert "no fused dataset" in report.reason("Forecast")
    assert "no distribution cache" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_wrong_names_and_files_are_refused_before_anything(command, store, tmp_path, monkeypatch):
    assert "outside" in command.fails("report", "-s", store, "-o", store / "report.html")
    assert ".html" in command.fails("report", "-s", store, "-o", tmp_path / "report.pdf")
    assert "'mince'" in command.fails("report", "-s", store, "--fused", "minse")
    assert "no store" in command.fails("report", "-s", tmp_path / "none").lower()
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    assert "fusestore[report]" in command.fails("report", "-s", store, "-o", tmp_path / "a.html")
    assert not list(tmp_path.glob("*.html"))


def test_run_ends_by_naming_the_page(command, job, store, tmp_path):
    file = tmp_path / "pages" / "report.html"
    wanted = 'evaluate_split = "held_out"'
    fusion = write_fusion(tmp_path, job, str(store), (wanted, f'{wanted}\nreport = "{file}"'))
    shown = command.succeeds("run", fusion).out
    assert "".join(shown.split()).endswith(f"Report:{file}")
    assert file.exists()
