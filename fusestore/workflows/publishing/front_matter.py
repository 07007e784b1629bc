"""A card in parts: YAML at its head, what people wrote, and what fusestore wrote between marks.

Publishing again replaces the part between the marks. Of the head it replaces the keys whose value
is the one that it wrote last: a key that a person changed stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusestore.errors import InvalidInputError
from fusestore.models.model_license import front_matter

MAX_CARD_BYTES = 4 * 2**20

BEGIN = "<!-- Written by `fusestore publish`, which replaces everything up to the next mark."
_HEAD_MARK = "Its keys at the head: "
END = "<!-- End of what `fusestore publish` wrote. -->"

_HEAD = re.compile(r"\ufeff?---[ \t]*\r?\n.*?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_WRITTEN = re.compile(
    re.escape(BEGIN) + r"(?P<mark>[^>]*)-->\n?.*?" + re.escape(END) + r"\n?", re.DOTALL
)


@dataclass(frozen=True)
class CardParts:
    """An existing card.

    Attributes:
        head: its YAML.
        before, after: what people wrote before and after fusestore's part.
        written: the keys of the head with the values that fusestore wrote last.
    """

    head: Mapping[str, Any]
    before: str
    after: str
    written: Mapping[str, Any]


def split_card(text: str) -> CardParts:
    """The parts of a card; one that fusestore did not write is all a person's.

    Raises:
        InvalidInputError: its head is there and is no YAML table.
    """
    match = _HEAD.match(text)
    head = front_matter(text)
    if match is not None and head is None:
        raise InvalidInputError(
            "The card has a head between two lines of --- that is no YAML table, so its keys "
            "cannot be kept. Correct it, or remove it."
        )
    head = head or {}
    body = text[match.end() :] if match is not None else text
    found = _WRITTEN.search(body)
    if found is None:
        return CardParts(head, body.strip("\n"), "", {})
    written: Any = {}
    _, separator, keys = found["mark"].partition(_HEAD_MARK)
    if separator:
        try:
            written = json.loads(keys)
        except ValueError:
            written = {}
    return CardParts(
        head,
        body[: found.start()].strip("\n"),
        body[found.end() :].strip("\n"),
        written if isinstance(written, dict) else {},
    )


def merged_head(parts: CardParts | None, ours: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a card: a person's values stay, and `tags` of both are kept."""
    if parts is None:
        return dict(ours)
    merged = dict(parts.head)
    for key in parts.written.keys() - ours.keys():
        if merged.get(key) == parts.written[key]:
            del merged[key]
    for key, value in ours.items():
        if key not in merged or merged[key] == parts.written.get(key):
            merged[key] = value
        elif key == "tags" and isinstance(merged[key], list):
            merged[key] = list(dict.fromkeys([*map(str, merged[key]), *value]))
    return merged


def joined_card(parts: CardParts | None, title: str, ours: Mapping[str, Any], body: str) -> str:
    """The whole card.

    Args:
        parts: of the existing card; None for a new one, which begins with the title.
        title: Markdown, for a new card.
        ours: keys of the head.
        body: fusestore's part, Markdown.
    """
    import yaml

    head = yaml.safe_dump(merged_head(parts, ours), sort_keys=False, allow_unicode=True, width=1000)
    # No text of the keys can end the comment.
    keys = json.dumps(dict(ours), ensure_ascii=True)
    for character in "<>-":
        keys = keys.replace(character, f"\\u{ord(character):04x}")
    mark = f"{BEGIN} {_HEAD_MARK}{keys} -->"
    before = f"# {title}" if parts is None else parts.before
    after = "" if parts is None else parts.after
    pieces = [before, f"{mark}\n\n{body.strip()}\n\n{END}", after]
    return f"---\n{head}---\n\n" + "\n\n".join(filter(None, pieces)) + "\n"
