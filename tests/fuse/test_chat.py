"""Conversations from file to loss: who supervises which token, and what counts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fusestore as fs
from fusestore.corpus.corpus import supervision_of
from fusestore.corpus.tokenize import corpus_tokens
from fusestore.data.collation import collate
from fusestore.fuse.resolve import find_inputs
from fusestore.fuse.shared import pack_fused
from fusestore.losses.positions import count_positions
from fusestore.models.model import Model
from fusestore.storage.location import Location
from fusestore.train.held_out import bits_per_byte, held_out_tokens
from tests.helpers.chat_models import chat_tokenizer, write_conversations
from tests.helpers.tiny_models import make_llama, save_model

MODELS = {"chatml": False, "instructions": True, "prefixed": False}
TARGET, *OTHERS = MODELS


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Four conversations, read by three models with other tokenizers and templates."""
    folder = tmp_path_factory.mktemp("chat")
    file = write_conversations(folder / "chats.jsonl", 4)
    for name, pieces in MODELS.items():
        tokenizer = chat_tokenizer(name, pieces=pieces, vocab_size=330 - len(name))
        # Sharp enough, and of whole rows, so that every probability is known.
        save_model(folder / name, make_llama(len(tokenizer), context=512), tokenizer)
    store = fs.open_store(str(folder / "store"))
    models = {name: Model.open(folder / name) for name in MODELS}
    corpus = store.build_corpus(
        "chats",
        [str(file)],
        fs.CorpusSettings(max_length=None, held_out_fraction=0.5),
        tokenizers=list(models.values()),
    )
    exact = {"profile": "lossless", "logprob_step": 0, "dtype": "float32"}
    caches = {
        name: store.capture(
            name,
            model=model,
            corpus=corpus,
            settings=fs.CaptureSettings(top_k=model.vocab_size, **exact),
        )
        for name, model in models.items()
    }
    for name in OTHERS:
        store.align(name, target=TARGET)
    return SimpleNamespace(store=store, corpus=corpus, caches=caches, models=models)


def recipe(**changes):
    return fs.Recipe(
        **{"sources": list(MODELS), "target": TARGET, "window_length": 400, "top_k": 64, **changes}
    )


def marked(made, name):
    tokenizer = made.models[name].tokenizer
    tokens = corpus_tokens(made.store, made.corpus, tokenizer, add_bos=False)
    return supervision_of(made.corpus).mark(tokens, np.arange(tokens.num_documents))


def test_every_cache_scores_the_same_bytes(made):
    scores = [cache.manifest.scores for cache in made.caches.values()]
    for split in made.corpus.manifest.splits:
        assert len({score[f"{split}.predicted_bytes"] for score in scores}) == 1
    turns = made.corpus.table()["turns"].explode().struct.unnest().filter("trained_on")
    total = sum(scores[0][f"{split}.predicted_bytes"] for split in made.corpus.manifest.splits)
    assert total == (turns["stop"] - turns["start"] + 1).sum()


def test_rows_have_read_the_same_conversation(made):
    """At an answer's first token both have read everything before it, and nothing of it."""
    target, source = marked(made, TARGET), marked(made, "prefixed")
    fusion = find_inputs(made.store, recipe())
    position, kind = fusion.sources[2].alignment.for_documents(0, target.num_documents)
    starts = target.is_counted & ~np.append(False, target.is_counted[:-1])
    assert starts.sum() == 2 * target.num_documents
    document = np.repeat(np.arange(target.num_documents), np.diff(target.document_offsets))
    for first in np.flatnonzero(starts):
        assert kind[first - 1] == 1
        row = source.document_offsets[document[first]] + position[first - 1]
        # The row after which the source begins the same answer.
        assert source.is_counted[row : row + 2].tolist() == [False, True]
        assert source.end_offsets[row] == target.end_offsets[first - 1]


