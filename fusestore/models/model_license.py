"""The license of a model: what its card, GGUF metadata, package or license file say of it.

Everything is read from files of this machine, and no code of the model runs. What cannot be read
is passed over, because a license is never needed to use a model.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from fusestore.storage.gguf_file import gguf_texts
from fusestore.storage.packages import package_metadata
from fusestore.store.licenses import License, LicensedInput, joint_license, license_id

CARD = "README.md"

_FRONT_MATTER = re.compile(
    r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)
_MAX_HEAD = 64 * 2**10
"""Characters of YAML that are read; the time that it takes grows with them."""

_MAX_CARD_BYTES = 256 * 2**10
_MAX_MANIFEST_BYTES = 64 * 2**20
_HEAD_BYTES = 2048
"""Bytes of a license's text in which its title is looked for."""


def find_license(folder: Path, gguf: Path | None, package: str | None) -> License | None:
    """The license of a model; None if nothing states it.

    Args:
        folder: the model's folder; it may lack weights.
        gguf: the GGUF file that the model was opened by.
        package: the Python package that holds that file.
    """
    if gguf is None:
        return _of_manifest(folder) or _of_card(folder / CARD) or _of_text(folder)
    return (
        _of_gguf(gguf)
        or (None if package is None else _of_package(package))
        or (None if package is not None else _of_card(gguf.parent / CARD) or _of_text(gguf.parent))
    )


def front_matter(text: str) -> dict[str, Any] | None:
    """The YAML table at the head of a card; None if there is none or it cannot be read."""
    match = _FRONT_MATTER.match(text)
    if match is None or len(match[1]) > _MAX_HEAD:
        return None
    import yaml

    try:
        content = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if content is None:
        return {}
    return content if isinstance(content, dict) else None


def _of_card(card: Path) -> License | None:
    data = front_matter(_head(card, _MAX_CARD_BYTES)) or {}
    stated = data.get("license")
    if isinstance(stated, list):
        joint = joint_license(License.of(each, "card") for each in stated)
        return None if joint is None else joint.model_copy(update={"stated_in": "card"})
    return License.of(stated, "card", name=data.get("license_name"), link=data.get("license_link"))


def _of_gguf(gguf: Path) -> License | None:
    key = "general.license"
    texts = gguf_texts(gguf, key)
    return License.of(
        texts.get(key), "gguf", name=texts.get(f"{key}.name"), link=texts.get(f"{key}.link")
    )


def _of_package(name: str) -> License | None:
    metadata = package_metadata(name)
    for key in ("License-Expression", "License"):
        for value in metadata.get_all(key) or ():
            found = License.of(value, "package")
            if found is not None:
                return found
    for entry in metadata.get_all("Classifier") or ():
        if entry.startswith("License :: "):
            text = entry.rpartition(" :: ")[2]
            return License.of(text.replace(" License", "") if "MIT" in text else text, "package")
    return None


def _of_text(folder: Path) -> License | None:
    """By the title of a license's text, if it is one of a known license."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except OSError:
        return None
    for name in names:
        if not re.match(r"licen[cs]e|use_policy", name, re.IGNORECASE):
            continue
        lines = [" ".join(line.split()) for line in _head(folder / name, _HEAD_BYTES).splitlines()]
        text = " ".join(filter(None, lines))
        title = next(filter(None, lines), None)
        if title is None:
            continue
        identifier = license_id(text)
        if identifier != "other":
            return License(id=identifier, link=name, stated_in="file")
        return License.of(title, "file", link=name)
    return None


def _of_manifest(folder: Path) -> License | None:
    """Of a trained or merged model of a store: those of the models that it was made from."""
    try:
        content = json.loads(_head(folder / "manifest.json", _MAX_MANIFEST_BYTES))
        inputs = [LicensedInput.model_validate(each) for each in content.get("made_from", ())]
    except (ValueError, RecursionError, AttributeError, TypeError):
        return None
    return joint_license(each.license for each in inputs)


def _head(file: Path, limit: int) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(limit).decode("utf-8", errors="replace")
    except OSError:
        return ""
