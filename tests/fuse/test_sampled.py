"""Sampled rows stay unbiased through every strategy, beside top-k rows, and refuse what is not."""

import numpy as np
import pytest
import torch

from fusestore.cache.rows import Rows
from fusestore.cache.rule import Rule
from fusestore.capture.sampling import tally, uniforms
from fusestore.errors import IncompatibleError
from fusestore.fuse.fusion import prepare
from fusestore.fuse.inputs import SourceInput
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.shard import fuse_rows

VOCAB, POSITIONS, DRAWS, TOP_K = 12, 20_000, 6, 4


@pytest.fixture(scope="module")
def job(helpers):
    """One document; at each of its positions the same two distributions, one of them sampled."""
    rng = np.random.default_rng(0)
    sampled, kept = rng.dirichlet(np.full(VOCAB, 0.5), 2)
    tokens = helpers.table([[(i % VOCAB, i + 1) for i in range(POSITIONS)]])
    label = np.full(POSITIONS, -1.0, np.float32)
    label[-1] = np.nan
    points = uniforms(1, np.arange(POSITIONS), DRAWS)
    drawn = np.searchsorted(np.cumsum(sampled), points, side="right").clip(max=VOCAB - 1)
    ids, logprobs = (array.numpy() for array in tally(torch.from_numpy(drawn.astype(np.int32))))
    samples = Rows(ids, logprobs, np.full(POSITIONS, -np.inf, np.float32), label)
    order = np.argsort(-kept)
    top = Rows(
        np.tile(order[:TOP_K].astype(np.int32), (POSITIONS, 1)),
        np.tile(np.log(kept[order[:TOP_K]]).astype(np.float32), (POSITIONS, 1)),
        np.full(POSITIONS, np.log(kept[order[TOP_K:]].sum()), np.float32),
        label,
    )
    sources = {
        "samples": SourceInput(
            "samples",
            helpers.cache(tokens, samples),
            "digest-samples",
            "corpus",
            rule=Rule("sampled", DRAWS, seed=1),
        ),
        "top": SourceInput(
            "top", helpers.cache(tokens, top), "digest-top", "corpus", rule=Rule("top-k", TOP_K)
        ),
    }
    full = np.zeros(VOCAB + 1)
    full[order[:TOP_K]] = kept[order[:TOP_K]]
    full[-1] = kept[order[TOP_K:]].sum()
    return tokens, sources, sampled, full


def fuse(job, names, **choices):
    tokens, sources, *_ = job
    recipe = {
        "corpus": "c",
        "split": "train",
        "target": "t",
        "sources": [{"cache": name} for name in names],
        "top_k": DRAWS + TOP_K,
        **choices,
    }
    own = choices.get("target_cache")
    return prepare(
        Recipe.parse(recipe),
        [sources[name] for name in names],
        target_tokens=tokens,
        tokens_digest="tokens",
        documents=np.array([0]),
        vocab_size=VOCAB,
        corpus_digest="corpus",
        target_cache=sources[own] if own else None,
    )


def check_mean(helpers, rows, expected):
    """The mean over positions, in standard errors of the samples themselves."""
    dense = helpers.dense(rows.ids, rows.logprobs, rows.tail, VOCAB)
    np.testing.assert_allclose(dense.sum(axis=1), 1.0, atol=1e-5)
    error = dense.std(axis=0) / np.sqrt(len(dense))
    assert (np.abs(dense.mean(axis=0) - expected) < 5 * error + 1e-6).all()


@pytest.mark.parametrize("strategy", ["single", "mince"])
def test_a_sampled_row_passes_whole_and_has_no_tail(helpers, job, strategy):
    names = ["samples"] if strategy == "single" else ["samples", "top"]
    fusion = fuse(job, names, strategy=strategy)
    assert fusion.sampled
    rows, _ = fuse_rows(fusion, 0, POSITIONS)
    # Equal scores: mince takes the first.
    assert (rows.source == 0).all()
    assert np.isneginf(rows.tail).all()
    check_mean(helpers, rows, np.append(job[2], 0.0))


@pytest.mark.parametrize("strategy", ["uniform", "weighted", "avgce"])
def test_a_mixture_with_a_top_k_row_is_unbiased(helpers, job, strategy):
    weights = {"weighted": (3.0, 1.0)}.get(strategy, (1.0, 1.0))
    sources = [
        {"cache": name, "weight": weight}
        for name, weight in zip(["samples", "top"], weights, strict=True)
    ]
    fusion = fuse(job, ["samples", "top"], strategy=strategy, sources=sources)
    rows, _ = fuse_rows(fusion, 0, POSITIONS)
    share = weights[0] / sum(weights)
    check_mean(helpers, rows, share * np.append(job[2], 0.0) + (1 - share) * job[3])


def test_the_targets_own_samples_may_stand_where_nothing_is_aligned(helpers, job):
    choices = {"strategy": "single", "unaligned": "target", "target_cache": "samples"}
    fusion = fuse(job, ["top"], **choices)
    assert fusion.sampled
    with pytest.raises(IncompatibleError, match=r"'samples' are samples.* Set top_k to 6"):
        fuse(job, ["top"], top_k=5, **choices)


def test_without_samples_nothing_is_asked(job):
    assert not fuse(job, ["top"], strategy="single", score="aligned_ce", top_k=2).sampled


def test_labels_are_not_scored_by_samples(job):
    with pytest.raises(IncompatibleError, match=r"'samples' are 6 draws.*bits_per_byte"):
        fuse(job, ["samples", "top"], score="aligned_ce")


@pytest.mark.parametrize(
    ("strategy", "names", "needed"),
    [
        ("single", ["samples"], 6),
        ("mince", ["samples", "top"], 6),
        ("uniform", ["top", "samples"], 10),
    ],
)
def test_no_entry_of_a_sample_may_be_cut_off(job, strategy, names, needed):
    fuse(job, names, strategy=strategy, top_k=needed)
    with pytest.raises(IncompatibleError, match=rf"top_k is {needed - 1}, .*Set top_k to {needed}"):
        fuse(job, names, strategy=strategy, top_k=needed - 1)


def test_no_rare_entry_of_a_sample_may_be_cut_off(job):
    with pytest.raises(IncompatibleError, match=r"min_probability is 0.1, .*'samples' are samples"):
        fuse(job, ["samples", "top"], min_probability=0.1)
    with pytest.raises(IncompatibleError, match=r"logprob_step is 0.5, .*'samples' are samples"):
        fuse(job, ["samples", "top"], logprob_step=0.5)
    fuse(job, ["top"], min_probability=0.1, logprob_step=0.5)
