"""The kinds of artifacts: one class each, beside the stage that makes them.

Listing, `show`, verify, repair, sharing and the schemas are loops over `kinds()` and name no kind.
A class of a plugin takes part in all of them once it is registered:

    @register
    class NotesKind(ArtifactKind):
        name, folder, title = "notes", "notes", "notes"
        ...

A kind's module must be light: modules that import torch, transformers, zarr, polars or numba are
imported inside the methods that need them.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar, cast

from pydantic import ValidationError

from fusestore.errors import CorruptionError, InvalidInputError, did_you_mean
from fusestore.storage.location import Location
from fusestore.store.artifact_files import (
    FINGERPRINT_FILE,
    MANIFEST_FILE,
    ArtifactFiles,
    Document,
    file_group,
    read_document,
    read_documents,
)
from fusestore.store.artifact_types import (
    Conversion,
    DocumentSchema,
    Input,
    RebuildTools,
    TableSchema,
    View,
)
from fusestore.store.findings import Finding, check_files
from fusestore.store.layout import Store, check_name
from fusestore.store.licenses import License, LicensedInput
from fusestore.store.manifest import MAX_MANIFEST_BYTES, Manifest
from fusestore.store.receipts import FileRecord, Receipt

BUILT_IN = (
    "fusestore.corpus.artifact:CorpusKind",
    "fusestore.tokenizers.artifact:VocabularyKind",
    "fusestore.capture.artifact:CacheKind",
    "fusestore.align.vocabulary.artifact:VocabularyMapKind",
    "fusestore.align.artifact:AlignmentKind",
    "fusestore.fuse.fits.artifact:FitKind",
    "fusestore.fuse.artifact:FusedKind",
    "fusestore.merge.artifact:ModelKind",
)
"""`module:Class` of fusestore's own kinds, each after the kinds that it is made from."""


