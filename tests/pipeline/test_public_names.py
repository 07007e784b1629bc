"""The Python names that users rely on, over a finished store on disk and on S3."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch.utils.data import DataLoader

import fusestore as fs
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from tests.helpers.tiny_job import TOP_K, VOCABULARY_SIZE, WINDOW_LENGTH


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def store_url(request, first_store):
    if request.param == "local":
        return str(first_store)
    store = Location.parse(request.getfixturevalue("s3_url")) / "my.store"
    for name in Location.parse(first_store).list_recursive():
        publish(store / name, (first_store / name).read_bytes())
    return store.url


def test_a_cache_is_read_by_rows_and_by_documents(store_url):
    cache = fs.open_cache(store_url, "wide")
    rows = cache[10:50]
    assert rows.ids.shape == rows.logprobs.shape == (40, TOP_K)
    assert rows.tail.shape == rows.label_logprob.shape == (40,)
    whole = np.exp(rows.logprobs.astype(np.float64)).sum(axis=1) + np.exp(rows.tail)
    # Each kept entry is within half a step of 1/16 nats.
    np.testing.assert_allclose(whole, 1, atol=1 / 32)
    corpus = fs.open_corpus(store_url, "addresses")
    offsets = cache.tokens.document_offsets
    assert len(cache) == offsets[-1]
    assert len(offsets) == corpus.manifest.num_documents + 1
    document = cache.document(3)
    np.testing.assert_array_equal(document.ids, cache[offsets[3] : offsets[4]].ids)
    assert np.isfinite(document.label_logprob[:-1]).all()
    assert np.isnan(document.label_logprob[-1])


def test_a_fused_dataset_feeds_the_loss(store_url):
    dataset = fs.open_fused(store_url, "mince")
    batch = fs.data.collate([dataset[0], dataset[len(dataset) - 1]])
    assert batch["input_ids"].shape == (2, WINDOW_LENGTH)
    assert batch["fused_ids"].shape == (2, WINDOW_LENGTH, TOP_K)
    logits = torch.randn(2, WINDOW_LENGTH, VOCABULARY_SIZE, requires_grad=True)
    loss = fs.losses.fusion_loss(logits, batch, lm_weight=0.9)
    loss.backward()
    assert loss.shape == ()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0


def test_vocabularies_and_tokens_are_aligned_by_tokenizers(job):
    wide, small = str(job / "wide"), str(job / "small")
    table = fs.align.vocabulary_map(wide, small, method="mined")
    assert table.columns == ["source_id", "target_id", "distance", "kind"]
    assert table["source_id"].to_list() == list(range(49_152))
    assert table["target_id"].drop_nulls().is_between(0, VOCABULARY_SIZE - 1).all()
    assert table.filter(pl.col("kind") == "exact")["distance"].unique().to_list() == [0]
    text = "Fellow citizens of the Senate: naïve 🙂 words."
    table = fs.align.token_alignment(text, wide, small, method="hybrid")
    assert table.columns == ["target_pos", "source_pos", "kind"]
    assert table["target_pos"].to_list() == list(range(len(table)))
    assert set(table["kind"]) <= {"span", "inside", "mined", "none"}
    assert table["kind"][-1] == "span"


@pytest.mark.parametrize("start", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_loader_workers_read_what_the_parent_reads(start, store_url):
    dataset = fs.open_fused(store_url, "mince")
    loader = DataLoader(
        dataset,
        batch_size=4,
        num_workers=2,
        collate_fn=fs.data.collate,
        multiprocessing_context=start,
    )
    windows = []
    for batch in loader:
        expected = fs.data.collate([dataset[int(window)] for window in batch["window"]])
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[key], expected[key]) for key in batch)
        windows += batch["window"].tolist()
    assert windows == list(range(len(dataset)))


@pytest.mark.slow
def test_forked_workers_read_in_a_process_that_only_trains(first_store):
    """Forking after Polars or obstore hangs; reading a local dataset loads neither."""
    program = """
import sys
import fusestore as fs
from torch.utils.data import DataLoader
dataset = fs.open_fused(sys.argv[1], "mince")
loader = DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=fs.data.collate,
                    multiprocessing_context="fork")
assert [int(i) for batch in loader for i in batch["window"]] == list(range(len(dataset)))
print(sorted({"polars", "obstore", "zarr"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(first_store)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_errors_can_be_caught_as_ours_and_as_builtins(store_url):
    for attempt in (
        lambda: fs.open_cache(store_url, "absent"),
        lambda: fs.open_fused(store_url, "absent"),
        lambda: fs.open_corpus(store_url, "absent"),
    ):
        with pytest.raises(fs.FusestoreError, match="absent") as caught:
            attempt()
        assert isinstance(caught.value, FileNotFoundError)
