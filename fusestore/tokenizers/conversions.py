"""Converts tokenizers of tiktoken, tekken and sentencepiece to fast ones, and proves the result.

The rest of fusestore takes only fast tokenizers: their components say which bytes a token stands
for and where in the text it ends. A conversion is accepted only if it gives the original's ids on
texts of the whole vocabulary and on unusual texts. Otherwise (a sentencepiece model that normalizes
its text in a special way, for instance) it is refused, never approximated.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusestore.errors import IncompatibleError, InvalidInputError, MissingDependencyError
from fusestore.tokenizers.sentencepiece_model import SentencePieceModel, parse_sentencepiece
from fusestore.tokenizers.token_bytes import byte_level_text

_ODD_TEXTS = (
    "a",
    " a",
    "  two  spaces, \t\ttabs\r\n\r\nand\nlines \n \n",
    "I'M sure it's THE user's 12345 67 ½ ²",
    "naïve Ǆ café cafe\u0301 ﬁ ① ａ İß ΑΣ",
    "東京都 한국어 हिन्दी ภาษาไทย العربية \u200d👩🏽‍🚀🦜",
    "\u2581a \u2581 b\u00a0c\u3000d\u2028e\x00\x7f\x85\ufeff",
    "<s></s><unk><0x0A><|endoftext|>[INST]",
    "for (int i=0;i<n;++i){\n\treturn a[i]!=b;}//////////",
)

_TOKENS_PER_TEXT = 200
"""Tokens of the vocabulary that are joined to one text of the proof."""

_TEKKEN_SPECIAL = ("<unk>", "<s>", "</s>")
"""The first special tokens of a tekken file that lists none."""


def fast_from_tiktoken(
    encoding: Any,  # noqa: ANN401 - tiktoken is an optional dependency
    roles: Mapping[str, str] | None = None,
) -> Any:  # noqa: ANN401 - as above
    """A `tiktoken.Encoding` as a fast Hugging Face tokenizer.

    Args:
        encoding: byte pairs by rank, split by a regular expression.
        roles: special tokens by Hugging Face's names (`bos_token`, …). By default `<|endoftext|>`,
            if it exists, is the end of a text.

    Raises:
        IncompatibleError: the conversion does not give the encoding's own ids.
    """
    import tokenizers
    from tokenizers import decoders, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ranks: dict[bytes, int] = encoding._mergeable_ranks
    special: dict[str, int] = encoding._special_tokens
    spelling = {token: byte_level_text(token) for token in ranks}
    vocab = {spelling[token]: rank for token, rank in ranks.items()} | special
    merges = [(spelling[left], spelling[right]) for left, right in _merges(ranks)]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(encoding._pat_str), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(_special(tokenizers, special))
    texts = _texts(sorted(ranks, key=ranks.__getitem__))
    _prove(backend, lambda text: encoding.encode_ordinary(text), texts, encoding.name)
    if roles is None:
        roles = {"eos_token": "<|endoftext|>"} if "<|endoftext|>" in special else {}
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=backend, **roles)


def fast_from_tekken(path: Path) -> Any:  # noqa: ANN401 - Hugging Face classes are untyped
    """Mistral's tekken.json as a fast Hugging Face tokenizer.

    Raises:
        InvalidInputError: the file does not fit its own configuration.
        IncompatibleError: the conversion does not give tiktoken's ids.
        MissingDependencyError: tiktoken is not installed.
    """
    tiktoken = _optional("tiktoken", path)
    try:
        content = json.loads(path.read_bytes())
        config = content["config"]
        num_special = int(config["default_num_special_tokens"])
        num_ranks = int(config["default_vocab_size"]) - num_special
        listed = content.get("special_tokens")
        names = [f"<SPECIAL_{i}>" for i in range(num_special)]
        names[: len(_TEKKEN_SPECIAL)] = _TEKKEN_SPECIAL
        for token in listed or ():
            names[int(token["rank"])] = str(token["token_str"])
        ranks = {
            base64.b64decode(token["token_bytes"], validate=True): num_special + rank
            for rank, token in enumerate(content["vocab"][:num_ranks])
        }
        pattern = str(config["pattern"])
        if len(ranks) != num_ranks:
            raise InvalidInputError(f"{len(ranks):,} tokens where {num_ranks:,} are announced")
    except (KeyError, TypeError, ValueError, IndexError, binascii.Error) as error:
        raise InvalidInputError(
            f"{path} is no tekken file ({type(error).__name__}: {error}). Give tokenizer.json, "
            "a tekken.json or a sentencepiece .model."
        ) from error
    special = {name: rank for rank, name in enumerate(names)}
    encoding = tiktoken.Encoding(
        path.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
    )
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    roles = {role: token for role, token in roles.items() if token in special}
    return fast_from_tiktoken(encoding, roles)


def fast_from_sentencepiece(processor: Any, name: str) -> Any:  # noqa: ANN401 - untyped, optional
    """A `sentencepiece.SentencePieceProcessor` as a fast Hugging Face tokenizer.

    Like the processor, it adds no BOS by default.

    Raises:
        IncompatibleError: a model of words or characters, or the conversion does not give the
            processor's ids.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    model = parse_sentencepiece(processor.serialized_model_proto(), name)
    ids = range(len(model.pieces))
    backend = tokenizers.Tokenizer(_sentencepiece_model(model, processor.unk_id(), name))
    backend.normalizer = _sentencepiece_normalizer(model)
    if model.user_defined:
        longest_first = sorted(model.user_defined, key=lambda symbol: (-len(symbol), symbol))
        symbols = tokenizers.Regex("|".join(map(re.escape, longest_first)))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(symbols, "isolated")
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    control = [i for i in ids if processor.is_control(i) or processor.is_unknown(i)]
    backend.add_special_tokens(_special(tokenizers, [model.pieces[i][0] for i in control]))
    plain = [i for i in ids if i not in {*control} and not processor.is_byte(i)]
    texts = _texts([model.pieces[i][0].replace("▁", " ").encode() for i in plain])
    _prove(backend, lambda text: processor.encode(text), texts, name)
    roles = {
        f"{role}_token": model.pieces[token_id][0]
        for role in ("unk", "bos", "eos", "pad")
        if (token_id := getattr(processor, f"{role}_id")()) >= 0
    }
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=backend, **roles)


