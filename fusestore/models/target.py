"""`Target`: the tokenizer side of a model, which is all that aligning and fusing need.

Often the store holds it, and neither the model nor its tokenizer is opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from fusestore.errors import IncompatibleError, NotFoundError
from fusestore.models.model import Model
from fusestore.models.spec import may_name_artifact
from fusestore.models.store_models import cached_model
from fusestore.storage.packages import SCHEME, resolve_path
from fusestore.store.artifact_files import MANIFEST_FILE
from fusestore.store.layout import Store
from fusestore.tokenizers.chat_encoder import TemplateIdentity
from fusestore.tokenizers.manifest import VocabularyManifest
from fusestore.tokenizers.tokenizer import Tokenizer, as_tokenizer, load_tokenizer
from fusestore.tokenizers.vocabulary import Vocabulary

_DIGEST = re.compile("[0-9a-f]{8,64}")


class Target:
    """A tokenizer that distributions are aligned to and fused for; made by `open`.

    Attributes:
        name: for the names of alignments to it.
        digest: of the tokenizer, hexadecimal.
        adds_bos: whether its documents begin with BOS; None if the store does not record it.
        template: the chat template of its conversations, if a cache of the store records it.
    """

    def __init__(
        self,
        name: str,
        digest: str,
        adds_bos: bool | None,
        vocabulary: Callable[[], Vocabulary],
        tokenizer: Callable[[], Tokenizer],
    ) -> None:
        """Use `open` instead; vocabulary and tokenizer are made when they are needed."""
        self.name = name
        self.digest = digest
        self.adds_bos = adds_bos
        self.template: TemplateIdentity | None = None
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer

    @classmethod
    def open(
        cls,
        target: Any,  # noqa: ANN401 - Hugging Face tokenizers share no public base
        *,
        store: Store | None = None,
    ) -> Target:
        """Resolve the name of a tokenizer; an open target is returned unchanged.

        A name without `/` means, in this order: a complete model of the store; a complete cache; a
        vocabulary of the store, by 8 or more leading digits of its tokenizer's digest; or else a
        model, as in `Model.open`.

        Args:
            target: a `Model`, a tokenizer, a name in the store, a tokenizer's digest, or an
                argument of `open_tokenizer`.
            store: where names are looked up.

        Raises:
            NotFoundError: no such model, cache, tokenizer or file.
            IncompatibleError: a tokenizer that cannot be used, or a digest that fits several.
            CorruptionError: the store's manifest or vocabulary is damaged.
        """
        if isinstance(target, Target):
            return target
        if isinstance(target, Model):
            return cls.of_tokenizer(target.tokenizer, target.name)
        if store is not None and isinstance(target, str) and may_name_artifact(target):
            return cls._named(target, store)
        if isinstance(target, str | os.PathLike):
            text = os.fspath(target)
            return cls.of_tokenizer(open_tokenizer(text), _name_of(text))
        tokenizer = as_tokenizer(target)
        return cls.of_tokenizer(tokenizer, tokenizer.name)

    @classmethod
    def of_tokenizer(cls, tokenizer: Tokenizer, name: str) -> Target:
        """The target of an open tokenizer."""
        return cls(
            name,
            tokenizer.digest,
            tokenizer.adds_bos,
            lambda: tokenizer.vocabulary,
            lambda: tokenizer,
        )

    @classmethod
    def _named(cls, name: str, store: Store) -> Target:
        if not (store.model(name) / "manifest.json").exists():
            cached = cached_model(store, name)
            if cached is not None:
                digest = cached.tokenizer_digest
                opened = cls._in_store(
                    name, digest, cached.add_bos, store, lambda: Model.open(name, store=store)
                )
                opened.template = cached.template
                return opened
            whole = _digest(name, store) if _DIGEST.fullmatch(name) else None
            if whole is not None:
                return cls._in_store(name, whole, None, store, None)
        return cls.of_tokenizer(_tokenizer_of(name, store), _name_of(name))

    @classmethod
    def _in_store(
        cls,
        name: str,
        digest: str,
        adds_bos: bool | None,
        store: Store,
        model: Callable[[], Model] | None,
    ) -> Target:
        def vocabulary() -> Vocabulary:
            from fusestore.tokenizers.vocabulary_table import load_vocabulary

            return load_vocabulary(store, digest)

        def tokenizer() -> Tokenizer:
            if model is None:
                raise NotFoundError(
                    f"{store.location} holds the vocabulary of tokenizer {digest[:16]}, but not "
                    "the tokenizer itself. Give the target's model instead of the digest."
                )
            opened = model().tokenizer
            if opened.digest != digest:
                raise IncompatibleError(
                    f"Cache {name!r} was captured with tokenizer {digest[:16]}, but its model now "
                    f"has tokenizer {opened.digest[:16]}. Give the model's folder."
                )
            return opened

        return cls(name, digest, adds_bos, vocabulary, tokenizer)

    def __repr__(self) -> str:
        return f"Target({self.name!r}, {self.digest[:16]})"

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The bytes of every id."""
        return self._vocabulary()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer itself.

        Raises:
            NotFoundError: the store does not record where it is.
            IncompatibleError: it has changed since the cache was captured.
        """
        return self._tokenizer()


def open_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer of a model, or of a tokenizer's own file.

    Args:
        spec: as for `Model.open` without a store; or the path of a tokenizer file, or
            `package:NAME/PATH`.

    Raises:
        NotFoundError, InvalidInputError, IncompatibleError, MissingDependencyError: as
            `load_tokenizer` and `local_model_folder`.
    """
    in_package = spec.startswith(SCHEME) and "/" in spec
    path = Path(resolve_path(spec) if in_package else spec).expanduser()
    if path.suffix != ".gguf" and (in_package or path.is_file()):
        return load_tokenizer(spec)
    return Model.open(spec).tokenizer


def _tokenizer_of(name: str, store: Store) -> Tokenizer:
    if not (store.model(name) / "manifest.json").exists() and Path(name).is_file():
        return open_tokenizer(name)
    return Model.open(name, store=store).tokenizer


def _name_of(spec: str) -> str:
    if spec.startswith(SCHEME) and "/" in spec:
        return Path(spec).stem
    return Model.open(spec).name


def _digest(prefix: str, store: Store) -> str | None:
    """The whole digest of the vocabulary in the store with this prefix of its digest, if any."""
    files = {
        name: store.location / "vocabularies" / name / MANIFEST_FILE
        for name in store.names("vocabularies")
        if name.startswith(prefix[:16])
    }
    complete = [name for name, file in files.items() if file.exists()]
    if not complete:
        return None
    if len(complete) > 1:
        raise IncompatibleError(
            f"{prefix} begins the digests of several tokenizers in {store.location}: "
            f"{', '.join(complete)}. Give more digits."
        )
    digest = VocabularyManifest.load(files[complete[0]]).fingerprint.tokenizer_digest
    return digest if digest.startswith(prefix) else None
