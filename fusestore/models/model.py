"""`Model`: one handle for a model, however it was named; each property is computed once.

Opening a model only resolves its name. The folder, the tokenizer, the digest and the configuration
are read on first use. Results that take long are remembered between processes, by size and time of
change of the files.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from fusestore.errors import IncompatibleError, InvalidInputError, NotFoundError
from fusestore.models.gguf_parts import gguf_digest
from fusestore.models.loading import (
    config_digest,
    context_length,
    gguf_file,
    load_model,
    local_model_folder,
    model_digest,
)
from fusestore.models.model_license import find_license
from fusestore.models.placement import Placement
from fusestore.models.quantization import Quantization
from fusestore.models.spec import may_be_hub_id, may_name_artifact, names_in, short_name
from fusestore.models.store_models import CachedModel, cached_model, stored_model_folder
from fusestore.storage.memory import file_digest, remembered
from fusestore.storage.packages import SCHEME
from fusestore.store.layout import Store
from fusestore.store.licenses import License
from fusestore.tokenizers.remembered import folder_tokenizer
from fusestore.tokenizers.remote_code import refuse_untrusted_code
from fusestore.tokenizers.tokenizer import Tokenizer, load_tokenizer

_COMMIT = re.compile("[0-9a-f]{40}")


class Facts(NamedTuple):
    """The properties of a configuration that stages use."""

    architecture: str
    vocab_size: int
    context: int | None


class Model:
    """A causal language model with its tokenizer; made by `open`.

    Attributes:
        spec: the argument it was opened by.
        name: a short name for messages and for artifacts that are made from it.
        trust_remote_code: whether code in its folder may run.
    """

    def __init__(
        self,
        spec: str,
        name: str,
        locate: Callable[[], Path],
        *,
        describe: Callable[[], Path] | None = None,
        gguf: Callable[[], Path | None] = lambda: None,
        hub_id: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Use `open` instead.

        Args:
            spec: the argument of `open`.
            name: for messages.
            locate: finds the local folder; called once, when the folder is needed.
            describe: the same, perhaps without weights; by default `locate`.
            gguf: finds the GGUF file that it was opened by, if it was.
            hub_id: of the repository, for a model of the hub.
            trust_remote_code: run code of the folder.
        """
        self.spec = spec
        self.name = name
        self.trust_remote_code = trust_remote_code
        self._locate = locate
        self._describe = describe
        self._hub_id = hub_id
        self._find_gguf = gguf

    @classmethod
    def open(
        cls,
        spec: str | os.PathLike[str] | Model,
        *,
        store: Store | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> Model:
        """Resolve the name of a model; an open model is returned unchanged.

        A name without `/` means, in this order: a complete model of the store; the model that a
        complete cache of the store was captured from; a folder of this name; a hub id. So a folder
        with the name of an artifact must be written as `./NAME`, unless it is the model that the
        cache was captured from. A path, a `.gguf` file, `package:NAME` and `OWNER/NAME` never mean
        an artifact of the store. With a `revision`, the name means a model of the hub.

        Args:
            spec: folder, hub id (`OWNER/NAME` or `OWNER/NAME@REVISION`), `.gguf` file,
                `package:NAME`, or the name of a trained or merged model or of a cache.
            store: where names of artifacts are looked up; by default they are not.
            revision: commit, branch or tag of a hub model.
            trust_remote_code: run code of the model folder. Only for code you have read.

        Raises:
            NotFoundError: the name is that of a cache that does not record where its model is.
            InvalidInputError: `trust_remote_code` for a model that a store names.
            CorruptionError: the artifact's manifest is damaged.
        """
        if isinstance(spec, Model):
            return spec
        if not isinstance(spec, str):
            spec = str(Path(spec).expanduser().absolute())
        if store is not None and revision is None and may_name_artifact(spec):
            model = cls._in_store(spec, store, trust_remote_code)
            if model is not None:
                return model
        return cls._elsewhere(spec, store, revision, trust_remote_code)

    @classmethod
    def _in_store(cls, name: str, store: Store, trust_remote_code: bool) -> Model | None:
        if (store.model(name) / "manifest.json").exists():
            return cls(
                name,
                name,
                lambda: stored_model_folder(store, name, trust_remote_code=trust_remote_code),
                trust_remote_code=trust_remote_code,
            )
        cached = cached_model(store, name)
        if cached is None:
            return None
        if trust_remote_code:
            raise InvalidInputError(
                f"{name!r} is a cache, and its store names the model it was captured from. Code "
                "of a model that a store names is not trusted: give the model's folder or hub id."
            )
        if cached.spec is None:
            if (Path(name) / "config.json").is_file() and cached.digest in (
                config_digest(Path(name)),
                model_digest(Path(name)),
            ):
                # So the command that captured the cache also works a second time.
                return cls._elsewhere(f"./{name}", None, None, False)
            raise NotFoundError(
                f"Cache {name!r} in {store.location} was captured from a folder of another place, "
                f"or imported: the model with digest {cached.digest[:16]}. Give that folder, "
                f"or a tokenizer.json, instead of the cache's name (a folder called {name} as "
                f"./{name})."
            )
        return cls._of_cache(name, cached, cached.spec)

    @classmethod
    def _of_cache(cls, name: str, cached: CachedModel, spec: str) -> Model:
        origin = cls._elsewhere(spec, None, None, False)

        def checked() -> Model:
            if cached.digest not in origin.digests():
                raise IncompatibleError(
                    f"Cache {name!r} was captured from {spec} with digest {cached.digest[:16]}, "
                    f"but {spec} now has digest {origin.digest[:16]}. Give the folder of the model "
                    "that it was captured from."
                )
            return origin

        model = cls(spec, name, lambda: checked().folder, gguf=lambda: checked().gguf)
        model._hub_id = origin._hub_id
        return model

    @classmethod
    def _elsewhere(
        cls, spec: str, store: Store | None, revision: str | None, trust_remote_code: bool
    ) -> Model:
        hub_id = None
        if may_be_hub_id(spec) and not Path(spec).is_dir():
            hub_id, separator, pinned = spec.partition("@")
            if separator and revision is not None:
                raise InvalidInputError(
                    f"{spec} names revision {pinned}, but revision {revision} is given too; "
                    "give one of them."
                )
            revision = pinned if separator else revision

        def locate(weights: bool = True) -> Path:
            try:
                return local_model_folder(
                    hub_id or spec,
                    revision=revision,
                    trust_remote_code=trust_remote_code,
                    weights=weights,
                )
            except NotFoundError as error:
                if store is None or not may_name_artifact(spec):
                    raise
                raise NotFoundError(f"{error} {names_in(store, spec)}") from error

        name = spec.removeprefix(SCHEME) if spec.startswith(SCHEME) else short_name(hub_id or spec)
        return cls(
            spec,
            name,
            locate,
            describe=(lambda: locate(weights=False)) if hub_id is not None else None,
            gguf=lambda: None if hub_id is not None else gguf_file(spec),
            hub_id=hub_id,
            trust_remote_code=trust_remote_code,
        )

    def __repr__(self) -> str:
        return f"Model({self.spec!r})"

    @cached_property
    def folder(self) -> Path:
        """The local Hugging Face folder, downloaded or converted first if need be.

        Raises:
            NotFoundError, InvalidInputError, MissingDependencyError: as `local_model_folder`.
            IncompatibleError: a cache names it, but the model has changed since the capture.
            CorruptionError: a model of a remote store does not match its manifest.
        """
        return self._locate()

    @cached_property
    def gguf(self) -> Path | None:
        """The GGUF file that it was opened by; None for a folder or a model of the hub.

        Raises:
            NotFoundError: there is no such file or package.
            IncompatibleError: a cache names it, but the model has changed since the capture.
        """
        return self._find_gguf()

    @cached_property
    def description(self) -> Path:
        """The local folder with configuration and tokenizer; it may lack the weights.

        Raises:
            NotFoundError, InvalidInputError, IncompatibleError, CorruptionError: as `folder`.
        """
        if self._describe is None or "folder" in self.__dict__:
            return self.folder
        return self._describe()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; it is loaded when it encodes, but its digest may be remembered.

        Raises:
            NotFoundError, IncompatibleError, MissingDependencyError: as `load_tokenizer`.
        """
        if self.trust_remote_code:
            return load_tokenizer(self.description, trust_remote_code=True)
        return folder_tokenizer(self.description)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the names and bytes of configuration and weights, hexadecimal."""
        return model_digest(self.folder)

    @cached_property
    def config_digest(self) -> str:
        """SHA-256 of the configuration alone: of a model that servers run."""
        return config_digest(self.description)

    def digests(self) -> Iterator[str]:
        """All digests by which a cache may name it; those that need least work come first.

        That of its GGUF file is of a model that was read as it is.
        """
        if self.gguf is not None:
            yield gguf_digest(self.gguf)
        yield self.config_digest
        yield self.digest

    @cached_property
    def config(self) -> Any:  # noqa: ANN401 - transformers is untyped
        """The transformers configuration.

        Raises:
            InvalidInputError: the folder has no configuration that transformers can read.
        """
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(
                self.description, trust_remote_code=self.trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError, StrictDataclassError) as error:
            refuse_untrusted_code(error, str(self.description))
            raise InvalidInputError(
                f"{self.description} has no usable configuration: {error}"
            ) from error

    @property
    def architecture(self) -> str:
        """The class that the configuration names."""
        return self._facts.architecture

    @property
    def vocab_size(self) -> int:
        """Width of the output, padding included."""
        return self._facts.vocab_size

    @property
    def context(self) -> int | None:
        """Most tokens of a document; None where the configuration sets no limit."""
        return self._facts.context

    @cached_property
    def portable_spec(self) -> str | None:
        """The spec that opens the same model on any machine: `package:NAME` or `HUB_ID@COMMIT`.

        None for a folder or a file, because a path means nothing on another machine.
        """
        if self.spec.startswith(SCHEME):
            return self.spec
        if self._hub_id is None or not _COMMIT.fullmatch(self.description.name):
            return None
        # The hub's cache names the folder of each revision by its commit.
        return f"{self._hub_id}@{self.description.name}"

    @cached_property
    def license(self) -> License | None:
        """What the model's card, GGUF metadata, package or license file state; None if nothing."""
        package = self.spec.removeprefix(SCHEME) if self.spec.startswith(SCHEME) else None
        gguf = self.gguf
        folder = gguf.parent if gguf is not None else self.description
        return find_license(folder, gguf, package)

    def load(
        self,
        *,
        dtype: str = "float32",
        device: str = "auto",
        attention: str | None = None,
        placement: Placement | None = None,
        quantization: Quantization | None = None,
    ) -> Any:  # noqa: ANN401 - transformers is untyped
        """The model itself, in evaluation mode; see `load_model`, also for errors."""
        return load_model(
            self.folder,
            dtype=dtype,
            device=device,
            attention=attention,
            placement=placement,
            quantization=quantization,
            trust_remote_code=self.trust_remote_code,
        )

    @cached_property
    def _facts(self) -> Facts:
        def make() -> dict[str, Any]:
            text = self.config.get_text_config()
            vocab_size = getattr(text, "vocab_size", None)
            if type(vocab_size) is not int:
                raise InvalidInputError(
                    f"The configuration of {self.spec} ({type(self.config).__name__}) has no "
                    "vocab_size, so it is not that of a language model. Give the folder of a model "
                    "that predicts the next token."
                )
            return {
                "architecture": (self.config.architectures or [type(self.config).__name__])[0],
                "vocab_size": vocab_size,
                "context": context_length(text),
            }

        if self.trust_remote_code:
            # The result also depends on the code in the folder, which the key does not cover.
            return Facts(**make())
        file = self.description / "config.json"
        key = f"config {importlib.metadata.version('transformers')} {file_digest(file)}"
        return Facts(**remembered(key, make, valid=are_facts))


def are_facts(value: dict[str, Any]) -> bool:
    """Whether a remembered value has the fields of `Facts`."""
    return (
        value.keys() == set(Facts._fields)
        and isinstance(value["architecture"], str)
        and type(value["vocab_size"]) is int
        and (value["context"] is None or type(value["context"]) is int)
    )
