"""An estimate against the capture it speaks of: bytes within 15 %, and nothing written."""

import inspect
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusestore.capture.estimate import (
    METADATA,
    NUM_STRATA,
    Prices,
    estimate_capture,
    sample_documents,
)
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import write_corpus
from fusestore.corpus.corpus import open_corpus
from fusestore.errors import InvalidInputError, NonFiniteError, NotFoundError
from fusestore.models.model import Model
from fusestore.store.layout import Store
from tests.helpers.command import Command
from tests.helpers.tiny_job import hashes, paragraphs
from tests.helpers.tiny_models import make_llama, save_model, train_tokenizer

NEAR = 0.15


@pytest.fixture(scope="module")
def texts():
    return [text[: 40 + 37 * index % 500] for index, text in enumerate(paragraphs() * 2)]


@pytest.fixture(scope="module")
def model_path(texts, tmp_path_factory):
    tokenizer = train_tokenizer(texts, 600)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return save_model(folder, make_llama(len(tokenizer), context=1024), tokenizer)


@pytest.fixture
def store(tmp_path, texts):
    pl.DataFrame({"text": texts}).write_parquet(tmp_path / "texts.parquet")
    store = Store.open(tmp_path / "store")
    write_corpus(store, "texts", tmp_path / "texts.parquet")
    return store


SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "exact": {"profile": "lossless", "top_k": 5},
    "not compressed": {"profile": "fast", "top_k": 5},
    "sampled": {"selection": "sampled", "top_k": 16},
    "many shards": {"rows_per_shard": 2048, "rows_per_chunk": 512},
    "wide rows": {"top_k": 100, "logprob_step": 0.25},
}


@pytest.mark.parametrize(
    "name",
    [
        "default",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("exact", "sampled", "not compressed", "many shards", "wide rows")
        ),
    ],
)
def test_bytes_are_within_15_percent(store, model_path, name):
    corpus = open_corpus(store, "texts")
    settings = CaptureSettings(device="cpu", **SETTINGS[name])
    before = hashes(store.location)
    estimate = estimate_capture(store, "estimate", Model.open(model_path), corpus, settings)
    assert hashes(store.location) == before
    cache = capture(store, "real", Model.open(model_path), corpus, settings).artifact
    assert estimate.num_tokens == len(cache)
    assert estimate.sampled_tokens < len(cache) / 3
    files = cache.location.sizes()
    assert estimate.num_bytes == pytest.approx(sum(files.values()), rel=NEAR)
    assert estimate.num_bytes == sum(estimate.bytes_by_array.values())
    data = {}
    for path, size in files.items():
        array = path.split("/")[0] if "/c/" in path else METADATA
        data[array] = data.get(array, 0) + size
    assert data.keys() == estimate.bytes_by_array.keys()
    for array, size in data.items():
        assert estimate.bytes_by_array[array] == pytest.approx(size, rel=NEAR, abs=300), array


def test_it_says_what_it_did(store, model_path):
    corpus = open_corpus(store, "texts")
    estimate = estimate_capture(
        store,
        "estimate",
        Model.open(model_path),
        corpus,
        CaptureSettings(device="cpu"),
        prices=Prices(per_hour=36.0, per_gb_month=2.0),
        sample_tokens=500,
    )
    assert 500 <= estimate.sampled_tokens < 2000
    assert estimate.sampled_documents >= NUM_STRATA
    assert estimate.num_documents == corpus.manifest.num_documents
    assert estimate.seconds == pytest.approx(sum(estimate.seconds_by_step.values()))
    assert min(estimate.seconds_by_step.values()) >= 0
    assert estimate.tokens_per_second > 0
    assert estimate.peak_memory_bytes > 2**20
    assert estimate.cost == pytest.approx(estimate.seconds / 100)
    assert estimate.storage_cost_per_month == pytest.approx(estimate.num_bytes * 2e-9)


def test_a_small_corpus_is_captured_whole(tmp_path, model_path, texts):
    pl.DataFrame({"text": texts[:3]}).write_parquet(tmp_path / "texts.parquet")
    store = Store.open(tmp_path / "store")
    corpus = write_corpus(store, "few", tmp_path / "texts.parquet")
    settings = CaptureSettings(device="cpu")
    estimate = estimate_capture(store, "estimate", Model.open(model_path), corpus, settings)
    assert estimate.sampled_tokens == estimate.num_tokens
    cache = capture(store, "real", Model.open(model_path), corpus, settings).artifact
    assert estimate.num_bytes == pytest.approx(sum(cache.location.sizes().values()), rel=0.02)


