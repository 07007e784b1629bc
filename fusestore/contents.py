"""`StoreContents`: what a store holds, to list, open, verify, repair and copy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fusestore.store.layout import Store

if TYPE_CHECKING:
    from fusestore.align.stored import Alignment
    from fusestore.cache.reader import Cache
    from fusestore.capture.settings import CaptureSettings
    from fusestore.corpus.corpus import Corpus
    from fusestore.data.fused import Fused
    from fusestore.models.model import Model
    from fusestore.progress import Reporter
    from fusestore.store.details import Details
    from fusestore.store.findings import Finding
    from fusestore.store.registry import Artifact
    from fusestore.workflows.managing.garbage import Garbage, GarbageSettings
    from fusestore.workflows.managing.removal import Removal
    from fusestore.workflows.managing.renaming import Renaming
    from fusestore.workflows.managing.tree import Tree
    from fusestore.workflows.managing.usage import Usage
    from fusestore.workflows.publishing.run import Published
    from fusestore.workflows.publishing.settings import PublishSettings
    from fusestore.workflows.repair import Repair
    from fusestore.workflows.sharing.run import Shared
    from fusestore.workflows.sharing.settings import CopySettings


class StoreContents(Store):
    """The verbs of an open store that make nothing new; `fusestore.api.Store` has the others."""

    def _repr_html_(self) -> str:
        from fusestore.store.artifact_html import store_html

        return store_html(self)

    def artifacts(self) -> list[Artifact]:
        """Everything in the store, in the order in which it is made; only manifests are read.

        Raises:
            NotFoundError: there is no store.
        """
        from fusestore.store.inventory import list_artifacts

        return list_artifacts(self)

    def open_corpus(self, name: str) -> Corpus:
        """A complete corpus.

        Raises:
            NotFoundError: no such corpus, or one that was not finished.
        """
        from fusestore.corpus.corpus import open_corpus

        return open_corpus(self, name)

    def open_cache(self, name: str) -> Cache:
        """A complete distribution cache.

        Raises:
            NotFoundError: no such cache, or one that was not finished.
        """
        from fusestore.cache.reader import open_cache

        return open_cache(self, name)

    def open_alignment(self, name: str) -> Alignment:
        """A complete alignment.

        Raises:
            NotFoundError: no such alignment, or one that was not finished.
        """
        from fusestore.align.stored import open_alignment

        return open_alignment(self.alignment(name))

    def open_fused(self, name: str) -> Fused:
        """The handle of a fused dataset; its `dataset()` is what `fusestore.open_fused` returns.

        Raises:
            NotFoundError: no such fused dataset.
        """
        from fusestore.data.fused import Fused

        fused = Fused(self, self.fused(name))
        _ = fused.plan
        return fused

    def open_model(self, name: str) -> Model:
        """A trained or merged model, or the model that a cache was captured from.

        Raises:
            NotFoundError: the name is that of a cache, and nothing tells where its model is.
            CorruptionError: the artifact's manifest is damaged.
        """
        from fusestore.models.model import Model

        return Model.open(name, store=self)

    def verify(
        self, artifact: str | None = None, *, quick: bool = False
    ) -> dict[str, list[Finding]]:
        """Check checksums, sizes and meanings of one artifact, or of all.

        Args:
            artifact: `kind/name`; None checks everything.
            quick: check sizes, receipts and manifests only; the data are not read.

        Returns:
            What is wrong, by `kind/name`; an empty list for a sound artifact.

        Raises:
            NotFoundError: no such store or artifact.
        """
        from fusestore.workflows.verification import verify_store

        return verify_store(self, artifact, quick=quick)

    def repair(
        self,
        artifact: str | None = None,
        *,
        models: Sequence[str] = (),
        settings: CaptureSettings | None = None,
        reporter: Reporter | None = None,
    ) -> dict[str, Repair]:
        """Check one artifact or all of them, and make exactly what is damaged again.

        Args:
            artifact: `kind/name`; None repairs everything.
            models: the models whose distributions or tokens may have to be computed again; they
                are found by digest.
            settings: device, batch size, attention and trust for running them.
            reporter: receives progress updates.

        Returns:
            The artifacts that were damaged, by `kind/name`.

        Raises:
            NotFoundError: no such store, artifact or model.
        """
        from fusestore.workflows.repair import repair_store

        return repair_store(self, artifact, models=models, settings=settings, reporter=reporter)

    def describe(self, artifact: str) -> Details:
        """What `fusestore show` prints: size, dates, model, settings, inputs and users.

        Args:
            artifact: `kind/name`, or the name alone if only one artifact has it.

        Raises:
            NotFoundError: no such store or artifact.
            InvalidInputError: several artifacts have the name.
            CorruptionError: its manifest is damaged.
        """
        from fusestore.store.details import artifact_details

        return artifact_details(self, artifact)

    def tree(self, artifact: str | None = None) -> Tree:
        """What each artifact was made from, and what was made from it; only manifests are read.

        Args:
            artifact: show only its lineage: `kind/name`, or the name alone if only one has it.

        Raises:
            NotFoundError: no such store or artifact.
            InvalidInputError: several artifacts have the name.
        """
        from fusestore.workflows.managing.tree import store_tree

        return store_tree(self, artifact)

    def usage(self, artifact: str | None = None) -> Usage:
        """Bytes, files and dates of each artifact, or of the parts of one, from one listing.

        Args:
            artifact: `kind/name`, or the name alone if only one artifact has it; None for all.

        Raises:
            NotFoundError: no such store or artifact.
            InvalidInputError: several artifacts have the name.
        """
        from fusestore.workflows.managing.usage import store_usage

        return store_usage(self, artifact)

    def remove(self, *artifacts: str, cascade: bool = False, dry_run: bool = False) -> Removal:
        """Remove artifacts; the manifest goes first, so that a rest is never taken for whole.

        Args:
            *artifacts: `kind/name` of each, or the name alone if only one artifact has it.
            cascade: also remove everything that was made from them, directly or not.
            dry_run: only find out what would be removed.

        Raises:
            NotFoundError: no such store or artifact.
            InvalidInputError: something was made from one of them that would stay, or a process
                writes one of them. Nothing was removed.
            AccessDeniedError, StorageError: the storage failed; the same call continues.
        """
        from fusestore.workflows.managing.removal import remove_artifacts

        return remove_artifacts(self, artifacts, cascade=cascade, dry_run=dry_run)

    def rename(self, artifact: str, name: str, *, reporter: Reporter | None = None) -> Renaming:
        """Give an artifact another name; what was made from it stays valid.

        In a folder of this machine this is one step. On other storage the artifact is copied, its
        manifest last, and then the old one is removed, its manifest first.

        Args:
            artifact: `kind/name`, or the name alone if only one artifact has it.
            name: the new name.
            reporter: receives the progress of a copy.

        Raises:
            NotFoundError: no such store or artifact.
            AlreadyExistsError: there is an artifact of the new name. Nothing was changed.
            InvalidInputError: an impossible name, a kind whose names say what an artifact is, a
                process that writes it, or an unfinished artifact on remote storage.
            CorruptionError: it is damaged. The old artifact is as it was.
            AccessDeniedError, StorageError: the storage failed; the same call continues.
        """
        from fusestore.workflows.managing.renaming import rename_artifact

        return rename_artifact(self, artifact, name, reporter)

    def collect_garbage(
        self, settings: GarbageSettings | None = None, *, dry_run: bool = False
    ) -> Garbage:
        """Remove what nothing in the store can use; see `fusestore gc --help`.

        Args:
            settings: what is left alone; the defaults unless given.
            dry_run: only find out what would be removed.

        Raises:
            NotFoundError: there is no store.
            AccessDeniedError, StorageError: the storage failed; the same call continues.
        """
        from fusestore.workflows.managing.garbage import collect_garbage

        return collect_garbage(self, settings, dry_run=dry_run)

    def push(
        self,
        target: str | os.PathLike[str] | Store,
        artifacts: Sequence[str] | None = None,
        settings: CopySettings | None = None,
        *,
        reporter: Reporter | None = None,
        dry_run: bool = False,
    ) -> list[Shared]:
        """Copy artifacts to another store: only what is missing, every byte checked.

        Args:
            target: the other store.
            artifacts: `kind/name` of each; None copies all that are complete.
            settings: inputs and checks; the defaults unless given.
            reporter: receives progress updates.
            dry_run: only find out what would be copied.

        Raises:
            NotFoundError: no such artifact here.
            AlreadyExistsError: the other store has something else of this name.
            InvalidInputError: both stores are the same.
            CorruptionError: a file is not what its receipt says; what is sound was copied.
        """
        from fusestore.workflows.sharing import copy_artifacts

        return copy_artifacts(
            self, Store.open(target), artifacts, settings, reporter, dry_run=dry_run
        )

    def pull(
        self,
        source: str | os.PathLike[str] | Store,
        artifacts: Sequence[str] | None = None,
        settings: CopySettings | None = None,
        *,
        reporter: Reporter | None = None,
        dry_run: bool = False,
    ) -> list[Shared]:
        """Copy artifacts from another store; arguments and errors as for `push`."""
        from fusestore.workflows.sharing import copy_artifacts

        return copy_artifacts(
            Store.open(source), self, artifacts, settings, reporter, dry_run=dry_run
        )

    def publish(
        self,
        target: str | os.PathLike[str],
        artifacts: Sequence[str] | None = None,
        settings: PublishSettings | None = None,
        *,
        storage_options: Mapping[str, object] | None = None,
        reporter: Reporter | None = None,
        dry_run: bool = False,
    ) -> Published:
        """Publish artifacts with a card that says what they are; see `fusestore publish --help`.

        Args:
            target: `hf://datasets/OWNER/NAME`, `hf://OWNER/NAME` for one model, or a store.
            artifacts: `kind/name` of each; None publishes all that are complete.
            settings: what goes along, and what the card says; the defaults unless given.
            storage_options: of the target's storage, such as `token` of the Hub.
            reporter: receives progress updates.
            dry_run: only find out what would be sent, and make the card.

        Raises:
            NotFoundError: no such artifact here.
            AlreadyExistsError: the target has something else of this name.
            InvalidInputError: a target of another form, or a model repository for something else.
            CorruptionError: a file is not what its receipt says.
            AccessDeniedError, StorageError: the storage failed; the same call continues.
        """
        from fusestore.storage.location import Location
        from fusestore.workflows.publishing.run import publish_artifacts

        return publish_artifacts(
            self,
            artifacts,
            Location.parse(target, storage_options),
            settings,
            reporter,
            dry_run=dry_run,
        )

    def sync(
        self,
        other: str | os.PathLike[str] | Store,
        artifacts: Sequence[str] | None = None,
        settings: CopySettings | None = None,
        *,
        reporter: Reporter | None = None,
        dry_run: bool = False,
    ) -> list[Shared]:
        """Give each of two stores the complete artifacts that only the other one has.

        Arguments and errors as for `push`.
        """
        from fusestore.workflows.sharing import sync_stores

        return sync_stores(self, Store.open(other), artifacts, settings, reporter, dry_run=dry_run)
