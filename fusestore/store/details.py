"""One artifact: how large and how old it is, what made it, and whether its inputs are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from fusestore.errors import CorruptionError
from fusestore.storage.objects import ListedFile
from fusestore.store.inventory import choose_artifact, describe
from fusestore.store.layout import Store
from fusestore.store.lineage import FoundInput, Lineage
from fusestore.store.manifest import Frozen
from fusestore.store.registry import Artifact
from fusestore.store.shown_html import tables_html
from fusestore.store.shown_table import ShownTable, counted, size_text

Setting = str | int | float | bool


class InputState(Frozen):
    """An input of an artifact.

    Attributes:
        kind: name of its kind.
        digest: by which the artifact names it.
        name: its name now; its name at that time if it is missing; null if that is unknown.
        present: whether the store holds it.
        needed: whether the artifact cannot be read without it.
    """

    kind: str
    digest: str
    name: str | None
    present: bool
    needed: bool

    @classmethod
    def of(cls, found: FoundInput) -> InputState:
        """That of an input that was looked for."""
        wanted = found.input
        return cls(
            kind=wanted.kind,
            digest=wanted.digest,
            name=found.artifact.name if found.artifact else wanted.name or None,
            present=found.artifact is not None,
            needed=wanted.needed,
        )

    def __str__(self) -> str:
        name = self.name or self.digest[:16]
        return f"{self.kind}/{name}" + ("" if self.present else " (missing)")


class Details(Frozen):
    """One artifact of a store; what `fusestore show --json` prints.

    Attributes:
        artifact: `kind/name`.
        kind: its kind.
        name: its name.
        location: address of its folder.
        state: complete or unfinished.
        description: one line.
        digest: by which other artifacts name it; null while it is unfinished.
        manifest_digest: `checksum` of its manifest (the SHA-256 of its content, not of the file),
            to which copies can be held by `--expect`; null while it is unfinished.
        model: the model that it is or was made with; null if there is none or it is unfinished.
        license: of its model or its texts, or of each model that it was made from; null if it is
            unknown.
        num_bytes: bytes of its files.
        num_files: number of its files.
        num_tokens: tokens that it has rows for; null if it has no rows.
        first_modified: date and time of its oldest file by the storage's clock, ISO 8601 in UTC;
            null if the storage does not say.
        last_modified: that of its newest file.
        settings: what was chosen when it was made, by dotted name: the simple values of its
            fingerprint, without digests.
        inputs: what it was made from.
        used_by: `kind/name` of the artifacts that were made from it.
        figures: what its kind computes for `show`; null for most.
        manifest: content of its manifest, without its checksum; null while it is unfinished.
    """

    artifact: str
    kind: str
    name: str
    location: str
    state: str
    description: str
    digest: str | None
    manifest_digest: str | None
    model: str | None
    license: str | None
    num_bytes: int = Field(ge=0)
    num_files: int = Field(ge=0)
    num_tokens: int | None
    first_modified: str | None
    last_modified: str | None
    settings: dict[str, Setting | list[Any]]
    inputs: tuple[InputState, ...]
    used_by: tuple[str, ...]
    figures: Any
    manifest: dict[str, Any] | None

    def facts(self) -> ShownTable:
        """What people ask first, a line each: a name and its text."""
        size = f"{size_text(self.num_bytes)} in {counted(self.num_files, 'file')}"
        if self.num_tokens:
            size += f", {self.num_bytes / self.num_tokens:.2f} bytes a token"
        dates = dict.fromkeys(filter(None, (self.first_modified, self.last_modified)))
        facts = {
            "state": self.state,
            "content": self.description,
            "location": self.location,
            "size": size,
            "modified": " to ".join(date[:19].replace("T", " ") for date in dates)
            + " UTC" * bool(dates),
            "digest": self.digest or "",
            "manifest": self.manifest_digest or "",
            "model": self.model or "",
            "license": self.license or "",
            "made from": ", ".join(str(each) for each in self.inputs) or "nothing in the store",
            "used by": ", ".join(self.used_by) or "nothing",
        }
        rows = [[title, text] for title, text in facts.items() if text]
        return ShownTable(self.artifact, ["", ""], rows)

    def settings_table(self) -> ShownTable:
        """What was chosen when it was made, a line each."""
        return settings_table(self.settings)

    def __repr__(self) -> str:
        size = f"{size_text(self.num_bytes)} in {counted(self.num_files, 'file')}"
        return f"Details({self.artifact}: {self.state}, {self.description}, {size})"

    __str__ = __repr__  # Pydantic's shows every field.

    def _repr_html_(self) -> str:
        return tables_html([self.facts()], folded=[self.settings_table()])


def artifact_details(
    store: Store,
    artifact: str,
    figures: Any = None,  # noqa: ANN401 - of any kind
) -> Details:
    """What a store tells of an artifact, from manifests and one listing.

    Args:
        store: the store.
        artifact: `kind/name`, or the name alone if only one artifact has it.
        figures: what the kind computed of it.

    Raises:
        NotFoundError: no such store or artifact.
        InvalidInputError: several artifacts have the name.
        CorruptionError: its manifest is damaged.
    """
    lineage = Lineage.of(store)
    found = choose_artifact(store, lineage.artifacts, artifact)
    check_undamaged(found)
    files = found.location.listed()
    dates = [file.modified for file in files.values() if file.modified is not None]
    manifest = found.manifest
    return Details(
        artifact=found.path,
        kind=found.kind.name,
        name=found.name,
        location=str(found.location),
        state=found.state,
        description=describe(found),
        digest=found.digest,
        manifest_digest=None if manifest is None else str(manifest["checksum"]),
        model=None if manifest is None else found.kind.model(manifest),
        license=None if manifest is None else found.kind.license(found.location, manifest),
        num_bytes=sum(file.num_bytes for file in files.values()),
        num_files=len(files),
        num_tokens=None if manifest is None else found.kind.num_tokens(manifest),
        first_modified=date_text(min(dates, default=None)),
        last_modified=date_text(newest(files)),
        settings=settings_of(_chosen(found)),
        inputs=tuple(InputState.of(each) for each in lineage.inputs(found)),
        used_by=tuple(each.path for each in lineage.used_by(found)),
        figures=figures,
        manifest=None
        if manifest is None
        else {key: value for key, value in manifest.items() if key != "checksum"},
    )


def check_undamaged(artifact: Artifact) -> None:
    """Check that the manifest of an artifact can be used, if it has one.

    Raises:
        CorruptionError: it is damaged; the message says how to see more.
    """
    if artifact.damage is not None:
        raise CorruptionError(f"{artifact.damage} See `fusestore verify {artifact.path}`.")


def newest(files: Mapping[str, ListedFile]) -> float | None:
    """When the newest of some files was written, in seconds since 1970; None if that is unknown."""
    return max((file.modified for file in files.values() if file.modified), default=None)


def date_text(modified: float | None) -> str | None:
    """A time in seconds since 1970 as ISO 8601 in UTC."""
    if modified is None:
        return None
    return datetime.fromtimestamp(modified, UTC).isoformat(timespec="seconds")


def settings_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The simple values of a fingerprint by dotted name, without digests."""
    return dict(_settings(content))


def settings_table(settings: Mapping[str, Any]) -> ShownTable:
    """Settings for people, a line each."""
    rows = [[name, _shown(value)] for name, value in settings.items()]
    return ShownTable("settings", ["setting", "value"], rows)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _chosen(artifact: Artifact) -> Mapping[str, Any]:
    """The fingerprint of an artifact, wherever its manifest holds it."""
    manifest = artifact.manifest
    if manifest is None:
        return artifact.fingerprint or {}
    return next((manifest[key] for key in ("fingerprint", "plan", "merge") if key in manifest), {})


def _settings(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if key in ("format_version", "checksum") or "digest" in key or value is None:
            continue
        if isinstance(value, Mapping):
            yield from _settings(value, f"{name}.")
        elif not isinstance(value, list) or all(isinstance(each, Setting) for each in value):
            yield name, value
