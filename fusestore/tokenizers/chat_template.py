"""`ChatTemplate`: a tokenizer's own chat template, and where it writes the contents of turns.

Templates are programs: they may strip, rewrite, repeat, reorder and leave out what they are given.
Contents are located by a second rendering, in which each stands between two marks of its own. What
lies outside the marks is the template's; with the contents in place of the marked ones, it must be
the rendering itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.tokenizers.conversation import ASSISTANT, Conversation

Variables = Mapping[str, Any]
"""What is passed to every template by name, such as `enable_thinking`."""

GENERATION_PROMPT = "add_generation_prompt"
"""The variable that ends a conversation with the header of an answer, if its last turn is not the
assistant's."""

UNSHARED = {
    "tool calls": ("tool_calls",),
    "reasoning": ("reasoning_content", "reasoning", "thinking"),
    "tools": ("tools",),
}
"""Fields of turns, and of a conversation, that each template writes in its own way, or not at all,
by what they hold."""

RESERVED = frozenset(
    (
        *("conversation", "messages", "tools", "documents", "chat_template", GENERATION_PROMPT),
        *("continue_final_message", "tokenize", "padding", "truncation", "max_length"),
        *("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
    )
)
"""Arguments of `apply_chat_template` that are no variables of a template."""

_PRIVATE = range(0x10FFFD, 0x100000, -1)
"""Characters that Unicode keeps free for private use, from which marks are made."""


class Rendering(NamedTuple):
    """A conversation as a model's template writes it.

    Attributes:
        text: the whole text.
        spans: the characters `[start, stop)` of the text that are the content of each turn; None
            for a turn of tool calls alone.
    """

    text: str
    spans: list[tuple[int, int] | None]


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(
        self,
        hugging_face: Any,  # noqa: ANN401 - untyped
        name: str,
        fallback: str | None,
    ) -> None:
        """Take a Hugging Face tokenizer, and its name for messages.

        Args:
            hugging_face: the tokenizer.
            name: its name.
            fallback: the template to use if it has none.

        Raises:
            IncompatibleError: there is no template.
        """
        self.name = name
        self._hugging_face = hugging_face
        source = getattr(hugging_face, "chat_template", None)
        self._fallback = None if source else fallback
        if not source and not fallback:
            raise IncompatibleError(
                f"Tokenizer {name!r} has no chat template, so its model cannot read conversations. "
                "Use an instruction-tuned model, put chat_template.jinja into its folder, or set "
                "fallback_template of the corpus."
            )
        self._source = json.dumps(source or fallback, sort_keys=True)

    def digest(self, variables: Variables) -> str:
        """SHA-256, hexadecimal, of what its rendering depends on besides the conversation.

        Raises:
            IncompatibleError: it depends on the date of today.
        """
        if "strftime_now" in self._source and "date_string" not in variables:
            raise IncompatibleError(
                f"The chat template of {self.name} writes the date of the day on which it is used, "
                "so no two days have the same tokens. Give a fixed one, as in "
                'template_variables = {date_string = "26 Jul 2024"}.'
            )
        tokens = {key: str(token) for key, token in self._hugging_face.special_tokens_map.items()}
        content = json.dumps([self._source, tokens, dict(variables)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def render(self, conversation: Conversation, variables: Variables) -> Rendering:
        """The conversation by this template.

        Raises:
            InvalidInputError: the template refuses the conversation, or changes the content of a
                turn, which the message names.
        """
        text = self._rendered(conversation, conversation.contents, variables)
        marks = self._marks(conversation)
        # Templates ask whether a turn of tool calls has a content.
        marked = [
            "" if calls_alone else f"{begin}{content}{end}"
            for (begin, end), content, calls_alone in zip(
                marks, conversation.contents, conversation.calls_alone, strict=True
            )
        ]
        rest = self._rendered(conversation, marked, variables)
        spans: list[tuple[int, int] | None] = []
        position = 0
        for turn, ((begin, end), content, whole) in enumerate(
            zip(marks, conversation.contents, marked, strict=True)
        ):
            if not whole:
                spans.append(None)
                continue
            if rest.count(begin) != 1 or rest.count(end) != 1:
                times = min(rest.count(begin), rest.count(end))
                raise self._refusal(turn, "leaves out" if times == 0 else "repeats")
            fixed, found, rest = rest.partition(whole)
            if not found:
                # The marks are there, and what lies between is not the content.
                raise self._refusal(turn, "rewrites")
            if any(mark in fixed for mark, _ in marks[turn + 1 :]):
                raise self._refusal(turn, "moves")
            if not text.startswith(f"{fixed}{content}", position):
                raise self._refusal(turn, "strips or rewrites")
            position += len(fixed)
            spans.append((position, position + len(content)))
            position += len(content)
        if text[position:] != rest:
            raise self._refusal(len(marks) - 1, "rewrites")
        return Rendering(text, spans)

    def left_out(self, conversation: Conversation, variables: Variables) -> list[str]:
        """What of a conversation the template does not write: `UNSHARED`, by name.

        Raises:
            InvalidInputError: as for `render`.
        """
        messages = conversation.with_contents(conversation.contents)
        text = self._rendered(conversation, conversation.contents, variables)
        found = []
        for name, fields in UNSHARED.items():
            rest = [
                {key: value for key, value in message.items() if key not in fields}
                for message in messages
            ]
            tools = () if "tools" in fields else conversation.tools
            if rest == messages and tools == conversation.tools:
                continue
            with contextlib.suppress(Exception):
                if self._applied(rest, tools, variables) == text:
                    found.append(name)
        return found

    def _rendered(
        self,
        conversation: Conversation,
        contents: Sequence[str],
        variables: Variables,
    ) -> str:
        messages = conversation.with_contents(contents)
        try:
            return self._applied(messages, conversation.tools, variables)
        except Exception as error:
            # Templates raise errors of their own, of any kind.
            readable = self._readable(messages, conversation.tools, variables)
            where = f"turn {readable} ({messages[readable]['role']})" if readable else "turn 0"
            raise InvalidInputError(
                f"the chat template of {self.name} refuses the conversation at {where}: {error}"
            ) from error

    def _applied(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        variables: Variables,
    ) -> str:
        options = dict(variables)
        prompts = options.pop(GENERATION_PROMPT, False)
        if prompts and messages[-1]["role"] != ASSISTANT:
            options[GENERATION_PROMPT] = True
        return str(
            self._hugging_face.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                chat_template=self._fallback,
                tokenize=False,
                **options,
            )
        )

    def _readable(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        variables: Variables,
    ) -> int:
        """How many of the first turns the template takes; at least one less than there are."""
        for count in range(len(messages) - 1, 0, -1):
            with contextlib.suppress(Exception):
                self._applied(messages[:count], tools, variables)
                return count
        return 0

    @staticmethod
    def _marks(conversation: Conversation) -> list[tuple[str, str]]:
        """Two texts for each turn that occur nowhere else."""
        used = set(json.dumps([*conversation.messages, *conversation.tools], ensure_ascii=False))
        free = (chr(code) for code in _PRIVATE if chr(code) not in used)
        opening, closing, bar = next(free), next(free), next(free)
        return [
            (f"{opening}{number}{bar}", f"{bar}{number}{closing}")
            for number in range(len(conversation.messages))
        ]

    def _refusal(self, turn: int, what: str) -> InvalidInputError:
        return InvalidInputError(
            f"the chat template of {self.name} {what} the content of turn {turn}, so the model "
            "does not read the conversation that the others read"
        )
