"""Captures of conversations that keep the rows of supervised tokens only."""

from dataclasses import fields
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fusestore as fs
from fusestore.cache.document_rows import document_rows
from fusestore.cache.kept_rows import KeptRows
from fusestore.cache.reader import open_cache
from fusestore.cache.rows import Rows
from fusestore.cache.verify import verify_cache
from fusestore.cache.writer import CacheWriter
from fusestore.capture import selection
from fusestore.capture.artifact import CacheKind
from fusestore.capture.engines import transformers_engine
from fusestore.capture.estimate import estimate_capture
from fusestore.capture.kept_summary import kept_summary
from fusestore.corpus.corpus import supervision_of
from fusestore.errors import CorruptionError, FingerprintMismatchError, InvalidInputError
from fusestore.models.model import Model
from fusestore.store.arrays import encode_shard
from fusestore.store.inventory import find_artifact
from fusestore.workflows.repair import repair_store
from tests.helpers.chat_models import chat_tokenizer, write_conversations
from tests.helpers.some_cases import some
from tests.helpers.store_contents import contents
from tests.helpers.tiny_models import make_llama, save_model

SMALL = {"top_k": 5, "dtype": "float32", "rows_per_shard": 64, "rows_per_chunk": 16}


@given(st.lists(st.booleans(), max_size=40), st.data())
def test_kept_rows_are_those_of_a_mask(mask, data):
    kept = KeptRows.where(np.array(mask, np.bool_))
    tokens = [token for token, is_kept in enumerate(mask) if is_kept]
    assert kept.num_rows == len(tokens)
    start = data.draw(st.integers(0, len(mask)))
    stop = data.draw(st.integers(start, len(mask)))
    first, last = kept.rows_of(start, stop)
    assert kept.tokens(first, last).tolist() == [t for t in tokens if start <= t < stop]
    assert kept.mask(start, stop).tolist() == mask[start:stop]
    taken = kept.take([(start, stop), (0, start)])
    assert taken.mask(0, stop).tolist() == mask[start:stop] + mask[:start]
    if all(mask):
        np.testing.assert_array_equal(kept.runs, KeptRows.all(len(mask)).runs)