@dataclass(frozen=True)
class Artifact:
    """One named result in a store.

    Attributes:
        kind: its kind.
        name: its name.
        location: its folder.
        manifest: content of its manifest; None if it is unfinished or damaged.
        damage: why the manifest cannot be used; None if it can, or does not exist.
        fingerprint: of an unfinished artifact, the content of its fingerprint, if it is sound.
    """

    kind: ArtifactKind
    name: str
    location: Location
    manifest: Mapping[str, Any] | None
    damage: str | None = None
    fingerprint: Mapping[str, Any] | None = None

    @property
    def path(self) -> str:
        """`kind/name`, as commands call it."""
        return f"{self.kind.name}/{self.name}"

    @property
    def complete(self) -> bool:
        """Whether its manifest exists, sound or damaged."""
        return self.manifest is not None or self.damage is not None

    @property
    def state(self) -> str:
        """complete, unfinished or damaged."""
        if self.damage is not None:
            return "damaged"
        return "unfinished" if self.manifest is None else "complete"

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The artifacts that it was made from directly, or is made from while it is unfinished."""
        if self.manifest is not None:
            return tuple(self.kind.inputs(self.manifest))
        return () if self.fingerprint is None else tuple(self.kind.begun_inputs(self.fingerprint))

    @property
    def digest(self) -> str | None:
        """The digest by which other manifests refer to it; None unless its manifest is sound."""
        return None if self.manifest is None else self.kind.digest(self.manifest)


class ArtifactKind(ABC):
    """A kind of artifact. The defaults suit a kind of plain files; override what differs.

    Attributes:
        name: the word of the command line: `cache` in `cache/smollm2`.
        folder: the folder of its artifacts in the store: `caches`.
        title: its name in a sentence: "fused dataset".
        made_by: a sentence with the command that makes one.
        unfinished: what to do about an artifact without a manifest.
        named_by_user: whether people choose the name; if not, it says what the artifact is.
        made_on_demand: whether stages make it again by themselves when they need it. Such an
            artifact is removed by `gc` when no other artifact uses it.
        usable_unfinished: whether it may be used without a manifest.
    """

    name: ClassVar[str]
    folder: ClassVar[str]
    title: ClassVar[str]
    made_by: ClassVar[str] = ""
    unfinished: ClassVar[str] = "run the same command again to finish it"
    named_by_user: ClassVar[bool] = True
    made_on_demand: ClassVar[bool] = False
    usable_unfinished: ClassVar[bool] = False

    def location(self, store: Store, name: str) -> Location:
        """The folder of the artifact of this name."""
        return store.location / self.folder / name

    def names(self, store: Store) -> list[str]:
        """Names of the artifacts in the store, complete or not."""
        return [name for name in store.names(self.folder) if not name.startswith(".")]

    @abstractmethod
    def parse(self, data: bytes, file: str) -> Manifest:
        """Validate the bytes of the manifest `file`; errors as for `Manifest.from_bytes`."""

    def load(self, location: Location) -> Manifest:
        """Read and validate the manifest in a folder; errors as for `Manifest.load`."""
        file = location / MANIFEST_FILE
        return self.parse(file.read_prefix(MAX_MANIFEST_BYTES + 1), str(file))

    @abstractmethod
    def describe(self, manifest: Mapping[str, Any]) -> str:
        """One line on what the artifact is, from the content of its manifest."""

    def inputs(self, manifest: Mapping[str, Any]) -> Iterable[Input]:
        """The artifacts from which this artifact was made directly."""
        del manifest
        return ()

    def begun_inputs(self, fingerprint: Mapping[str, Any]) -> Iterable[Input]:
        """The artifacts from which an unfinished artifact is made.

        By default, the inputs of a manifest that holds the fingerprint as `fingerprint`.

        Args:
            fingerprint: content of its fingerprint.
        """
        return self.inputs({"fingerprint": fingerprint})

    def accompanies(self, manifest: Mapping[str, Any], other: Artifact) -> bool:
        """Whether later stages read it together with another artifact that was made without it.

        Args:
            manifest: content of its manifest.
            other: another artifact of the store, finished or not.
        """
        del manifest, other
        return False

    def model(self, manifest: Mapping[str, Any]) -> str | None:
        """The model that it is, or was made with, in a form that opens it if there is one."""
        del manifest
        return None

    def license(self, location: Location, manifest: Mapping[str, Any]) -> str | None:
        """The license of the artifact, or of each model that it was made from; None if unknown.

        By default what its manifest holds as `license` or `made_from`.

        Args:
            location: its folder.
            manifest: content of its manifest.
        """
        del location
        try:
            if "license" in manifest:
                return str(License.model_validate(manifest["license"]))
            inputs = [LicensedInput.model_validate(each) for each in manifest.get("made_from", ())]
        except (ValidationError, TypeError):
            # A kind of a plugin may have other keys of these names.
            return None
        each_once = dict.fromkeys(f"{each.name}: {each.license or 'unknown'}" for each in inputs)
        return ", ".join(each_once) or None

    def num_tokens(self, manifest: Mapping[str, Any]) -> int | None:
        """The tokens that it holds rows for; None if it has no rows."""
        del manifest
        return None

    def leftovers(self, artifact: Artifact, files: Iterable[str]) -> Iterable[str]:
        """Those files of a complete artifact that nothing reads any more, as `gc` removes them.

        Args:
            artifact: complete and sound.
            files: all files of its folder, by path inside it.
        """
        del artifact, files
        return ()

    def digest(self, manifest: Mapping[str, Any]) -> str:
        """The digest by which other manifests refer to it; that of its manifest by default."""
        return str(manifest["checksum"])

    def identity(self, path: str, content: Mapping[str, Any]) -> str | None:
        """The identity of a document if its bytes may differ for one content; else None."""
        del path, content
        return None

    def files(self, location: Location, path: str, manifest: Document) -> ArtifactFiles:
        """All files of a complete artifact, in the order of a copy.

        By default, those that the manifest lists as `files`; receipts among them seal their files.

        Args:
            location: its folder.
            path: `kind/name`, for messages.
            manifest: its manifest.

        Raises:
            CorruptionError, NotFoundError: a fingerprint or receipt is damaged or missing.
            InvalidInputError: a file outside the folder is listed.
        """
        others = dict(_listed_files(self.parse(manifest.data, str(location / manifest.path))))
        fingerprint = read_document(location, FINGERPRINT_FILE, self.identity)
        if FileRecord.of(fingerprint.data) != others.pop(FINGERPRINT_FILE, None):
            raise CorruptionError(
                f"{location} has a {FINGERPRINT_FILE} that is not the one its manifest names. "
                f"Run `fusestore verify {path}`."
            )
        receipts = sorted(file for file in others if file.startswith("receipts/"))
        groups = []
        for seal in read_documents(location, receipts, self.identity):
            receipt = Receipt.from_bytes(seal.data, str(location / seal.path))
            groups.append(file_group(location, receipt.files, seal))
            for file in (seal.path, *receipt.files):
                others.pop(file, None)
        # What no receipt names, such as the arrays' metadata, goes first.
        groups.insert(0, file_group(location, others))
        return ArtifactFiles(path, location, fingerprint, tuple(groups), manifest, location.sizes())

    def held(self, files: ArtifactFiles) -> ArtifactFiles:
        """The files that the digest of the manifest covers; by default all.

        A copy that is held to a digest leaves out the others.
        """
        return files

    def check(self, store: Store, artifact: Artifact, *, quick: bool) -> Iterable[Finding]:
        """The problems of the artifact.

        By default, every file that the manifest lists as `files` is compared with its record.

        Args:
            store: the store.
            artifact: in any state.
            quick: check sizes, receipts and manifests only, without reading data.

        Raises:
            One of `findings.DAMAGE`: the manifest is damaged.
        """
        del store
        if not artifact.complete:
            return [Finding(MANIFEST_FILE, f"is missing: unfinished; {self.unfinished}")]
        manifest = self.load(artifact.location)
        return check_files(artifact.location, _listed_files(manifest), quick=quick)

    def rebuild(
        self, store: Store, artifact: Artifact, findings: Sequence[Finding], tools: RebuildTools
    ) -> None:
        """Make the damaged files that `check` found again, to the same bytes.

        Raises:
            FusestoreError: they cannot be made again; the message says why, and what to do.
        """
        del tools
        raise InvalidInputError(
            f"A {self.title} cannot be made again from what the store holds: "
            f"{self.remedy(store, artifact.name, findings[0])}."
        )

    def remedy(self, store: Store, name: str, finding: Finding) -> str:
        """The command that repairs a finding, or what else to do."""
        del finding
        return f"fusestore verify {self.name}/{name} --store {store.location} --repair"

    def conversion(self, source: Location, target: Location) -> Conversion | bool:
        """The conversion that copying from one folder to another needs.

        Returns:
            False: none; copy the files. True: the target has the artifact already, in another form.
            Else a function that writes the form of the target.

        Raises:
            AlreadyExistsError: the target has another artifact of this name.
        """
        del source, target
        return False

    def view(self, store: Store, artifact: Artifact, rows: int) -> View | None:
        """What `show` prints, with `rows` lines per table; None: it prints the manifest."""
        del store, artifact, rows
        return None

    def preview(self, store: Store, artifact: Artifact, rows: int) -> View | None:
        """What a notebook shows of the content, soon and in little; None for nothing.

        By default that of `view`, if the artifact is complete and sound.
        """
        return None if artifact.manifest is None else self.view(store, artifact, rows)

    def view_document(
        self, store: Store, artifact: Artifact, document: int, rows: int
    ) -> View | None:
        """What `show --document` prints; None if the kind has no view by document."""
        del store, artifact, document, rows
        return None

    def schemas(self) -> Mapping[str, DocumentSchema]:
        """The JSON documents that the kind writes, by the name of their schema."""
        return {}

    def tables(self) -> Mapping[str, TableSchema]:
        """The Parquet tables that the kind writes, by name."""
        return {}


def _listed_files(manifest: Manifest) -> Mapping[str, FileRecord]:
    """The files that a manifest lists: every other file of its folder."""
    return cast("_ListsFiles", manifest).files


class _ListsFiles(Protocol):
    files: Mapping[str, FileRecord]


K = TypeVar("K", bound=type[ArtifactKind])


@dataclass
class _Registry:
    """The kinds by name; fusestore's own are imported on first use."""

    registered: dict[str, ArtifactKind] = field(default_factory=dict)
    built_in: dict[str, ArtifactKind] = field(default_factory=dict)

    def all(self) -> dict[str, ArtifactKind]:
        if not self.built_in:
            for entry in BUILT_IN:
                module, _, attribute = entry.partition(":")
                kind: ArtifactKind = getattr(importlib.import_module(module), attribute)()
                self.built_in[kind.name] = kind
        return self.built_in | self.registered


