"""Models by a name in a store: trained or merged models, and models that caches were made from.

A store may come from strangers, so its specs and paths are checked before they are used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.models.stored_files import check_stored_files
from fusestore.storage.location import Location
from fusestore.storage.packages import user_cache_folder
from fusestore.storage.replace import created_folder
from fusestore.store.copy import copy_missing
from fusestore.store.file_listing import file_records
from fusestore.store.layout import Store
from fusestore.store.manifest import MAX_MANIFEST_BYTES, digest_bytes, manifest_content
from fusestore.tokenizers.chat_encoder import TemplateIdentity

_PORTABLE_SPEC = re.compile(
    r"package:[A-Za-z0-9][\w.-]*|([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*@[0-9a-f]{40}", re.ASCII
)

_FILE_NAME = re.compile(r"(additional_chat_templates/)?[A-Za-z0-9_][\w. -]*", re.ASCII)
"""A file of a model folder, and not a hidden one."""


@dataclass(frozen=True)
class CachedModel:
    """The model that a complete cache was captured from, according to the manifest.

    Attributes:
        spec: opens the model on any machine; None if it was a folder.
        digest: of the model.
        tokenizer_digest: of its tokenizer.
        tokenizer_length: number of the tokenizer's ids.
        add_bos: whether the model read BOS before each document.
        template: the chat template by which it read conversations; None for texts.
    """

    spec: str | None
    digest: str
    tokenizer_digest: str
    tokenizer_length: int
    add_bos: bool
    template: TemplateIdentity | None


def cached_model(store: Store, name: str) -> CachedModel | None:
    """The model of a complete cache; None if there is no such cache.

    Raises:
        CorruptionError, InvalidInputError, FormatVersionError: as `manifest_content`.
    """
    location = store.cache(name) / "manifest.json"
    content = _manifest(location)
    if content is None:
        return None
    try:
        fingerprint = content["fingerprint"]
        spec = content.get("model_spec")
        return CachedModel(
            spec=spec if isinstance(spec, str) and _PORTABLE_SPEC.fullmatch(spec) else None,
            digest=str(fingerprint["model"]["spec_digest"]),
            tokenizer_digest=str(fingerprint["tokenizer_digest"]),
            tokenizer_length=int(fingerprint["tokenizer_length"]),
            add_bos=bool(fingerprint["add_bos"]),
            template=_template(fingerprint.get("template")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(f"{location} is not the manifest of a cache.") from error


def _template(content: object) -> TemplateIdentity | None:
    # A ValidationError is a ValueError.
    return None if content is None else TemplateIdentity.model_validate(content)


def stored_model_folder(store: Store, name: str, *, trust_remote_code: bool = False) -> Path:
    """The local folder of a complete model of the store.

    The folder of a remote store is copied to the user's cache once, checked against its manifest.

    Args:
        store: the store.
        name: of the model.
        trust_remote_code: whether classes of the folder may run.

    Raises:
        NotFoundError: there is no such model, or it is a LoRA adapter alone.
        CorruptionError: a file is missing or damaged.
        InvalidInputError: the manifest names files that a model folder cannot hold, or a file
            could run code; see `check_stored_files`.
    """
    location = store.model(name)
    folder = location.path if location.is_local else _copied(location, name)
    here = location if location.is_local else Location.parse(folder)
    check_stored_files(here, name, trust_remote_code=trust_remote_code)
    if not (folder / "config.json").is_file():
        raise NotFoundError(
            f"Model {name!r} in {store.location} has no config.json: it is a LoRA adapter alone. "
            "Train without --lora-adapter-only, or give the folder of a whole model."
        )
    return folder


def _copied(location: Location, name: str) -> Path:
    data = (location / "manifest.json").read_prefix(MAX_MANIFEST_BYTES + 1)
    name_of_file = f"{location}/manifest.json"
    records = file_records(manifest_content(data, name_of_file), name_of_file)
    unsafe = [name for name in records if not _FILE_NAME.fullmatch(name)]
    if unsafe:
        raise InvalidInputError(
            f"{name_of_file} names files that do not belong into a model folder: {unsafe[0]!r}. "
            "Do not trust this store."
        )
    target = user_cache_folder() / "models" / f"{name}-{digest_bytes(data)[:16]}"
    if target.is_dir():
        return target
    with created_folder(target) as temporary:
        copy_missing(location, Location.parse(temporary), records)
    return target


def _manifest(location: Location) -> dict[str, Any] | None:
    try:
        data = location.read_prefix(MAX_MANIFEST_BYTES + 1)
    except NotFoundError:
        return None
    return manifest_content(data, str(location))
