"""How the byte-level vocabularies of GGUF files split text, by `tokenizer.ggml.pre`.

A GGUF file holds tokens and merges, but of the pre-tokenizer only a name. llama.cpp knows what the
names mean (`src/llama-vocab.cpp`); the patterns here are those of the tokenizer.json files that the
names stand for. Text is split by each pattern in turn, into its matches and what lies between.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Split:
    """What a name in a GGUF file stands for.

    Attributes:
        patterns: regular expressions in Oniguruma's syntax.
        composes: whether text is brought into the normal form NFC first.
        ignore_merges: whether a split text that is a token becomes it, whatever the merges say.
        adds_bos: whether texts begin with BOS where the file does not say.
    """

    patterns: tuple[str, ...]
    composes: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES_AND_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _words(numbers: str) -> str:
    """The pattern of GPT-4 and those after it, which differ in how they split numbers."""
    return (
        rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        rf"|{_LINES_AND_SPACES}"
    )


def _cased_words(numbers: str, suffix: str) -> str:
    """The pattern of GPT-4o, which begins a word at a capital, and of those after it."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{before}{upper}*{lower}+{suffix}|{before}{upper}+{lower}*{suffix}"
        rf"|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES_AND_SPACES}"
    )


_CASED = (
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376-377 37B-37D 37F "
    "386 388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD "
    "1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 "
    "1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 "
    "1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 "
    "2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183-2184 "
    "2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2-2CF3 A640-A66D A680-A69B A722-A76F A771-A787 "
    "A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 "
    "104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
"""Code points of letters that are upper or lower case, hexadecimal."""

_DEEPSEEK_LETTERS = "".join(
    "-".join(chr(int(end, 16)) for end in span.split("-")) for span in _CASED.split()
)
_DEEPSEEK_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_LINES_AND_SPACES}"
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"

_plain = Split((_GPT2,))
_digits_alone = Split((r"\p{N}", _GPT2))
_llama3 = Split((_words(r"\p{N}{1,3}"),), ignore_merges=True, adds_bos=True)
_gpt4 = Split((_words(r"\p{N}{1,3}"),))
_qwen = Split((_words(r"\p{N}"),), composes=True)
_one_digit = Split((_words(r"\p{N}"),))
_gpt4o = Split((_cased_words(r"\p{N}{1,3}", rf"{_CONTRACTION}?"),))
_deepseek3 = Split((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK_WORDS))
_bailing = Split(
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+",
    )
)

SPLITS: dict[str, Split] = {
    **dict.fromkeys(
        ("gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "jais", "trillion", "granite-docling"),
        _plain,
    ),
    **dict.fromkeys(("mpt", "olmo"), Split((_GPT2,), composes=True)),
    "exaone4": _plain,
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"),
        _digits_alone,
    ),
    "command-r": Split((r"\p{N}", _GPT2), composes=True),
    **dict.fromkeys(
        (
            *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1"),
            *("pixtral", "midm-2.0", "lfm2"),
        ),
        _llama3,
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _gpt4),
    **dict.fromkeys(("qwen2", "stablelm2", "f2llmv2"), _qwen),
    **dict.fromkeys(
        ("deepseek-r1-qwen", "kormo", "megrez", "hunyuan", "grok-2", "solar-open"), _one_digit
    ),
    "qwen35": Split(
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES_AND_SPACES}",
        ),
        composes=True,
    ),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _gpt4o),
    "tekken": Split((_cased_words(r"\p{N}", ""),), ignore_merges=True, adds_bos=True),
    "deepseek-llm": Split(
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            "[一-龥ࠀ-一가-퟿]+",
            r"\p{N}",
        )
    ),
    "deepseek-coder": Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), _deepseek3),
    "falcon": Split((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), Split((_BLOOM,))),
    "viking": Split((_BLOOM, r"\p{N}")),
    "superbpe": Split((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _bailing),
    "seed-coder": Split(
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+"
            rf"|{_LINES_AND_SPACES}",
        )
    ),
}
"""The names whose meaning is known. Others are refused: guessed splits give other tokens."""
