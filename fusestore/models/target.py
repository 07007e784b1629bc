"""`Target`: the tokenizer side of a model, all that aligning and fusing need to know of it.

Often the store tells it: then neither the model nor its tokenizer is opened.
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
from fusestore.store.artifact_files import FINGERPRINT_FILE
from fusestore.store.layout import Store
from fusestore.tokenizers.manifest import VocabularyFingerprint
from fusestore.tokenizers.tokenizer import Tokenizer, as_tokenizer, load_tokenizer
from fusestore.tokenizers.vocabulary import Vocabulary

_DIGEST = re.compile("[0-9a-f]{8,64}")


class Target:
    """A tokenizer that distributions are aligned to and fused for; made by `open`.

    Attributes:
        name: what alignments to it are called by.
        digest: of the tokenizer, hexadecimal.
        adds_bos: whether its documents begin with BOS; None where the store does not tell.
    """

    def __init__(
        self,
        name: str,
        digest: str,
        adds_bos: bool | None,
        vocabulary: Callable[[], Vocabulary],
        tokenizer: Callable[[], Tokenizer],
    ) -> None:
        """Use `open` instead; the last two are called when they are needed."""
        self.name = name
        self.digest = digest
        self.adds_bos = adds_bos
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer

    @classmethod
    def open(
        cls,
        target: Any,  # noqa: ANN401 - Hugging Face tokenizers share no public base
        *,
        store: Store | None = None,
    ) -> Target:
        """Find out which tokenizer is meant; an open target is returned as it is.

        A name without `/` means, in this order: a complete model of the store; a complete cache;
        the first 8 or more digits of the digest of a tokenizer that the store holds the vocabulary
        of; then what `Model.open` makes of it.

        Args:
            target: a `Model`, a tokenizer, a name in the store, a tokenizer's digest, or what
                `open_tokenizer` takes.
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
        """The target of a tokenizer that is at hand."""
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
                return cls._in_store(
                    name, digest, cached.add_bos, store, lambda: Model.open(name, store=store)
                )
            known = _digest(name, store) if _DIGEST.fullmatch(name) else None
            if known is not None:
                return cls._in_store(name, known, None, store, None)
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
                    "what encodes text with it. Give the target's model instead of the digest."
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
        """Every id as the bytes it stands for."""
        return self._vocabulary()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer itself, for what the store does not hold.

        Raises:
            NotFoundError: nothing tells where it is.
            IncompatibleError: it is not any more what the cache was captured with.
        """
        return self._tokenizer()


def open_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer of a model, or of a tokenizer's own file.

    Args:
        spec: what `Model.open` takes without a store; or the path of a tokenizer file, or
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
    """The whole digest of the one tokenizer in the store whose digest begins so."""
    names = store.names("vocabularies")
    found = [name for name in names if name.startswith(prefix[:16]) or prefix.startswith(name)]
    if not found:
        return None
    if len(found) > 1:
        raise IncompatibleError(
            f"{prefix} begins the digests of several tokenizers in {store.location}: "
            f"{', '.join(sorted(found))}. Give more digits."
        )
    fingerprint = VocabularyFingerprint.load(store.vocabulary(found[0]) / FINGERPRINT_FILE)
    digest = fingerprint.tokenizer_digest
    return digest if digest.startswith(prefix) else None
