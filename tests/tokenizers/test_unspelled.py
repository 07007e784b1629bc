"""Bytes that a vocabulary lacks are named to whoever builds a corpus or captures it."""

# ruff: noqa: S106 - the tokens of a tokenizer are not passwords

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.run import build_corpus
from fusestore.corpus.settings import CorpusSettings
from fusestore.models.model import Model
from fusestore.progress import SilentReporter
from fusestore.store.layout import Store
from fusestore.tokenizers.token_bytes import byte_level_text
from tests.helpers.tiny_models import SCRIPTS, make_llama, save_model, train_tokenizer

LINE = (
    "2 documents hold bytes that the vocabulary of {} lacks (04 1d); its model reads the text "
    "without them"
)


class Lines(SilentReporter):
    """Keeps the lines that a stage prints."""

    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with a vocabulary that lacks two bytes."""
    content = json.loads(train_tokenizer(SCRIPTS, 500).backend_tokenizer.to_str())
    for byte in b"\x04\x1d":
        del content["model"]["vocab"][byte_level_text(bytes([byte]))]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Backend.from_str(json.dumps(content)), bos_token="<s>", eos_token="</s>"
    )
    return save_model(tmp_path_factory.mktemp("lacking") / "tiny", make_llama(500), tokenizer)


def test_a_corpus_and_a_capture_name_bytes_that_are_not_spelled(folder, tmp_path):
    file = tmp_path / "texts.jsonl"
    texts = ["the \x04 quick", "brown fox", "over\x1d\x1d \x04 dog"]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    store = Store.open(tmp_path / "store")
    reporter = Lines()
    model = Model.open(str(folder))
    settings = CorpusSettings(max_length=64)
    corpus = build_corpus(store, "odd", file, settings, tokenizers=[model], reporter=reporter)
    assert reporter.lines == [f"odd: {LINE.format('tiny')}"]
    reporter.lines.clear()
    options = CaptureSettings(top_k=4, device="cpu", dtype="float32")
    captured = capture(store, "tiny", model, corpus.artifact, options, reporter=reporter)
    assert f"tiny: {LINE.format('tiny')}" in reporter.lines
    tokens = captured.artifact.tokens
    for document, text in enumerate(corpus.artifact.texts()):
        assert tokens.document(document)[1][-1] == len(text.encode())


def test_tokens_around_missing_bytes_end_where_they_should(folder):
    tokenizer = Model.open(str(folder)).tokenizer
    text = "\x04the \x04\x04quick\x1d"
    ids, ends = tokenizer.encode([text], add_bos=False).document(0)
    data, at = text.encode(), 0
    for token_id, end in zip(ids, ends, strict=True):
        for byte in tokenizer.vocabulary.token_bytes[token_id]:
            at += data[at:].index(byte)
            at += 1
        while data[at : at + 1] in (b"\x04", b"\x1d"):
            at += 1
        assert end == at
    assert at == len(data)