def _sentencepiece_model(model: SentencePieceModel, unknown: int, name: str) -> Any:  # noqa: ANN401
    from tokenizers import models
    from transformers.tokenization_utils_base import generate_merges

    if model.model_type == "unigram":
        return models.Unigram(list(model.pieces), unknown, model.byte_fallback)
    if model.model_type != "bpe":
        raise IncompatibleError(
            f"Sentencepiece model {name!r} is of type {model.model_type}, which fast tokenizers do "
            "not support. Only unigram and bpe can be converted."
        )
    vocab = {piece: token_id for token_id, (piece, _) in enumerate(model.pieces)}
    return models.BPE(
        vocab,
        generate_merges(vocab, dict(model.pieces)),
        unk_token=model.pieces[unknown][0],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        ignore_merges=bool(model.user_defined),
    )


def _sentencepiece_normalizer(model: SentencePieceModel) -> Any:  # noqa: ANN401
    import tokenizers
    from tokenizers import normalizers

    steps: list[Any] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.removes_extra_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    if model.adds_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])


def fast_from_sentencepiece_file(path: Path) -> Any:  # noqa: ANN401 - Hugging Face is untyped
    """A sentencepiece `.model` file as a fast Hugging Face tokenizer.

    Raises:
        InvalidInputError: not a sentencepiece model.
        IncompatibleError: as `fast_from_sentencepiece`.
        MissingDependencyError: sentencepiece is not installed.
    """
    sentencepiece = _optional("sentencepiece", path)
    data = path.read_bytes()
    parse_sentencepiece(data, str(path))
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    except (OSError, RuntimeError, ValueError) as error:
        raise InvalidInputError(f"{path} is no sentencepiece model: {error}") from error
    return fast_from_sentencepiece(processor, path.name)


def _optional(package: str, path: Path) -> Any:  # noqa: ANN401 - modules are of any type
    try:
        return __import__(package)
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading {path} needs the package {package}: pip install {package}."
        ) from error


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Pairs of tokens that form a token, by the rank of that token, then of the two."""
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [pair for pair in cuts if pair[0] in ranks and pair[1] in ranks]
        yield from sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def _special(tokenizers: Any, contents: Iterable[str]) -> list[Any]:  # noqa: ANN401 - untyped
    return [tokenizers.AddedToken(text, normalized=False, special=True) for text in contents]


def _texts(tokens: Sequence[bytes]) -> Iterator[str]:
    """Unusual texts, then the whole vocabulary; bytes that are not UTF-8 are left out."""
    yield from _ODD_TEXTS
    for start in range(0, len(tokens), _TOKENS_PER_TEXT):
        data = b"".join(tokens[start : start + _TOKENS_PER_TEXT])
        yield data.decode("utf-8", "ignore")


def _prove(
    backend: Any,  # noqa: ANN401 - the tokenizers library is untyped
    reference: Callable[[str], list[int]],
    texts: Iterable[str],
    name: str,
) -> None:
    # A special token that is spelled out in a text is text, as in `Tokenizer.encode`.
    backend.encode_special_tokens = True
    for text in texts:
        actual, expected = backend.encode(text, add_special_tokens=False).ids, reference(text)
        if actual != expected:
            pairs = enumerate(zip(actual, expected, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(actual), len(expected)))
            raise IncompatibleError(
                f"Tokenizer {name!r} cannot be converted to a fast one: on {text[:60]!r} the two "
                f"differ from token {at} on ({actual[at : at + 4]}, its own are "
                f"{expected[at : at + 4]}); it probably normalizes text. Convert it with the "
                "model's own script and give the folder with tokenizer.json."
            )