@pytest.mark.parametrize("name", OTHERS)
def test_the_end_of_a_turn_is_the_targets_marker(made, name):
    """What a source gives its own marker goes to the target's, which is spelled otherwise."""
    changes = {"sources": [name], "strategy": "single"}
    rows = made.store.fuse(f"alone-{name}", recipe(**changes), materialize=True).dataset()
    cache, source = made.caches[name], marked(made, name)
    own_marker = cache.fingerprint.template.end_of_turn_id
    marker = made.caches[TARGET].fingerprint.template.end_of_turn_id
    before = np.flatnonzero(source.is_counted & (source.token_ids == own_marker)) - 1
    documents = np.searchsorted(source.document_offsets, before, side="right") - 1
    train = set(made.corpus.split_documents("train").tolist())
    expected = [
        float(np.exp(cache[int(row) : int(row) + 1].label_logprob[0]))
        for row, document in zip(before, documents, strict=True)
        if document in train
    ]
    samples = [rows[index] for index in range(len(rows))]
    found = []
    for sample in samples:
        for at in torch.nonzero(sample["next_ids"] == marker).flatten().tolist():
            entry = sample["fused_ids"][at] == marker
            found.append(float(sample["fused_logprobs"][at][entry].exp().sum()))
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_forecast_is_of_what_counts(made):
    figures = made.store.forecast(recipe())
    counted = marked(made, TARGET).take(made.corpus.split_documents("held_out"))
    assert figures.num_predicted == counted.is_counted.sum()
    assert figures.num_bytes == np.maximum(counted.counted_bytes, 0).sum()
    assert figures.common == 1
    masked = 1 - counted.is_counted.sum() / counted.num_tokens
    assert masked > 0.2
    for source in figures.sources:
        assert source.positions_masked == pytest.approx(masked)
        assert source.unaligned == pytest.approx(0, abs=1e-9)
        assert source.alone.covered == 1
        assert source.label_guessed == 0
        scores = made.caches[source.cache].manifest.scores
        own = scores["held_out.nats"] / np.log(2) / scores["held_out.predicted_bytes"]
        assert source.own_bits_per_byte == pytest.approx(own, rel=1e-6)
        if source.cache != "instructions":
            # Whose first tokens of answers hold a space of the template too.
            assert source.alone.bits_per_byte == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize(
    ("strategy", "granularity"),
    [("mince", "document"), ("mince", "window"), ("mince", "token"), ("em", "document")],
)
def test_only_what_counts_has_a_label(made, strategy, granularity):
    changes = {"split": "held_out", "strategy": strategy, "granularity": granularity}
    name = f"{strategy}-{granularity}"
    dataset = made.store.fuse(name, recipe(**changes), materialize=True).dataset()
    samples = [dataset[index] for index in range(len(dataset))]
    target = marked(made, TARGET).take(made.corpus.split_documents("held_out"))
    predicts = np.append(target.is_counted[1:], False)
    labels = torch.cat([sample["next_ids"] for sample in samples]).numpy()
    assert (labels[~predicts] == -100).all()
    assert (labels[predicts] == target.token_ids[1:][predicts[:-1]]).all()
    mask = torch.cat([sample["fused_mask"] for sample in samples]).numpy()
    assert mask.tolist() == predicts.tolist()
    ends = torch.cat([sample["document_end"] for sample in samples]).numpy()
    assert np.flatnonzero(ends).tolist() == (target.document_offsets[1:] - 1).tolist()
    count = predicts.sum()
    assert count_positions([collate(samples)]).tolist() == [count, count]


def test_the_shared_form_streams_the_same(made, tmp_path):
    local = made.store.fuse("whole", recipe(split="held_out"), materialize=True).dataset()
    shared = Location.parse(tmp_path / "shared")
    pack_fused(Location.parse(local.folder), shared)
    stream = fs.StreamingFusedDataset(str(shared), cache_dir=tmp_path / "cache")
    streamed = sorted(stream, key=lambda sample: int(sample["window"]))
    assert len(streamed) == len(local)
    for expected, found in zip((local[i] for i in range(len(local))), streamed, strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_model_is_scored_on_what_counts(made):
    """Its own evaluation, and the cache of the same model, agree."""
    model = made.models[TARGET]
    tokens = held_out_tokens(made.store, model.tokenizer, "chats", "held_out")
    result = bits_per_byte(model.load(dtype="float32"), tokens)
    scores = made.caches[TARGET].manifest.scores
    assert result.num_bytes == scores["held_out.predicted_bytes"]
    assert result.num_tokens == scores["held_out.predicted_tokens"]
    nats = scores["held_out.nats"]
    assert result.nats_per_token * result.num_tokens == pytest.approx(nats, rel=1e-5)
    short = bits_per_byte(model.load(dtype="float32"), tokens, max_length=40)
    assert (short.num_bytes, short.num_tokens) == (result.num_bytes, result.num_tokens)


@pytest.mark.parametrize("objective", ["clm", "fuse"])
def test_training_learns_answers(made, tmp_path, objective):
    """A run is scored on answers, which it learns."""
    fused = made.store.fuse("learned-from", recipe(), materialize=True)
    trained = made.store.train(
        f"learned-{objective}",
        made.models[TARGET],
        fused,
        fs.TrainSettings(
            objective=objective,
            max_steps=8,
            batch_size=2,
            learning_rate=3e-3,
            precision="float32",
        ),
        evaluate=("chats", "train"),
        work_dir=tmp_path,
    )
    before, *_, after = (point.metrics["bits_per_byte"] for point in trained.manifest.evaluations)
    own = made.caches[TARGET].manifest.scores
    assert before == pytest.approx(
        own["train.nats"] / np.log(2) / own["train.predicted_bytes"], rel=1e-5
    )
    assert after < before
