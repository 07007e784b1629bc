"""`ChatEncoder`: conversations as a model's own tokens, with their ends in the shared text.

Ids are those of the tokenizer's own `apply_chat_template`. A token of a turn's content ends where
it ends there. Of the template's tokens

    the one that completes a turn's header   ends behind the header (STX)
    the end-of-turn marker                   ends behind the end of the turn (ETX)
    BOS at the beginning                     ends at 0
    all others                               end where the next of these does

so they are never the last at an offset, and alignment pairs none of them. A template may end its
header with a space that the tokenizer merges with the content, as those of Mistral do. Then the
header ends one byte earlier, which is where a row that is conditioned on that space belongs.

Where a turn has no marker of its own (Gemma's template puts the system's text before the user's),
the last token of its content ends behind the end of the turn. Of a turn of tool calls alone, all
tokens are the template's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.store.manifest import Frozen
from fusestore.tokenizers.chat_template import ChatTemplate, Rendering, Variables
from fusestore.tokenizers.conversation import HEADER, Conversation
from fusestore.tokenizers.end_offsets import (
    EndOffsets,
    byte_offsets_of_characters,
    original_end_offsets,
)
from fusestore.tokenizers.text_origins import INSIDE
from fusestore.tokenizers.token_table import TokenTable

_PROBE = Conversation(
    ({"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answer"})
)


class TemplateIdentity(Frozen):
    """The chat template by which a model reads a corpus.

    Attributes:
        digest: SHA-256 of the template, of the special tokens that it writes, and of the variables.
        end_of_turn_id: id of the token that ends a turn of the assistant.
    """

    digest: str
    end_of_turn_id: int


class _Tokens(NamedTuple):
    """The tokens of a rendering: ids, the bytes at which they begin and end, and which are special.

    A token whose end is not exact has that of the next exact one; see `EndOffsets`.
    """

    ids: list[int]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    special: npt.NDArray[np.bool_]


class ChatEncoder:
    """Encodes conversations with one tokenizer."""

    def __init__(
        self,
        template: ChatTemplate,
        variables: Variables,
        backend: Any,  # noqa: ANN401 - the tokenizers library is untyped
        ends: EndOffsets,
        special_ids: frozenset[int],
        bos_id: int | None,
    ) -> None:
        """Take a template with its variables, and the parts of its tokenizer.

        Args:
            template: the template.
            variables: passed to it.
            backend: a `tokenizers.Tokenizer` that takes spelled-out special tokens for these.
            ends: of the same tokenizer.
            special_ids: ids of special tokens.
            bos_id: that of BOS.

        Raises:
            IncompatibleError: the template does not end a turn of the assistant by a special token.
        """
        self._template, self._variables = template, variables
        self._backend, self._ends = backend, ends
        self._special_ids, self._bos_id = special_ids, bos_id
        self.identity = TemplateIdentity(
            digest=template.digest(variables), end_of_turn_id=self._find_end_of_turn()
        )

    def encode(
        self, conversations: Sequence[Conversation], describe: Callable[[int], str]
    ) -> TokenTable:
        """Token ids and end offsets of conversations.

        Args:
            conversations: D of them.
            describe: names a conversation, by its index, in messages.

        Raises:
            InvalidInputError: a conversation that the template refuses or changes, or a turn that
                spells a special token.
        """
        ids, ends = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
        for index, conversation in enumerate(conversations):
            try:
                token_ids, end_offsets = self._encode(conversation)
            except InvalidInputError as error:
                raise InvalidInputError(f"{describe(index)}: {error}.") from error
            ids.append(np.array(token_ids, np.int32))
            ends.append(end_offsets.astype(np.int32))
        lengths = [len(part) for part in ids]
        return TokenTable(
            np.concatenate(ids), np.concatenate(ends), np.cumsum(lengths, dtype=np.int64)
        )

    def rendered(self, conversation: Conversation) -> str:
        """The text that the model reads.

        Raises:
            InvalidInputError: as for `encode`.
        """
        return self._template.render(conversation, self._variables).text

    def left_out(self, conversation: Conversation) -> list[str]:
        """What of a conversation the model does not read: see `ChatTemplate.left_out`."""
        return self._template.left_out(conversation, self._variables)

    def _encode(self, conversation: Conversation) -> tuple[list[int], npt.NDArray[np.int64]]:
        rendering = self._template.render(conversation, self._variables)
        tokens = self._tokens(rendering)
        origins = self._origins(conversation, rendering, tokens)
        exact = np.ones(len(tokens.ids), np.bool_)
        return tokens.ids, original_end_offsets(tokens.ends, tokens.ends, origins, exact)

    def _tokens(self, rendering: Rendering) -> _Tokens:
        """The tokens of a rendering.

        Raises:
            InvalidInputError: a turn spells a special token.
        """
        text = rendering.text
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        special = np.array([token in self._special_ids for token in ids], np.bool_)
        _check_spelled(rendering, spans[special])
        byte_of = byte_offsets_of_characters(text)
        ends = byte_of[spans[:, 1]]
        # What lies between two special tokens is text like any other.
        edges = np.flatnonzero(special)
        firsts = np.concatenate([np.zeros(1, np.int64), edges + 1])
        stops = np.append(edges, len(ids))
        begins = np.concatenate([np.zeros(1, np.int64), spans[edges, 1]])
        closes = np.append(spans[edges, 0], len(text))
        for first, stop, begin, close in zip(firsts, stops, begins, closes, strict=True):
            if stop > first:
                piece = text[begin:close]
                within = np.maximum(spans[first:stop] - begin, 0)
                found = self._ends(piece, piece.encode(), ids[first:stop], within)
                ends[first:stop] = byte_of[begin] + found
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        starts[special] = byte_of[spans[special, 0]]
        return _Tokens(ids, starts, ends, special)

    def _origins(
        self, conversation: Conversation, rendering: Rendering, tokens: _Tokens
    ) -> npt.NDArray[np.int64]:
        """Offsets in the shared text of every byte of a rendering; see `text_origins`.

        Raises:
            InvalidInputError: the beginning of a turn is merged with the template.
        """
        byte_of = byte_offsets_of_characters(rendering.text)
        data = rendering.text.encode()
        origins = np.full(len(data) + 1, INSIDE, np.int64)
        origins[-1] = len(conversation.text.encode())
        if tokens.ids and tokens.ids[0] == self._bos_id:
            origins[tokens.ends[0]] = 0
        for number, (turn, span) in enumerate(
            zip(conversation.turns, rendering.spans, strict=True)
        ):
            if span is None:
                continue
            begin, close = (int(byte_of[at]) for at in span)
            at = int(np.searchsorted(tokens.ends, begin, side="left"))
            if begin and at < len(tokens.ends) and tokens.ends[at] > begin > tokens.starts[at]:
                if begin == close:
                    # Nothing of the turn is in the token.
                    continue
                merged = data[tokens.starts[at] : begin]
                if merged != b" ":
                    raise InvalidInputError(
                        f"{self._template.name} reads the beginning of turn {number} as one token "
                        f"with {merged.decode(errors='replace')!r} of its chat template"
                    )
                origins[tokens.starts[at]] = turn.start - len(HEADER) + 1
            origins[begin : close + 1] = np.arange(turn.start, turn.stop + 1)
            after = int(np.searchsorted(tokens.ends, close, side="right"))
            if self._ends_turn(tokens, after, close):
                origins[tokens.ends[after]] = turn.stop + 1
            elif close > begin:
                origins[close] = turn.stop + 1
        return origins

    def _ends_turn(self, tokens: _Tokens, at: int, close: int) -> bool:
        """Whether token `at` is an end-of-turn marker behind the content that ends at `close`."""
        return (
            at < len(tokens.ids)
            and tokens.ids[at] == self.identity.end_of_turn_id
            and int(tokens.starts[at]) == close
        )

    def _find_end_of_turn(self) -> int:
        """The first token of the template after a turn of the assistant.

        Raises:
            IncompatibleError: it is not a special token.
        """
        try:
            rendering = self._template.render(_PROBE, self._variables)
            tokens = self._tokens(rendering)
        except InvalidInputError as error:
            raise IncompatibleError(f"A short conversation: {error}.") from error
        [_, (_, stop)] = [span for span in rendering.spans if span is not None]
        close = len(rendering.text[:stop].encode())
        after = int(np.searchsorted(tokens.ends, close, side="right"))
        if after == len(tokens.ids) or not tokens.special[after] or tokens.starts[after] != close:
            rest = rendering.text[stop:]
            raise IncompatibleError(
                f"The chat template of {self._template.name} writes {rest!r} after a turn of the "
                "assistant, and that does not begin with a special token, so the model cannot say "
                "where its turn ends. Use a model whose turns end by a token of their own."
            )
        return tokens.ids[after]


def _check_spelled(rendering: Rendering, special: npt.NDArray[np.int64]) -> None:
    """Refuse special tokens, of spans [n, 2], that lie in the content of a turn."""
    for turn, span in enumerate(rendering.spans):
        if span is None:
            continue
        start, stop = span
        inside = (special[:, 0] < stop) & (special[:, 1] > start)
        if inside.any():
            first, last = special[np.argmax(inside)]
            raise InvalidInputError(
                f"turn {turn} spells {rendering.text[first:last]!r}, which the model would take "
                "for a marker of its chat template; change the text, or leave the record out"
            )
