"""Cuts a long conversation before turns of the user, so that every model can read each segment.

A segment after the first begins with the system's turns again, which are not trained on twice. An
exchange (a turn of the user with all that answers it) that alone is too long is left out, and
counted: half an answer would teach a model to end in the middle of a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from fusestore.tokenizers.chat_encoder import ChatEncoder
from fusestore.tokenizers.conversation import USER, Conversation


class Segment(NamedTuple):
    """Turns `[start, stop)` of a conversation, behind those of the system at its beginning."""

    conversation: Conversation
    start: int
    stop: int

    def of_turns(self, values: Sequence[bool]) -> list[bool]:
        """Values of its turns, of those of the whole; False for what an earlier segment holds."""
        return [*[False] * self.conversation.repeated, *values[self.start : self.stop]]


class SegmentedConversation(NamedTuple):
    """The segments of a conversation, and the turns `[start, stop)` that are too long for any."""

    segments: tuple[Segment, ...]
    left_out: tuple[tuple[int, int], ...]


def segment_conversation(
    conversation: Conversation,
    encoders: Sequence[ChatEncoder],
    max_tokens: int,
    describe: Callable[[int], str],
) -> SegmentedConversation:
    """Cut a conversation into segments of at most `max_tokens` tokens of every model.

    Args:
        conversation: the conversation.
        encoders: of all models of the run.
        max_tokens: the shortest context among the models, in tokens.
        describe: names the conversation in messages; see `ChatEncoder.encode`.

    Raises:
        InvalidInputError: a model cannot read the conversation.
    """

    def fits(segment: Conversation) -> bool:
        # A list, so that every model has read the conversation once.
        sizes = [encoder.encode([segment], describe).num_tokens for encoder in encoders]
        return max(sizes, default=0) <= max_tokens

    total = len(conversation.messages)
    if fits(conversation):
        return SegmentedConversation((Segment(conversation, 0, total),), ())
    cuts = [at for at, turn in enumerate(conversation.turns) if at and turn.role == USER]
    edges = [0, *(at for at in cuts if at > _leading(conversation)), total]
    segments: list[Segment] = []
    left_out: list[tuple[int, int]] = []
    first = 0
    while first < len(edges) - 1:
        last = first
        while last + 1 < len(edges) and fits(conversation.segment(edges[first], edges[last + 1])):
            last += 1
        if last == first:
            left_out.append((edges[first], edges[first + 1]))
            first += 1
            continue
        turns = (edges[first], edges[last])
        segments.append(Segment(conversation.segment(*turns), *turns))
        first = last
    return SegmentedConversation(tuple(segments), tuple(left_out))


def _leading(conversation: Conversation) -> int:
    """The first turn of a user: those before it stay with it."""
    roles = [turn.role for turn in conversation.turns]
    return roles.index(USER) if USER in roles else len(roles)
