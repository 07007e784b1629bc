"""The rows of a corpus's table: source documents, cut to fit every model."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
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
from fusestore.tokenizers.chat_template import UNSHARED
from fusestore.tokenizers.conversation import END_OF_TURN, Conversation
from fusestore.tokenizers.tokenizer import Tokenizer, chat_encoder

_SHOWN = 1_000
"""Characters of an example."""

_NAMED = 5
"""Exchanges that are named in a line."""


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
    unshared: Counter[str] = Counter()
    unread: Counter[tuple[str, str]] = Counter()
    left_out_bytes = 0
    pieces: list[int] = []
    left_out: list[str] = []
    for place, (source, split, data) in enumerate(rows):
        conversation = Conversation.from_json(data)
        # Without a limit too, because it shows that every model can read the conversation.
        limit = max_length or sys.maxsize
        segmented = segment_conversation(conversation, encoders, limit, partial(_name, source))
        found = _unshared(conversation)
        unshared.update(found)
        for tokenizer, encoder in zip(tokenizers, encoders, strict=True) if found else ():
            unread.update((tokenizer.name, name) for name in encoder.left_out(conversation))
        cut.dropped_exchanges += len(segmented.left_out)
        trained_on = conversation.trained_on(chat.train_on)
        for first, stop in segmented.left_out:
            left_out.append(f"turns {first} to {stop - 1} of {source}")
            left_out_bytes += _trained_bytes(conversation, trained_on, first, stop)
        if len(segmented.segments) > 1:
            pieces.append(len(segmented.segments))
        if place == 0:
            report(_example(source, conversation, tokenizers, encoders))
        for number, segment in enumerate(segmented.segments):
            part = segment.conversation
            turns = [
                {**turn._asdict(), "trained_on": is_trained_on}
                for turn, is_trained_on in zip(
                    part.turns, segment.of_turns(trained_on), strict=True
                )
            ]
            yield source, number, split, part.text, part.to_json(), turns
    if pieces:
        report(
            f"{len(pieces):,} conversations of more than {max_length:,} tokens were cut before "
            f"turns of the user into {sum(pieces):,} documents; each begins with the turns of the "
            "system, which are trained on once"
        )
    if left_out:
        more = f", and {len(left_out) - _NAMED:,} more" if len(left_out) > _NAMED else ""
        report(
            f"{len(left_out):,} exchanges of more than {max_length:,} tokens were left out, with "
            f"{left_out_bytes:,} bytes to train on; raise max_length to keep them: "
            f"{', '.join(left_out[:_NAMED])}{more}"
        )
    if unshared:
        listed = ", ".join(f"{name} in {count:,}" for name, count in unshared.items())
        report(
            f"Of {len(documents):,} conversations there are {listed}: each model reads them as its "
            "chat template writes them, and none is trained on them"
        )
    for (model, name), count in unread.items():
        report(f"{model} does not read the {name} of {count:,}: its chat template leaves them out")


def _unshared(conversation: Conversation) -> list[str]:
    """Which of `UNSHARED` a conversation has."""
    of_turns = {key for message in conversation.messages for key, value in message.items() if value}
    if conversation.tools:
        of_turns.add("tools")
    return [name for name, fields in UNSHARED.items() if of_turns & set(fields)]


def _trained_bytes(
    conversation: Conversation, trained_on: Sequence[bool], first: int, stop: int
) -> int:
    """Bytes of the turns `[first, stop)` that are trained on, with the ends of these turns."""
    return sum(
        turn.stop + len(END_OF_TURN) - turn.start
        for turn, is_trained_on in zip(
            conversation.turns[first:stop], trained_on[first:stop], strict=True
        )
        if is_trained_on
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
