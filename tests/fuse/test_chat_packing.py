"""Conversations in windows: whole, masked from each other, each supervised byte in one window."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusestore as fs
from fusestore.corpus.corpus import supervision_of
from fusestore.corpus.tokenize import corpus_tokens
from fusestore.data.collation import collate
from fusestore.errors import InvalidInputError
from fusestore.fuse.packing import window_starts
from fusestore.losses import fusion_terms
from fusestore.models.model import Model
from fusestore.progress import SilentReporter
from fusestore.tokenizers.conversation import TRAIN_ON, Conversation
from fusestore.tokenizers.supervision import Supervision, supervised_ranges
from fusestore.train.student import document_masking
from fusestore.train.student.student import Student
from tests.helpers.chat_models import (
    chat_tokenizer,
    conversation,
    encoder_and_tokenizer,
    write_conversations,
)
from tests.helpers.tiny_models import make_llama, save_model

WINDOW = 400
SETTINGS = fs.TrainSettings(
    max_steps=2, batch_size=2, learning_rate=3e-3, precision="float32", lm_weight=0.5
)


class Lines(SilentReporter):
    """Keeps the lines that were reported."""

    def __init__(self):
        self.said = []

    def line(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Seven conversations, and their distributions by a tiny model of its own template."""
    folder = tmp_path_factory.mktemp("packing")
    file = write_conversations(folder / "chats.jsonl", 7)
    tokenizer = chat_tokenizer("chatml")
    save_model(folder / "tiny", make_llama(len(tokenizer), context=WINDOW), tokenizer)
    store = fs.open_store(str(folder / "store"))
    model = Model.open(folder / "tiny")
    corpus = store.build_corpus(
        "chats", [str(file)], fs.CorpusSettings(max_length=WINDOW), tokenizers=[model]
    )
    store.capture("tiny", model=model, corpus=corpus, settings=fs.CaptureSettings(top_k=8))
    return SimpleNamespace(store=store, corpus=corpus, model=model)


def recipe(**changes):
    return fs.Recipe(**{"sources": ["tiny"], "window_length": WINDOW, "top_k": 8, **changes})


@pytest.fixture(scope="module")
def dataset(made):
    return made.store.fuse("packed", recipe(), materialize=True).dataset()


def target_tokens(made):
    tokens = corpus_tokens(made.store, made.corpus, made.model.tokenizer, add_bos=False)
    return supervision_of(made.corpus).mark(tokens, np.arange(tokens.num_documents))


def test_windows_of_conversations_are_whole_by_default(made, dataset):
    """Its masks are those of its conversations, and positions begin again with each."""
    assert dataset.plan["recipe"]["packing"] == "whole"
    assert dataset.whole_documents
    tokens = target_tokens(made)
    assert 1 < len(dataset) < tokens.num_documents
    seen = []
    for window in range(len(dataset)):
        sample, documents = dataset[window], dataset.documents(window)
        seen += documents
        whole = tokens.take(documents)
        assert sample["input_ids"].tolist() == whole.token_ids.tolist()
        has_label = np.append(whole.is_counted[1:], False)
        assert (sample["next_ids"].numpy() != -100).tolist() == has_label.tolist()
        assert sample["fused_mask"].tolist() == has_label.tolist()
        positions = collate([sample], document_masking=True)["position_ids"][0]
        lengths = np.diff(whole.document_offsets)
        assert positions.tolist() == [at for length in lengths for at in range(length)]
    assert seen == list(range(tokens.num_documents))


