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


class SegmentedConversation(NamedTuple):
    """The segments of a conversation, and how many exchanges are too long for any."""

    segments: tuple[Conversation, ...]
    left_out: int


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

    if fits(conversation):
        return SegmentedConversation((conversation,), 0)
    total = len(conversation.messages)
    cuts = [at for at, turn in enumerate(conversation.turns) if at and turn.role == USER]
    edges = [0, *(at for at in cuts if at > _leading(conversation)), total]
    segments: list[Conversation] = []
    left_out = 0
    first = 0
    while first < len(edges) - 1:
        last = first
        while last + 1 < len(edges) and fits(conversation.segment(edges[first], edges[last + 1])):
            last += 1
        if last == first:
            left_out += 1
            first += 1
            continue
        segments.append(conversation.segment(edges[first], edges[last]))
        first = last
    return SegmentedConversation(tuple(segments), left_out)


def _leading(conversation: Conversation) -> int:
    """The first turn of a user: those before it stay with it."""
    roles = [turn.role for turn in conversation.turns]
    return roles.index(USER) if USER in roles else len(roles)
