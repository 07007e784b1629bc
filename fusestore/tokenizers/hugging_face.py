"""Loads a Hugging Face tokenizer as its own tokenizer.json describes it.

transformers makes the tokenizers of many classes anew, from the vocabulary alone, with the class's
own normalizer and pre-tokenizer. Where tokenizer.json has others, those are what the model was
trained with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def load_hugging_face(
    source: str,
    options: dict[str, Any],
    *,
    trust_remote_code: bool,
) -> Any:  # noqa: ANN401 - untyped
    """The tokenizer of a folder or hub id, by its tokenizer.json if there is one.

    Args:
        source: a folder or a hub id.
        options: of `AutoTokenizer.from_pretrained`.
        trust_remote_code: run code of the folder or repository.

    Raises:
        Exception: whatever transformers raises.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    loaded: Any = AutoTokenizer.from_pretrained(
        source, trust_remote_code=trust_remote_code, **options
    )
    generic: Any = PreTrainedTokenizerFast
    # The generic class holds tokenizer.json as it is; a slow tokenizer has nothing to compare.
    if type(loaded) is generic or getattr(loaded, "backend_tokenizer", None) is None:
        return loaded
    file = _tokenizer_file(source, options)
    if file is None or _is_described_by(loaded.backend_tokenizer, file):
        return loaded
    return generic.from_pretrained(source, trust_remote_code=False, **options)


def _tokenizer_file(source: str, options: dict[str, Any]) -> Path | None:
    from transformers.utils.hub import cached_file

    found = cached_file(
        source,
        "tokenizer.json",
        revision=options.get("revision"),
        local_files_only=options.get("local_files_only", False),
        _raise_exceptions_for_missing_entries=False,
    )
    return None if found is None else Path(found)


def _is_described_by(backend: Any, file: Path) -> bool:  # noqa: ANN401 - the library is untyped
    """Whether a tokenizer gives every text the tokens that the file describes."""
    import tokenizers

    own = json.loads(tokenizers.Tokenizer.from_file(str(file)).to_str())
    loaded = json.loads(backend.to_str())
    parts = ("normalizer", "pre_tokenizer", "model", "decoder")
    return all(own[part] == loaded[part] for part in parts)
