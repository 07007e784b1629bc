"""`Conversation`: the turns of a chat, and the text that stands for them in a corpus.

Every model reads a conversation through a chat template of its own, so the models share the
contents of the turns, but not the tokens around them. The shared text has bytes for these: a turn
is a start (SOH, STX), its content, and an end (ETX), and the text ends with EOT:

    ␁␂What is it?␃␁␂A test.␃␄

A model's token that completes a turn's header ends behind the turn's STX, and its end-of-turn
marker behind the ETX, whatever the template writes there. So alignment compares conversations as
it compares texts: by the offsets at which tokens end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

from fusestore.errors import InvalidInputError

HEADER = "\x01\x02"
"""Begins a turn in the shared text; 2 bytes."""

END_OF_TURN = "\x03"
"""Ends a turn; 1 byte, which stands for the end-of-turn marker."""

END_OF_CONVERSATION = "\x04"
"""Ends the text; 1 byte, for what a template writes after the last turn."""

TrainOn = Literal["assistant", "all", "last-turn", "completion"]
"""Which turns are trained on: those of the assistant; all; the assistant's last; or the assistant's
after the last turn of a user."""

TRAIN_ON: tuple[TrainOn, ...] = get_args(TrainOn)

ASSISTANT, USER, SYSTEM = "assistant", "user", "system"
ROLES = (SYSTEM, "developer", USER, ASSISTANT, "tool")
"""Roles of a turn, as chat templates name them."""


class Turn(NamedTuple):
    """A turn in the shared text.

    Attributes:
        role: one of `ROLES`.
        start: byte at which its content begins.
        stop: byte at which its content ends; its end of turn is the byte after.
    """

    role: str
    start: int
    stop: int


@dataclass(frozen=True)
class Conversation:
    """A conversation as it was given.

    Attributes:
        messages: its turns: `role`, `content` (text, parts of text, or none), and any other fields
            that templates read, such as `tool_calls` and `reasoning_content`.
        tools: schemas of the tools that the assistant may call.
        keep_white_space: whether white space around a turn's content is part of it. Many templates
            remove it, others do not, so by default no model reads it.
        repeated: the first turns that an earlier segment of the same conversation holds too; they
            are not trained on again.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    keep_white_space: bool = False
    repeated: int = 0

    def __post_init__(self) -> None:
        if not self.messages:
            raise InvalidInputError("a conversation without turns")
        for number, message in enumerate(self.messages):
            _check_message(number, message)

    @cached_property
    def contents(self) -> tuple[str, ...]:
        """The content of each turn, as every model reads it."""
        contents = [_joined(message.get("content")) for message in self.messages]
        return tuple(contents if self.keep_white_space else [text.strip() for text in contents])

    @cached_property
    def calls_alone(self) -> tuple[bool, ...]:
        """Whether each turn has tool calls and no content, so that models share nothing of it."""
        return tuple(
            content == "" and bool(message.get("tool_calls"))
            for message, content in zip(self.messages, self.contents, strict=True)
        )

    @cached_property
    def text(self) -> str:
        """The shared text."""
        turns = [f"{HEADER}{content}{END_OF_TURN}" for content in self.contents]
        return "".join([*turns, END_OF_CONVERSATION])

    @cached_property
    def turns(self) -> tuple[Turn, ...]:
        """Where the turns lie in the shared text."""
        turns = []
        stop = -len(END_OF_TURN)
        for message, content in zip(self.messages, self.contents, strict=True):
            start = stop + len(END_OF_TURN) + len(HEADER)
            stop = start + len(content.encode())
            turns.append(Turn(str(message["role"]), start, stop))
        return tuple(turns)

    def trained_on(self, train_on: TrainOn) -> list[bool]:
        """Whether each turn is trained on; never one of tool calls alone."""
        roles = [turn.role for turn in self.turns]
        chosen = [
            (train_on == "all" or role == ASSISTANT) and not calls_alone
            for role, calls_alone in zip(roles, self.calls_alone, strict=True)
        ]
        last_user = max((at for at, role in enumerate(roles) if role == USER), default=-1)
        last = max((at for at, role in enumerate(roles) if role == ASSISTANT), default=-1)
        begin = {"completion": last_user + 1, "last-turn": last}.get(train_on, 0)
        return [
            is_chosen and at >= max(begin, self.repeated) for at, is_chosen in enumerate(chosen)
        ]

    def with_contents(self, contents: Sequence[str]) -> list[dict[str, Any]]:
        """The messages, for a template, with these contents."""
        return [
            {**message, "content": content}
            for message, content in zip(self.messages, contents, strict=True)
        ]

    def segment(self, start: int, stop: int) -> Conversation:
        """Turns `[start, stop)`, behind the system's turns at the beginning of the conversation."""
        leading = 0
        while leading < start and self.messages[leading]["role"] in ROLES[:2]:
            leading += 1
        messages = (*self.messages[:leading], *self.messages[start:stop])
        return Conversation(messages, self.tools, self.keep_white_space, leading)

    def to_json(self) -> str:
        """All of it, as JSON."""
        content: dict[str, Any] = {"messages": list(self.messages)}
        if self.tools:
            content["tools"] = list(self.tools)
        if self.keep_white_space:
            content["keep_white_space"] = True
        if self.repeated:
            content["repeated"] = self.repeated
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, data: str) -> Conversation:
        """The conversation that `to_json` wrote.

        Raises:
            InvalidInputError: it is none.
        """
        try:
            content = json.loads(data)
            return cls(
                tuple(content["messages"]),
                tuple(content.get("tools", ())),
                bool(content.get("keep_white_space", False)),
                int(content.get("repeated", 0)),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInputError(f"not a conversation: {error}") from error


def _check_message(number: int, message: Any) -> None:  # noqa: ANN401 - anything JSON may hold
    if not isinstance(message, Mapping):
        raise InvalidInputError(f"turn {number} is {_shown(message)}, not an object")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InvalidInputError(
            f"turn {number} has the role {_shown(role)}; roles are {', '.join(ROLES)}"
        )
    if content is None and not message.get("tool_calls"):
        raise InvalidInputError(f"turn {number} has neither content nor tool calls")
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, Sequence):
        raise InvalidInputError(f"turn {number} has {_shown(content)} as content, not text")
    for part in content:
        if not _is_text_part(part):
            raise InvalidInputError(
                f"turn {number} has the part {_shown(part)}; only parts of text can be read, as in "
                '{"type": "text", "text": "…"}'
            )


def _is_text_part(part: Any) -> bool:  # noqa: ANN401 - as above
    return (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    )


def _joined(content: str | Sequence[Mapping[str, str]] | None) -> str:
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