def test_a_model_that_gives_nan_is_explained(store, texts, tmp_path):
    tokenizer = train_tokenizer(texts, 600)
    model = make_llama(len(tokenizer), context=1024)
    model.lm_head.weight.data.fill_(float("nan"))
    path = save_model(tmp_path / "nan", model, tokenizer)
    with pytest.raises(NonFiniteError, match="--on-nan skip"):
        estimate_capture(store, "estimate", Model.open(path), open_corpus(store, "texts"))


@given(
    st.lists(st.integers(0, 900), min_size=1, max_size=60).filter(any),
    st.integers(1, 5000),
    st.integers(0, 3),
)
def test_the_sample_is_of_every_length(lengths, budget, seed):
    lengths = np.array(lengths, np.int64)
    strata = sample_documents(lengths, budget, seed)
    assert sum(stratum.num_tokens for stratum in strata) == lengths.sum()
    drawn = np.concatenate([stratum.documents for stratum in strata])
    assert len(set(drawn.tolist())) == len(drawn)
    assert lengths[drawn].min() > 0
    assert 1 <= len(strata) <= NUM_STRATA
    for longer, shorter in pairwise(strata):
        assert lengths[longer.documents].min() >= lengths[shorter.documents].max()
    for stratum in strata:
        taken = lengths[stratum.documents]
        assert taken.sum() - taken.max() < budget / NUM_STRATA + taken.max()
        assert taken.sum() >= min(budget / NUM_STRATA, stratum.num_tokens)
    again = sample_documents(lengths, budget, seed)
    assert all(np.array_equal(a.documents, b.documents) for a, b in zip(strata, again, strict=True))


def test_no_tokens_no_sample():
    with pytest.raises(InvalidInputError, match="nothing to capture"):
        sample_documents(np.zeros(3, np.int64), 10, 0)


@pytest.fixture
def command(capsys, monkeypatch):
    return Command(capsys, monkeypatch)


def test_the_command(command, store, model_path):
    arguments = [model_path, "-s", store.location, "--corpus", "texts", "-k", "8"]
    told = command.succeeds("estimate", *arguments, "--json", "--price-per-hour", "2").json
    assert told["cost"] > 0
    assert told["storage_cost_per_month"] is None
    shown = command.succeeds("estimate", *arguments, "--price-per-gb-month", "1").out
    for word in ("logprobs", "bytes per token", "Time:", "Rate:", "per month"):
        assert word in shown
    assert store.names("caches") == []
    message = command.fails("estimate", model_path, "-s", store.location, "--corpus", "none")
    assert "texts" in message
    with pytest.raises(NotFoundError):
        open_corpus(store, "none")
    assert command("estimate", *arguments, "--price-per-hour", "-1").code == 2


def test_whatever_can_be_captured_can_be_estimated():
    from fusestore_cli.capture import capture as capture_command
    from fusestore_cli.estimate import estimate
    from fusestore_cli.executors import ExecutorSettings

    options = set(inspect.signature(capture_command).parameters)
    options -= {"name", *ExecutorSettings.model_fields}
    assert options <= set(inspect.signature(estimate).parameters)


@pytest.mark.slow
def test_a_whole_fusion(command, tmp_path, model_path, texts):
    pl.DataFrame({"text": texts}).write_parquet(tmp_path / "texts.parquet")
    fusion = tmp_path / "fusion.toml"
    fusion.write_text(
        f"""
        store = "{tmp_path}/store"
        corpus.inputs = ["{tmp_path}/texts.parquet"]
        models.one = {{ model = "{model_path}", device = "cpu" }}
        models.two = {{ model = "{model_path}", device = "cpu", top_k = 4 }}
        models.unused = {{ model = "{model_path}" }}
        fuse.target = "one"
        fuse.sources = ["one", "two"]
        """
    )
    told = command.succeeds("run", fusion, "--estimate", "--json").json
    schema = json.loads(
        (Path(__file__).parents[2] / "schemas/output-run-estimate.json").read_text()
    )
    jsonschema.validate(told, schema)
    told = told["captures"]
    assert list(told) == ["one", "two"]
    assert told["two"]["num_bytes"] < told["one"]["num_bytes"]
    store = Store.open(tmp_path / "store")
    assert store.names("caches") == []
    settings = CaptureSettings(device="cpu")
    capture(store, "one", Model.open(model_path), open_corpus(store, "corpus"), settings)
    shown = command.succeeds("run", fusion, "--estimate", "--price-per-hour", "1")
    assert "cache one: already there" in shown.err
    assert "cost" in shown.out
    assert command("run", fusion, "--price-per-hour", "1").code == 2
