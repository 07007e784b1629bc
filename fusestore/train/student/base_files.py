"""The files of a model folder that belong to every model made from it, besides its weights."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from fusestore.models.stored_files import CODE_KEY

_PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    "*processor_config.json",
    "audio_tokenizer_config.json",
    "generation_config.json",
    "license*",
    "licence*",
    "notice*",
    "use_policy*",
)
"""In lower case. The model card is of the base alone, so it is not among them."""

_CHAT_TEMPLATES = "additional_chat_templates"


def copy_base_files(base: Path, folder: Path, *, with_code: bool) -> None:
    """Copy what belongs to a model made from another one, without replacing files.

    These are the files of tokenizer, processors, chat templates, generation settings and license,
    and the Python code that the new model's configuration names. Without that code no file names
    it any more.

    Args:
        base: the model folder that the new model was made from.
        folder: the new model's folder, with its configuration.
        with_code: whether code of the base is trusted, and may have made the model.
    """
    for path in _belonging(base, with_code=with_code and _needs_code(folder)):
        copy = folder / path.relative_to(base)
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
    if not with_code:
        for path in folder.glob("*config.json"):
            _forget_code(path)


def _forget_code(path: Path) -> None:
    # Of a base that transformers knows, which names code nevertheless.
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and content.pop(CODE_KEY, None) is not None:
            text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
            path.write_text(text + "\n", encoding="utf-8")


def _belonging(base: Path, *, with_code: bool) -> Iterator[Path]:
    patterns = (*_PATTERNS, "*.py") if with_code else _PATTERNS
    for path in base.iterdir():
        name = path.name.lower()
        if path.is_file() and any(fnmatchcase(name, pattern) for pattern in patterns):
            yield path
    yield from (base / _CHAT_TEMPLATES).glob("*.jinja")


def _needs_code(folder: Path) -> bool:
    """Whether the configuration names classes of the folder's own Python files."""
    file = folder / "config.json"
    return file.is_file() and CODE_KEY in json.loads(file.read_bytes())
