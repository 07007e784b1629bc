"""The forms in which tables and JSON hold conversations, recognized by their columns.

    messages      `messages`: a list of turns with `role` and `content`; `tools` if there are any
    sharegpt      `conversations`: a list of turns with `from` and `value`; `system` beside it
    preference    `chosen`, with or without `prompt`: the side that is preferred
    completion    `prompt` and `completion`, each a text or a list of turns
    instruction   `instruction` and `output`; `input` and `system` beside them

Each becomes turns with roles; other fields of a turn are kept as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from fusestore.errors import InvalidInputError
from fusestore.tokenizers.conversation import ASSISTANT, SYSTEM, USER, Conversation

FormName = Literal["messages", "sharegpt", "preference", "completion", "instruction"]
InputForm = Literal["auto", "text", FormName]
"""How the input is read; `auto` reads a column of text if there is one."""

Record = Mapping[str, Any]

_SHAREGPT_ROLES = {
    "human": USER,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "model": ASSISTANT,
    "observation": "tool",
}


class ConversationForm(NamedTuple):
    """A form of conversations.

    Attributes:
        name: its name.
        needed: columns that it has.
        others: columns that it may have.
        messages: the turns of a record.
    """

    name: FormName
    needed: tuple[str, ...]
    others: tuple[str, ...]
    messages: Callable[[Record], list[Any]]

    def read(self, record: Record, *, keep_white_space: bool) -> Conversation:
        """The conversation of a record.

        Raises:
            InvalidInputError: it holds none; the message says why, without the record's place.
        """
        messages = [_without_nulls(message) for message in self.messages(record)]
        tools = _listed(record.get("tools"), "tools") if "tools" in self.others else []
        return Conversation(
            tuple(messages), tuple(_without_nulls(tool) for tool in tools), keep_white_space
        )


def find_form(
    form: InputForm, columns: Collection[str], text_column: str
) -> ConversationForm | None:
    """The form of conversations that a table with these columns has.

    Returns:
        None for a table of texts, or one of another kind.
    """
    if form == "text" or (form == "auto" and text_column in columns):
        return None
    if form != "auto":
        return FORMS[form]
    return next((each for each in FORMS.values() if set(each.needed) <= set(columns)), None)


def _of_messages(record: Record) -> list[Any]:
    return _listed(record["messages"], "messages")


def _of_sharegpt(record: Record) -> list[Any]:
    messages: list[Any] = _system(record)
    for turn in _listed(record["conversations"], "conversations"):
        if not isinstance(turn, Mapping) or "from" not in turn:
            messages.append(turn)
            continue
        role = _SHAREGPT_ROLES.get(turn["from"], turn["from"])
        rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
        messages.append({"role": role, "content": turn.get("value"), **rest})
    return messages


def _of_preference(record: Record) -> list[Any]:
    prompt, chosen = record.get("prompt"), record["chosen"]
    if isinstance(chosen, str):
        return [*_turns(prompt, USER, "prompt"), *_turns(chosen, ASSISTANT, "chosen")]
    turns = _turns(chosen, ASSISTANT, "chosen")
    before = [] if prompt is None or isinstance(prompt, str) else _turns(prompt, USER, "prompt")
    if isinstance(prompt, str) and len(turns) == 1:
        before = _turns(prompt, USER, "prompt")
    # Some datasets repeat the prompt in front of the answer.
    return turns if turns[: len(before)] == before else [*before, *turns]


def _of_completion(record: Record) -> list[Any]:
    return [
        *_system(record),
        *_turns(record["prompt"], USER, "prompt"),
        *_turns(record["completion"], ASSISTANT, "completion"),
    ]


def _of_instruction(record: Record) -> list[Any]:
    given = record.get("input") or ""
    instruction, output = record["instruction"], record["output"]
    for name, value in (("instruction", instruction), ("input", given), ("output", output)):
        if not isinstance(value, str):
            raise InvalidInputError(f"{name!r} is {_shown(value)}, not text")
    content = f"{instruction}\n\n{given}" if given else instruction
    return [
        *_system(record),
        {"role": USER, "content": content},
        {"role": ASSISTANT, "content": output},
    ]


FORMS = {
    form.name: form
    for form in (
        ConversationForm("messages", ("messages",), ("tools",), _of_messages),
        ConversationForm("sharegpt", ("conversations",), ("system", "tools"), _of_sharegpt),
        ConversationForm("preference", ("chosen",), ("prompt", "tools"), _of_preference),
        ConversationForm("completion", ("prompt", "completion"), ("system",), _of_completion),
        ConversationForm(
            "instruction", ("instruction", "output"), ("input", "system"), _of_instruction
        ),
    )
}
"""By name, in the order in which they are looked for."""


def _system(record: Record) -> list[Any]:
    system = record.get("system")
    return [{"role": SYSTEM, "content": system}] if system else []


def _turns(value: Any, role: str, name: str) -> list[Any]:  # noqa: ANN401 - anything JSON may hold
    return [{"role": role, "content": value}] if isinstance(value, str) else _listed(value, name)


def _listed(value: Any, name: str) -> list[Any]:  # noqa: ANN401 - as above
    if value is None and name == "tools":
        return []
    if isinstance(value, str):
        # Columns of datasets hold what has no fixed type as JSON.
        try:
            value = json.loads(value)
        except ValueError:
            raise InvalidInputError(f"{name!r} is {_shown(value)}, not a list") from None
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InvalidInputError(f"{name!r} is {_shown(value)}, not a list")
    return list(value)


def _without_nulls(value: Any) -> Any:  # noqa: ANN401 - as above
    """A value without fields that are null: a table has every field in every row."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_nulls(each) for each in value]
    return value


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