@pytest.mark.parametrize("runs", [[[1, 1]], [[0, 3], [3, 5]], [[4, 6], [1, 2]], [[-1, 4]]])
def test_runs_that_are_none_are_refused(runs):
    with pytest.raises(InvalidInputError, match="runs of kept rows"):
        KeptRows(np.array(runs, np.int64))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Conversations, and tiny models that read them by two tokenizers and templates."""
    folder = tmp_path_factory.mktemp("supervised")
    for name in ("chatml", "instructions"):
        tokenizer = chat_tokenizer(name, pieces=name == "instructions")
        save_model(folder / name, make_llama(len(tokenizer), context=512), tokenizer)
    store = fs.open_store(str(folder / "store"))
    models = {name: Model.open(folder / name) for name in ("chatml", "instructions")}
    corpus = store.build_corpus(
        "chats",
        [str(write_conversations(folder / "chats.jsonl", 5))],
        fs.CorpusSettings(max_length=None, held_out_fraction=0.4, train_on="last-turn"),
        tokenizers=list(models.values()),
    )

    def capture(name, model="chatml", **settings):
        changed = fs.CaptureSettings(**{**SMALL, **settings})
        return store.capture(name, model=models[model], corpus=corpus, settings=changed)

    return SimpleNamespace(
        store=store, model=models["chatml"], corpus=corpus, capture=capture, folder=folder
    )


@pytest.fixture(scope="module")
def both(job):
    return job.capture("full"), job.capture("few", only="supervised")


def used_rows(job, cache):
    documents = np.arange(cache.fingerprint.num_documents)
    return supervision_of(job.corpus).used_rows(cache.tokens, documents)


def check_supervised(job, full, few, **tolerance):
    """The rows of `few` are those of `full` where a fusion may use them, and absent elsewhere."""
    used = used_rows(job, few)
    np.testing.assert_array_equal(few.kept.mask(0, len(few)), used)
    assert 0 < used.sum() < len(few) / 2
    expected, rows = full[:], few[:]
    for field in fields(Rows):
        values = getattr(rows, field.name)
        np.testing.assert_allclose(values[used], getattr(expected, field.name)[used], **tolerance)
    assert not rows.ids[~used].any()
    assert np.isneginf(rows.logprobs[~used]).all()
    assert np.isnan(rows.tail[~used]).all()
    assert np.isnan(rows.label_logprob[~used]).all()
    assert verify_cache(few.location) == []
    for name, value in full.manifest.scores.items():
        assert few.manifest.scores[name] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"profile": "lossless"},
        {"profile": "fast", "logprob_step": 0},
        {"selection": "sampled", "seed": 3, "top_k": 12},
    ],
)
def test_kept_rows_are_those_of_a_full_cache(job, settings):
    """A draw depends on the token's number in the corpus, not on the row's."""
    name = "-".join(map(str, settings.values())).replace(".", "")
    full = job.capture(f"full-{name}", **settings)
    few = job.capture(f"few-{name}", only="supervised", **settings)
    check_supervised(job, full, few, rtol=1e-4, atol=1e-5)


def test_reading_a_part_is_reading_all_of_it(job, both):
    few = both[1]
    whole = few[:]
    for document in range(few.fingerprint.num_documents):
        start, stop = few.document_offsets[document : document + 2].tolist()
        for field in fields(Rows):
            part = getattr(few[start + 1 : stop], field.name)
            np.testing.assert_array_equal(part, getattr(whole, field.name)[start + 1 : stop])
    assert len(few[3:3]) == 0


def test_the_head_runs_for_kept_rows_and_the_model_to_the_last(job, monkeypatch):
    read, selected = [], []
    real_run = transformers_engine.TransformersEngine._run

    def run(self, documents, *others):
        read.extend(len(document.token_ids) for document in documents)
        return real_run(self, documents, *others)

    def select(rule, logits, *others):
        selected.append(len(logits))
        return selection.select(rule, logits, *others)

    monkeypatch.setattr(transformers_engine.TransformersEngine, "_run", run)
    monkeypatch.setattr(transformers_engine, "select", select)
    few = job.capture("watched", only="supervised", profile="fast", rows_per_shard=4096)
    used = used_rows(job, few)
    assert sum(selected) == used.sum() == few.fingerprint.num_rows
    offsets = few.document_offsets
    expected = [int(np.flatnonzero(used[start:stop])[-1]) + 2 for start, stop in pairwise(offsets)]
    assert sorted(read) == sorted(expected)
    summary = kept_summary(few)
    assert summary.tokens_read == sum(expected)
    assert summary.rows_computed == summary.num_rows == used.sum()


def test_bytes_are_those_of_kept_rows(job, both):
    full, few = both
    summary = kept_summary(few)
    assert kept_summary(full) is None
    assert summary.num_bytes == few.manifest.num_bytes < full.manifest.num_bytes
    assert summary.bytes_of_all_rows == pytest.approx(full.manifest.num_bytes, rel=0.25)
    assert f"{summary.num_bytes:,} bytes" in summary.describe()
    described = CacheKind().describe(few.manifest.model_dump())
    assert described.startswith(f"{summary.num_rows:,} supervised of {len(few):,} tokens")


def test_people_see_which_rows_there_are(job, both):
    few = both[1]
    used = used_rows(job, few)
    first = int(few.document_offsets[1])
    table = few.to_polars(1)
    absent = ~used[first : first + len(table)]
    for column in ("ids", "logprobs", "tail", "label_logprob"):
        assert table[column].is_null().to_numpy().tolist() == absent.tolist()
    shown = document_rows(job.store, "few", 1, 1_000)
    assert [not row.kept for row in shown.rows] == absent.tolist()
    assert not any(row.entries for row in shown.rows if not row.kept)
    listed = find_artifact(job.store, "cache/few")
    view = listed.kind.view_document(job.store, listed, 1, 1_000)
    (printed,) = view.tables
    tails = [line[printed.columns.index("tail")] for line in printed.rows]
    assert [tail == "no row" for tail in tails] == absent.tolist()


def test_a_capture_is_continued_and_repaired(job, both):
    few = both[1]
    before = contents(few.location.path)
    assert (
        not job.store.capture(
            "few",
            model=job.model,
            corpus=job.corpus,
            settings=fs.CaptureSettings(**SMALL, only="supervised"),
        ).manifest.num_bytes
        - few.manifest.num_bytes
    )
    shards = len(few.fingerprint.plan)
    assert shards > 2
    for name in ("manifest.json", "receipts/000001.json", "ids/c/1/0"):
        (few.location / name).delete()
    job.capture("few", only="supervised")
    assert contents(few.location.path) == before
    for name in ("logprobs/c/1/0", "row_runs/c/0/0"):
        data = bytearray((few.location / name).read_bytes())
        data[len(data) // 2] ^= 1
        (few.location.path / name).write_bytes(data)
        assert name in {finding.file for finding in verify_cache(few.location)}
        repair_store(job.store, models=[str(job.folder / "chatml")])
        assert contents(few.location.path) == before


def test_other_rows_are_another_cache(job, both):
    for name, other in (("full", "supervised"), ("few", "all")):
        with pytest.raises(FingerprintMismatchError, match="only"):
            job.capture(name, only=other)


def test_runs_that_do_not_fit_are_found(job, both, tmp_path):
    """Also if their checksums are right: no row is taken for that of another token."""
    few = both[1]
    reader = open_cache(job.store, "few").reader
    (spec,) = reader._arrays.row_runs
    for change in ([0, 1], [0, 100_000]):
        runs = reader.kept.runs.copy()
        runs[-1] += change
        data = encode_shard(spec, 0, runs)
        file = few.location.path / spec.file_name(0)
        before = file.read_bytes()
        file.write_bytes(data)
        try:
            with pytest.raises(CorruptionError, match="row_runs"):
                _ = open_cache(job.store, "few")[:]
        finally:
            file.write_bytes(before)


def test_a_writer_takes_the_rows_of_its_fingerprint(both, tmp_path):
    few = both[1]
    with pytest.raises(InvalidInputError, match=r"rows in .* runs"):
        CacheWriter.create(
            fs.open_store(str(tmp_path)),
            "other",
            few.fingerprint,
            few.tokens,
            few.reader.id_order,
        )


def test_an_estimate_counts_kept_rows(job, both):
    settings = fs.CaptureSettings(**SMALL, only="supervised")
    result = estimate_capture(job.store, "e", job.model, job.corpus, settings, sample_tokens=10_000)
    few = both[1]
    assert result.num_rows == few.fingerprint.num_rows
    assert result.num_tokens == len(few)
    sizes = few.location.sizes().items()
    written = sum(size for name, size in sizes if name.startswith("ids/c/"))
    # Documents of the sample stand in another order.
    assert result.bytes_by_array["ids"] == pytest.approx(written, rel=0.05)


def test_texts_have_no_supervised_rows(job, tmp_path):
    (tmp_path / "text.txt").write_text("A text is no conversation.")
    store = fs.open_store(str(tmp_path / "store"))
    plain = fs.CorpusSettings(max_length=None)
    corpus = store.build_corpus("texts", [str(tmp_path / "text.txt")], plain)
    settings = fs.CaptureSettings(**SMALL, only="supervised")
    with pytest.raises(InvalidInputError, match="'texts' holds texts"):
        store.capture("x", model=job.model, corpus=corpus, settings=settings)
    assert store.names("caches") == []


def rewritten(job, full, model):
    """The name of a cache with the supervised rows of another, from which they are copied."""
    name = f"{full.location.name}-few"
    fingerprint = job.capture(f"{name}-0", model, only="supervised", profile="lossless").fingerprint
    kept = KeptRows.where(used_rows(job, full))
    order = full.reader.id_order
    writer = CacheWriter.create(job.store, name, fingerprint, full.tokens, order, kept)
    rows, tokens = full[:], kept.tokens(0, kept.num_rows)
    for shard in writer.missing_shards():
        here = tokens[slice(*writer.plan.bounds(shard))]
        writer.write_shard(shard, Rows(*(values[here] for values in vars(rows).values())))
    writer.finish(full.manifest.scores, [])
    return name


@pytest.mark.parametrize("strategy", some(["em", "mince"], "mince"))
def test_forecast_fit_and_fusion_are_the_same(job, strategy):
    models = ("chatml", "instructions")
    full = [job.capture(f"whole-{model}", model, profile="lossless") for model in models]
    sides = [
        [cache.location.name for cache in full],
        [rewritten(job, cache, model) for cache, model in zip(full, models, strict=True)],
    ]
    samples, figures = [], []
    for names in sides:
        job.store.align(names[1], target="whole-chatml")
        settings = {"target": "whole-chatml", "top_k": 5, "window_length": 32, "packing": "stream"}
        recipe = fs.Recipe(sources=names, strategy=strategy, **settings)
        fused = job.store.fuse(f"{names[0]}-{strategy}", recipe, materialize=True).dataset()
        samples.append([fused[index] for index in range(len(fused))])
        forecast = job.store.forecast(fs.Recipe(sources=names, **settings))
        text = forecast.model_copy(update={"recipe": None}).model_dump_json(warnings=False)
        for name, model in zip(names, models, strict=True):
            text = text.replace(f'"{name}"', f'"{model}"')
        figures.append(text)
    for one, two in zip(*samples, strict=True):
        assert list(one) == list(two)
        for key, value in one.items():
            np.testing.assert_array_equal(np.asarray(value), np.asarray(two[key]))
    assert figures[0] == figures[1]
