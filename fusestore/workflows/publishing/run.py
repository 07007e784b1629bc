"""`publish_artifacts`: artifacts with a card, on the Hub or in any other storage.

The order is that of a copy: fingerprints, files, receipts after their files, and the manifests
last, on the Hub in one commit with the card. So a half-published artifact cannot be opened, and the
same command continues it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from fusestore.errors import (
    AlreadyExistsError,
    CorruptionError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from fusestore.progress import ProgressCounter, Reporter, SilentReporter
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from fusestore.store.artifact_files import ArtifactFiles, Document, read_document
from fusestore.store.layout import Store
from fusestore.store.manifest import Frozen
from fusestore.store.registry import split_path
from fusestore.workflows.publishing.card_figures import CardContent
from fusestore.workflows.publishing.card_text import card_body, card_head, escaped
from fusestore.workflows.publishing.front_matter import MAX_CARD_BYTES, joined_card, split_card
from fusestore.workflows.publishing.hub_repository import Addition, HubRepository, RemoteFile
from fusestore.workflows.publishing.settings import PublishSettings
from fusestore.workflows.sharing.artifacts import folder_of, paths_in, read_artifact
from fusestore.workflows.sharing.closure import with_inputs, with_needed
from fusestore.workflows.sharing.expected import expected_digests, manifest_digest
from fusestore.workflows.sharing.run import Shared, checked_manifest, copy_artifacts
from fusestore.workflows.sharing.settings import CopySettings

CARD = "README.md"

ATTEMPTS = 3
"""Attempts at a publication on the Hub; each continues from what is there."""

FIRST_WAIT_S = 1.0


class Published(Frozen):
    """What was published, or would be; what `fusestore publish --json` prints.

    Attributes:
        target: where.
        dry_run: whether nothing was written.
        artifacts: in the order of the copies.
        num_files: data files that were sent, or are to be sent.
        num_bytes: bytes of these files.
        content: what the card says.
        card: the whole card, Markdown.
        card_changed: whether the card there differed.
        commit: of the Hub; null for other storage, and where nothing was sent.
    """

    target: str
    dry_run: bool
    artifacts: tuple[Shared, ...]
    num_files: int
    num_bytes: int
    content: CardContent
    card: str
    card_changed: bool
    commit: str | None


def publish_artifacts(
    store: Store,
    names: Sequence[str] | None,
    target: Location,
    settings: PublishSettings | None = None,
    reporter: Reporter | None = None,
    *,
    dry_run: bool = False,
) -> Published:
    """Publish artifacts and write a card that says what they are.

    Args:
        store: holds the artifacts.
        names: `kind/name` each, or the name alone if only one artifact has it; None publishes
            every complete artifact.
        target: `hf://datasets/OWNER/NAME`, which becomes a store; `hf://OWNER/NAME`, which becomes
            the folder of the one model that is named; or a store of any other storage.
        settings: what goes along, and what the card says.
        reporter: receives progress updates, and a line on each license that is unknown.
        dry_run: only find out what would be sent, and make the card.

    Raises:
        NotFoundError: an artifact does not exist or is not complete.
        AlreadyExistsError: the target has another artifact of that name; nothing was written.
        InvalidInputError: a target of another form, or a model repository for something else.
        CorruptionError: files of the store are damaged, and their artifacts are unfinished there;
            or an artifact is not what `settings.expect` says, and nothing was written.
        AccessDeniedError, StorageError: a storage failed; the same call continues.
    """
    settings, reporter = settings or PublishSettings(), reporter or SilentReporter()
    if names is None:
        names = [path for path, complete in paths_in(store).items() if complete]
    if not names:
        raise NotFoundError(f"{store.location} holds no complete artifact to publish.")
    closure = with_inputs if settings.inputs else with_needed
    paths = closure(store, names)
    expected = expected_digests(settings.expect, names, paths)
    for path in paths if expected else ():
        checked_manifest(store, path, expected)
    if target.url.startswith("hf://"):
        repository = HubRepository(target.url, dict(target.storage_options))
        publication: _Publication = _OnHub(store, paths, repository, settings, reporter)
    else:
        publication = _InStore(store, paths, target, settings, reporter)
    return publication.publish(dry_run=dry_run)


class _Publication:
    """The parts that both kinds of target share."""

    model_id: str | None = None

    def __init__(
        self,
        store: Store,
        paths: Sequence[str],
        url: str,
        settings: PublishSettings,
        reporter: Reporter,
    ) -> None:
        self.store, self.paths, self.url = store, paths, url
        self.settings, self.reporter = settings, reporter

    def publish(self, *, dry_run: bool) -> Published:
        raise NotImplementedError

    def collect(self) -> CardContent:
        # What is missing is said before this is imported, which takes a second.
        from fusestore.workflows.publishing.card_content import card_content

        content = card_content(self.store, self.paths, self.settings, self.reporter)
        corpora = [each.name for each in content.corpora]
        unused = self.settings.license.keys() - {
            *(f"cache/{each.name}" for each in content.models_used if each.role == "teacher"),
            *(f"model/{each.name}" for each in content.models_used if each.role != "teacher"),
            *(f"corpus/{each.name}" for each in content.corpora),
        }
        if unused:
            raise InvalidInputError(
                f"A license is given for {min(unused)}, but what is published was made from no "
                "such artifact. It was made from: "
                f"{', '.join([each.name for each in content.models_used] + corpora)}."
            )
        for name in content.unknown_licenses:
            self.reporter.line(
                f"The license of {name} is unknown, so the card names none. State it with "
                "--license KIND/NAME=LICENSE."
            )
        for reason in content.left_out:
            self.reporter.line(f"Left out of the card: {reason}")
        return content

    def card(self, content: CardContent, existing: bytes | None) -> str:
        is_model = self.model_id is not None
        parts = None if existing is None else split_card(existing.decode("utf-8", "replace"))
        title = self.settings.title or self.url.rsplit("/", 1)[-1].partition("@")[0]
        return joined_card(
            parts,
            escaped(title),
            card_head(content, is_model=is_model),
            card_body(content, self.url, model_id=self.model_id),
        )

    def result(
        self,
        shared: Sequence[Shared],
        content: CardContent,
        card: str,
        *,
        changed: bool,
        commit: str | None,
        dry_run: bool,
    ) -> Published:
        return Published(
            target=self.url,
            dry_run=dry_run,
            artifacts=tuple(shared),
            num_files=sum(each.num_files for each in shared),
            num_bytes=sum(each.num_bytes for each in shared),
            content=content,
            card=card,
            card_changed=changed,
            commit=commit,
        )


class _InStore(_Publication):
    """A store of any storage but the Hub: a copy, and the card beside it."""

    def __init__(
        self,
        store: Store,
        paths: Sequence[str],
        target: Location,
        settings: PublishSettings,
        reporter: Reporter,
    ) -> None:
        super().__init__(store, paths, str(target), settings, reporter)
        self._target = Store(target)

    def publish(self, *, dry_run: bool) -> Published:
        content = self.collect()
        file = self._target.location / CARD
        existing = _read_card(file)
        card = self.card(content, existing)
        shared = copy_artifacts(
            self.store,
            self._target,
            self.paths,
            CopySettings(inputs=self.settings.inputs, jobs=self.settings.jobs),
            self.reporter,
            dry_run=dry_run or self.settings.card_only,
        )
        if self.settings.card_only:
            _check_published(shared, self.url)
        changed = existing != card.encode()
        if changed and not dry_run:
            publish(file, card.encode())
        return self.result(shared, content, card, changed=changed, commit=None, dry_run=dry_run)


class _OnHub(_Publication):
    """A repository of the Hub: of a dataset a store, of a model the folder of one model."""

    def __init__(
        self,
        store: Store,
        paths: Sequence[str],
        repository: HubRepository,
        settings: PublishSettings,
        reporter: Reporter,
    ) -> None:
        super().__init__(store, paths, str(repository.location()), settings, reporter)
        self._repository = repository
        if repository.repo_type == "model":
            if len(paths) != 1 or split_path(paths[0])[0].name != "model":
                raise InvalidInputError(
                    f"{repository.url} is a model repository, which holds one model, but "
                    f"{', '.join(paths)} would be published. Name one model/NAME without its "
                    "inputs, or publish to hf://datasets/OWNER/NAME, which becomes a store."
                )
            self.model_id = repository.repo_id

    def publish(self, *, dry_run: bool) -> Published:
        content = self.collect()
        for attempt in range(ATTEMPTS):
            try:
                return self._publish(content, dry_run=dry_run)
            except CorruptionError:
                raise
            except StorageError:
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(FIRST_WAIT_S * 2**attempt)
        raise AssertionError

    def _publish(self, content: CardContent, *, dry_run: bool) -> Published:
        repository = self._repository
        present = repository.files()
        shared, files, manifests = self._missing(present)
        existing = None
        if CARD in present:
            existing = _read_card(repository.location(CARD))
        card = self.card(content, existing)
        changed = CARD not in present or not present[CARD].holds(card.encode())
        if self.settings.card_only:
            _check_published(shared, self.url)
        last = [*manifests, *([Addition(CARD, card.encode())] if changed else [])]
        commit = None
        if (files or last) and not dry_run:
            repository.create(private=self.settings.private)
            total = sum(each.num_bytes for each in (*files, *last))
            with self.reporter.stage("Publishing", "bytes") as progress:
                progress(0, total)
                counter = ProgressCounter(total, progress)
                commit = repository.add(
                    files,
                    last,
                    message=f"Publish {_listed(self.paths)} with fusestore",
                    jobs=self.settings.jobs,
                    added=counter.add,
                )
        return self.result(shared, content, card, changed=changed, commit=commit, dry_run=dry_run)

    def _missing(
        self, present: Mapping[str, RemoteFile]
    ) -> tuple[list[Shared], list[Addition], list[Addition]]:
        """What each artifact lacks there: files and receipts in order, and manifests."""
        shared: list[Shared] = []
        files: list[Addition] = []
        manifests: list[Addition] = []
        with self.reporter.stage("Comparing", "artifacts") as progress:
            for done, path in enumerate(self.paths):
                progress(done, len(self.paths))
                artifact = read_artifact(self.store, path)
                folder = "" if self.model_id else f"{_folder_in_store(self.store, path)}/"
                missing = []
                manifest: list[Addition] = []
                if not self._is_there(artifact, folder, present):
                    missing = list(_missing_files(artifact, folder, present))
                    name = folder + artifact.manifest.path
                    if name not in present or not present[name].holds(artifact.manifest.data):
                        manifest = [Addition(name, artifact.manifest.data)]
                data = [each for each in missing if each.record is not None]
                files += missing
                manifests += manifest
                shared.append(
                    Shared(
                        artifact=path,
                        target=self.url,
                        num_files=len(data),
                        num_bytes=sum(each.num_bytes for each in data),
                        already_there=not missing and not manifest,
                        manifest_digest=manifest_digest(artifact.manifest),
                    )
                )
            progress(len(self.paths), len(self.paths))
        return shared, files, manifests

    def _is_there(
        self, artifact: ArtifactFiles, folder: str, present: Mapping[str, RemoteFile]
    ) -> bool:
        """Whether the repository has the artifact complete, perhaps in other bytes.

        Raises:
            AlreadyExistsError: it has another artifact of this name, or an unfinished one.
        """
        for document in (artifact.fingerprint, artifact.manifest):
            if document is None or folder + document.path not in present:
                continue
            if present[folder + document.path].holds(document.data):
                continue
            self._check_same(artifact, folder, document)
            if document is artifact.manifest:
                # The same content, which another version encoded in other bytes, or another form.
                return True
        return False

    def _check_same(self, artifact: ArtifactFiles, folder: str, document: Document) -> None:
        kind, _ = split_path(artifact.path)
        there = self._repository.location(folder.rstrip("/"))
        if document is artifact.manifest and kind.conversion(artifact.location, there) is True:
            return
        try:
            existing = read_document(there, document.path, kind.identity)
        except (CorruptionError, InvalidInputError) as error:
            raise AlreadyExistsError(
                f"{artifact.path} cannot be published to {there}: its {document.path} is damaged "
                f"({error}) Nothing was published; remove that file there."
            ) from error
        if existing.identity != document.identity:
            raise AlreadyExistsError(
                f"{there} is another {artifact.path}: its {document.path} has the digest "
                f"{existing.identity}, that of {artifact.location} has {document.identity}. "
                "Nothing was published; choose another name or repository."
            )


def _missing_files(
    artifact: ArtifactFiles, folder: str, present: Mapping[str, RemoteFile]
) -> Iterator[Addition]:
    """The fingerprint, and each group's files before its receipt, as far as they are missing."""
    if artifact.fingerprint is not None:
        yield from _missing_document(artifact.fingerprint, folder, present)
    for group in artifact.groups:
        for path, record in sorted(group.files.items()):
            remote = present.get(folder + path)
            source = artifact.location / path
            if remote is not None and remote.num_bytes == record.num_bytes:
                if remote.sha256 is not None:
                    same = remote.sha256 == record.sha256
                else:
                    # Of a small file the listing tells another hash than the record has.
                    same = remote.holds(source.read_bytes())
                if same:
                    continue
            yield Addition(folder + path, source=source, record=record)
        if group.receipt is not None:
            yield from _missing_document(group.receipt, folder, present)


def _missing_document(
    document: Document, folder: str, present: Mapping[str, RemoteFile]
) -> Iterator[Addition]:
    remote = present.get(folder + document.path)
    if remote is None or not remote.holds(document.data):
        yield Addition(folder + document.path, document.data)


def _folder_in_store(store: Store, path: str) -> str:
    return folder_of(store, path).url.removeprefix(store.location.url).strip("/")


def _read_card(file: Location) -> bytes | None:
    try:
        content = file.read_prefix(MAX_CARD_BYTES + 1)
    except NotFoundError:
        return None
    if len(content) > MAX_CARD_BYTES:
        raise InvalidInputError(
            f"{file} has more than {MAX_CARD_BYTES:,} bytes, so it was not read and cannot be "
            "kept. Shorten it, or remove it."
        )
    return content


def _check_published(shared: Sequence[Shared], url: str) -> None:
    """Check, for a card alone, that its artifacts are there.

    Raises:
        NotFoundError: one is not.
    """
    missing = [each.artifact for each in shared if not each.already_there]
    if missing:
        raise NotFoundError(
            f"{', '.join(missing)} cannot have a card at {url}: it is not published there whole. "
            "Leave out --card-only."
        )


def _listed(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[-1]} and {len(paths) - 1} more artifacts"