@pytest.mark.parametrize("logits", ["whole", "chunked"])
def test_the_loss_of_packed_conversations_is_that_of_each_alone(made, dataset, logits):
    """In float32, to 1e-5 of the loss."""
    options = SETTINGS.model_copy(update={"attend_within": "document", "logits": logits})
    model = made.model.load(dtype="float32").eval()
    alone = made.store.fuse("alone", recipe(packing="document"), materialize=True).dataset()
    assert len(alone) == made.corpus.manifest.num_documents
    packed = collate(list(dataset), document_masking=True)
    found = Student(model, options, WINDOW)(packed)
    sums, counts = np.zeros(3), 0
    for sample in alone:
        batch = collate([sample])
        assert "position_ids" not in batch
        rows = model(batch["input_ids"]).logits
        count = int((batch["next_ids"] != -100).sum())
        terms = fusion_terms(rows, batch, options.fusion_objective(options.lm_weight))
        sums += count * np.array([float(t.detach()) for t in (terms.loss, terms.lm, terms.fused)])
        counts += count
    assert counts == int((packed["next_ids"] != -100).sum())
    expected = (sums / counts).tolist()
    values = [float(term.detach()) for term in (found.loss, found.lm, found.fused)]
    assert values == pytest.approx(expected, 1e-5)
    # What it would be if each read those before it.
    joined = Student(model, SETTINGS, WINDOW)(collate(list(dataset)))
    assert float(joined.lm.detach()) != pytest.approx(expected[1], 1e-4)


def test_a_run_masks_conversations_where_the_model_can(made, dataset, tmp_path, monkeypatch):
    lines = Lines()
    trained = made.store.train(
        "masked", made.model, "packed", SETTINGS, work_dir=tmp_path / "a", reporter=lines
    )
    assert trained.manifest.plan.settings.attend_within == "document"
    assert lines.said[0].startswith("masked: attention within each document: windows hold whole")
    # The same run, said in words.
    explicit = SETTINGS.model_copy(update={"attend_within": "document"})
    again = made.store.train("said", made.model, "packed", explicit, work_dir=tmp_path / "b")
    assert again.manifest.loss_curve == trained.manifest.loss_curve
    # Such as a recurrent model, which carries its state into the next document.
    monkeypatch.setattr(document_masking, "rounding_share", lambda *_: -1.0)
    lines = Lines()
    window = made.store.train(
        "joined", made.model, "packed", SETTINGS, work_dir=tmp_path / "c", reporter=lines
    )
    assert window.manifest.plan.settings.attend_within == "window"
    assert "attention within each window: documents of a window see those before" in lines.said[0]
    assert "LlamaForCausalLM" in lines.said[0]


def test_a_conversation_longer_than_a_window_is_refused_by_name(made):
    longest = int(np.diff(target_tokens(made).document_offsets).max())
    before = set(made.store.names("fused"))
    with pytest.raises(InvalidInputError) as raised:
        made.store.fuse("short", recipe(window_length=longest - 1), materialize=True)
    assert f"corpus 'chats' has {longest} tokens of the target" in str(raised.value)
    assert f"Set window_length to {longest}" in str(raised.value)
    assert set(made.store.names("fused")) == before
    cut = made.store.fuse("cut", recipe(window_length=longest - 1, packing="stream"))
    assert not cut.dataset().whole_documents


CHATML = encoder_and_tokenizer("chatml")[0]


@settings(max_examples=25)
@given(
    numbers=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    train_on=st.sampled_from(TRAIN_ON),
    spare=st.integers(0, 200),
)
def test_every_supervised_byte_is_in_one_window(numbers, train_on, spare):
    given = [Conversation(tuple(conversation(number))) for number in numbers]
    tokens = CHATML.encode(given, str)
    ranges = [supervised_ranges(each, train_on) for each in given]
    marked = Supervision.of(ranges).mark(tokens, np.arange(len(given)))
    length = int(np.diff(tokens.document_offsets).max()) + spare
    starts = window_starts(tokens.document_offsets, length, "whole")
    counted = np.maximum(marked.counted_bytes, 0)
    # What predicts a token lies in its window.
    firsts = set(starts[:-1].tolist())
    assert not any(counted[first] for first in firsts)
    in_windows = [counted[a:b].sum() for a, b in pairwise(starts)]
    assert sum(in_windows) == sum(stop - start for each in ranges for start, stop in each)