_REGISTRY = _Registry()


def register(kind: K) -> K:
    """Add a kind of artifact; use it as a decorator of the class.

    Raises:
        InvalidInputError: another kind has this name or this folder.
    """
    for other in _REGISTRY.all().values():
        same_class = (type(other).__module__, type(other).__qualname__) == (
            kind.__module__,
            kind.__qualname__,
        )
        if not same_class and (other.name == kind.name or other.folder == kind.folder):
            raise InvalidInputError(
                f"The artifact kind {kind.name!r} in folder {kind.folder!r} cannot be registered: "
                f"{type(other).__module__}.{type(other).__qualname__} has the name {other.name!r} "
                f"and the folder {other.folder!r}. Choose others."
            )
    _REGISTRY.registered[kind.name] = kind()
    return kind


def unregister(name: str) -> None:
    """Remove a registered kind; fusestore's own stay."""
    _REGISTRY.registered.pop(name, None)


def kinds() -> tuple[ArtifactKind, ...]:
    """Every kind, each after the kinds that it is made from; registered ones come last."""
    return tuple(_REGISTRY.all().values())


def kind_named(name: str) -> ArtifactKind:
    """The kind of a name.

    Raises:
        InvalidInputError: there is none; the message lists all.
    """
    by_name = _REGISTRY.all()
    if name not in by_name:
        raise InvalidInputError(
            f"{name!r} is no kind of artifact. {did_you_mean(name, by_name)} "
            f"Kinds are: {', '.join(by_name)}."
        )
    return by_name[name]


def split_path(path: str) -> tuple[ArtifactKind, str]:
    """The kind and the name in `kind/name`.

    Raises:
        InvalidInputError: not of that form, an unknown kind, or an impossible name.
    """
    kind, separator, name = path.partition("/")
    if not separator:
        raise InvalidInputError(
            f"{path!r} names no artifact: write KIND/NAME with a kind of "
            f"{', '.join(_REGISTRY.all())}."
        )
    return kind_named(kind), check_name(name)
