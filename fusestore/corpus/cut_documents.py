"""The rows of a corpus's table: source documents, cut to fit every model."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import polars as pl

from fusestore.corpus.manifest import ChatSettings, CorpusFingerprint
from fusestore.corpus.segment import segment_text
from fusestore.corpus.segment_conversation import segment_conversation
from fusestore.errors import InvalidInputError
from fusestore.progress import Progress
from fusestore.tokenizers.chat_encoder import ChatEncoder
from fusestore.tokenizers.conversation import Conversation
from fusestore.tokenizers.tokenizer import Tokenizer, chat_encoder

_SHOWN = 1_000
"""Characters of an example."""

_UNSHARED = ("tool_calls", "reasoning_content", "reasoning", "thinking")
"""Fields of a turn that each template writes in its own way."""


@dataclass
class CutDocuments:
    """What a corpus is made of.

    Attributes:
        rows: one a document; see `DOCUMENTS_SCHEMA`.
        forced_cuts, dropped_exchanges: see `CorpusManifest`.
    """

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    forced_cuts: int = 0
    dropped_exchanges: int = 0


def cut_documents(
    documents: pl.DataFrame,
    fingerprint: CorpusFingerprint,
    tokenizers: Sequence[Tokenizer],
    progress: Progress,
    report: Callable[[str], None],
) -> CutDocuments:
    """Cut all source documents.

    Args:
        documents: `source`, `text`, `split`, `conversation`.
        fingerprint: how they are cut, and read.
        tokenizers: of all models of the run.
        progress: counts bytes of source text.
        report: receives an example of a conversation, and lines on what is left out.

    Raises:
        InvalidInputError: a model cannot read a conversation, or no document is left.
        IncompatibleError: a model cannot read conversations at all.
    """
    cut = CutDocuments()
    limit = fingerprint.segmentation.max_length
    total = int(documents["text"].str.len_bytes().sum())
    done = 0
    chat = fingerprint.chat
    if chat is None:
        parts = _texts(documents, fingerprint, tokenizers, cut)
    else:
        parts = _conversations(documents, chat, limit, tokenizers, cut, report)
    for source, segment, split, text, conversation, turns in parts:
        data = text.encode()
        digest = hashlib.sha256(data).hexdigest()
        number = len(cut.rows)
        cut.rows.append(
            (number, source, segment, split, text, len(data), digest, conversation, turns)
        )
        done += len(data)
        progress(min(done, total), total)
    if cut.dropped_exchanges:
        report(
            f"{cut.dropped_exchanges:,} exchanges of more than {limit:,} tokens were left out; "
            "raise max_length to keep them"
        )
    if not cut.rows:
        raise InvalidInputError("No conversation fits the maximum length. Raise max_length.")
    return cut


def _texts(
    documents: pl.DataFrame,
    fingerprint: CorpusFingerprint,
    tokenizers: Sequence[Tokenizer],
    cut: CutDocuments,
) -> Iterator[tuple[Any, ...]]:
    rule = fingerprint.segmentation
    for source, text, split in documents.select("source", "text", "split").iter_rows():
        segments: tuple[str, ...] = (text,)
        if rule.max_length is not None:
            segmented = segment_text(
                text, tokenizers, rule.max_length, bos_allowance=rule.bos_allowance
            )
            segments = segmented.segments
            cut.forced_cuts += segmented.forced_cuts
        for number, segment in enumerate(segments):
            yield source, number, split, segment, None, None


def _conversations(
    documents: pl.DataFrame,
    chat: ChatSettings,
    max_length: int | None,
    tokenizers: Sequence[Tokenizer],
    cut: CutDocuments,
    report: Callable[[str], None],
) -> Iterator[tuple[Any, ...]]:
    encoders = [
        chat_encoder(tokenizer, chat.template_variables, chat.fallback_template)
        for tokenizer in tokenizers
    ]
    rows = documents.select("source", "split", "conversation").iter_rows()
    unshared = 0
    for place, (source, split, data) in enumerate(rows):
        conversation = Conversation.from_json(data)
        unshared += sum(
            any(message.get(name) for name in _UNSHARED) for message in conversation.messages
        )
        # Without a limit too, because it shows that every model can read the conversation.
        limit = max_length or sys.maxsize
        segmented = segment_conversation(conversation, encoders, limit, partial(_name, source))
        cut.dropped_exchanges += segmented.left_out
        if place == 0:
            report(_example(source, conversation, tokenizers, encoders))
        for number, segment in enumerate(segmented.segments):
            trained_on = segment.trained_on(chat.train_on)
            turns = [
                {**turn._asdict(), "trained_on": is_trained_on}
                for turn, is_trained_on in zip(segment.turns, trained_on, strict=True)
            ]
            yield source, number, split, segment.text, segment.to_json(), turns
    if unshared:
        report(
            f"{unshared:,} turns have tool calls or reasoning: each model reads them as its chat "
            "template writes them, and none is trained on them"
        )


def _name(source: str, _: int) -> str:
    return source


def _example(
    source: str,
    conversation: Conversation,
    tokenizers: Sequence[Tokenizer],
    encoders: Sequence[ChatEncoder],
) -> str:
    """A conversation as the first model reads it, for people."""
    roles = ", ".join(turn.role for turn in conversation.turns)
    if not encoders:
        return f"{source} is a conversation of {roles}"
    text = encoders[0].rendered(conversation)
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return f"{source} is a conversation of {roles}, which {tokenizers[0].name} reads as\n{shown}"
