"""`copy_artifacts` and `sync_stores`: copying missing artifacts from one store to another.

A copy is written in the order in which artifacts are made: the fingerprint, data files, each
receipt after its files, the manifest last. So an interrupted copy is an unfinished artifact, which
cannot be opened and can be resumed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Self

from fusestore.errors import CorruptionError, InvalidInputError, StorageError
from fusestore.progress import Progress, ProgressCounter, Reporter, SilentReporter
from fusestore.storage.location import Location
from fusestore.storage.publish import publish_new, remove_abandoned, sync_folders
from fusestore.store.artifact_files import Document
from fusestore.store.artifact_types import Conversion
from fusestore.store.copy import copy_files
from fusestore.store.layout import Store
from fusestore.store.manifest import Frozen, digest_bytes
from fusestore.store.registry import split_path
from fusestore.workflows.sharing.artifacts import folder_of, paths_in, read_artifact, read_manifest
from fusestore.workflows.sharing.closure import with_inputs, with_needed
from fusestore.workflows.sharing.expected import (
    check_expected,
    expected_digests,
    manifest_digest,
)
from fusestore.workflows.sharing.plan import GroupCopy, Plan, plan_copy
from fusestore.workflows.sharing.settings import CopySettings


class Shared(Frozen):
    """The copy of one artifact.

    Attributes:
        artifact: `kind/name`.
        target: the store that was copied to.
        num_files: data files copied; of a dry run, to copy.
        num_bytes: bytes of these files. Those of a fused dataset that is unpacked on its way are
            known after the copy; a dry run counts the files of the source.
        already_there: whether nothing was missing.
        manifest_digest: `checksum` of its manifest (the SHA-256 of its content, not of the file),
            to which others can hold their copies by `--expect`. That of the copy; of a dry run
            that of the source.
    """

    artifact: str
    target: str
    num_files: int
    num_bytes: int
    already_there: bool
    manifest_digest: str


class Copies(Frozen):
    """Copies between stores; what `fusestore push`, `pull` and `sync` print with --json.

    Attributes:
        dry_run: whether nothing was copied.
        artifacts: in the order of the copies.
        num_files: data files copied, or to copy.
        num_bytes: bytes of these files.
    """

    dry_run: bool
    artifacts: tuple[Shared, ...]
    num_files: int
    num_bytes: int

    @classmethod
    def of(cls, shared: Sequence[Shared], *, dry_run: bool) -> Self:
        """The copies with their sums."""
        return cls(
            dry_run=dry_run,
            artifacts=tuple(shared),
            num_files=sum(each.num_files for each in shared),
            num_bytes=sum(each.num_bytes for each in shared),
        )


def copy_artifacts(
    source: Store,
    target: Store,
    names: Sequence[str] | None,
    settings: CopySettings | None = None,
    reporter: Reporter | None = None,
    *,
    dry_run: bool = False,
) -> list[Shared]:
    """Copy artifacts; existing sound files of the target are kept unchanged.

    Args:
        source: the store to copy from.
        target: the store to copy to.
        names: `kind/name` each; None copies every complete artifact.
        settings: inputs and checks; the defaults unless given. A cache's vocabulary is always
            copied.
        reporter: receives progress updates.
        dry_run: only find out what would be copied; nothing is written.

    Returns:
        One entry per artifact, in the order of the copies: inputs first, but fused datasets that
        are unpacked from their shared form into a folder last.

    Raises:
        NotFoundError: an artifact does not exist or is not complete.
        AlreadyExistsError: the target has another artifact of that name; nothing was copied.
        CorruptionError: files of the source are damaged. They were not copied, and their
            artifacts are unfinished at the target; everything else is copied.
        InvalidInputError: source and target are one store.
        AccessDeniedError, StorageError: a storage failed; the same call resumes the copy.
    """
    _check_different(source, target)
    settings, reporter = settings or CopySettings(), reporter or SilentReporter()
    if names is None:
        states = paths_in(source)
        names = [path for path, complete in states.items() if complete]
        _report_unfinished(reporter, source, states)
    copies = _copies(source, target, names, settings)
    return _copy(copies, names, settings, reporter, dry_run)


def sync_stores(
    first: Store,
    second: Store,
    names: Sequence[str] | None = None,
    settings: CopySettings | None = None,
    reporter: Reporter | None = None,
    *,
    dry_run: bool = False,
) -> list[Shared]:
    """Copy to each of two stores the complete artifacts that only the other store has.

    A store that does not exist counts as empty. For the rest see `copy_artifacts`.
    """
    _check_different(first, second)
    settings, reporter = settings or CopySettings(), reporter or SilentReporter()
    states = [paths_in(store) if store.location.exists() else {} for store in (first, second)]
    every = [path for state in states for path in state]
    listed = every if names is None else [_whole_path(name, every) for name in names]
    paths = list(dict.fromkeys(listed))
    if names is None:
        paths = [path for path in paths if any(state.get(path) for state in states)]
        for store, state in zip((first, second), states, strict=True):
            _report_unfinished(reporter, store, state)
    # `read_artifact` raises the error for a path that is complete in neither store.
    back = [path for path in paths if states[1].get(path) and not states[0].get(path)]
    forth = [path for path in paths if path not in back]
    copies = _copies(first, second, forth, settings) + _copies(second, first, back, settings)
    return _copy(copies, paths, settings, reporter, dry_run)


def _copies(
    source: Store, target: Store, paths: Sequence[str], settings: CopySettings
) -> list[tuple[Store, Store, str]]:
    """The artifacts to copy, and before them the inputs that go with them."""
    closure = with_inputs if settings.inputs else with_needed
    return [(source, target, path) for path in closure(source, paths)]


def _whole_path(name: str, paths: Sequence[str]) -> str:
    """`kind/name` of a bare name that one artifact of both stores has; else the name as it is."""
    found = {path for path in paths if path.partition("/")[2] == name}
    return found.pop() if len(found) == 1 else name


def _check_different(source: Store, target: Store) -> None:
    if source.location.url == target.location.url and (
        source.location.storage_options == target.location.storage_options
    ):
        raise InvalidInputError(f"Both stores are {source.location}. Give two different stores.")


def _report_unfinished(reporter: Reporter, store: Store, states: dict[str, bool]) -> None:
    unfinished = [name for name, complete in states.items() if not complete]
    if unfinished:
        reporter.line(f"Unfinished in {store.location} and left out: {', '.join(unfinished)}")


def _copy(
    copies: Sequence[tuple[Store, Store, str]],
    names: Sequence[str],
    settings: CopySettings,
    reporter: Reporter,
    dry_run: bool,
) -> list[Shared]:
    results: list[Shared] = []
    damaged: list[str] = []
    expected = expected_digests(settings.expect, names, [path for _, _, path in copies])
    forms = [_conversion(*copy) for copy in copies]
    manifests = {path: checked_manifest(source, path, expected) for source, _, path in copies}
    plain = [copy for copy, form in zip(copies, forms, strict=True) if form is False]
    with ThreadPoolExecutor(settings.jobs) as pool:
        try:
            with reporter.stage("Comparing", "artifacts") as progress:
                plans = list(_planned(plain, pool, settings.check, expected, progress))
            results = [_shared(target, plan) for target, plan in plans]
            if dry_run:
                return [*results, *_to_convert(copies, forms, manifests)]
            total = sum(plan.num_bytes for _, plan in plans)
            with reporter.stage("Copying", "bytes") as progress:
                progress(0, total)
                counter = ProgressCounter(total, progress)
                for _, plan in plans:
                    # Sound files of a damaged artifact are copied too, for a later copy to resume.
                    damaged += carry_out(plan, pool, counter)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for (_, target, name), form in zip(copies, forms, strict=True):
        if callable(form):
            with reporter.stage(f"Unpacking {name}", "tokens") as progress:
                unpacked = form(progress)
            digest = _check_converted(target, name, manifests[name] if expected else None)
            results.append(_converted(target, name, unpacked.num_files, unpacked.num_bytes, digest))
        elif form is True:
            digest = _check_converted(target, name, manifests[name] if expected else None)
            results.append(_converted(target, name, 0, 0, digest))
    if damaged:
        raise CorruptionError(
            f"{len(damaged)} damaged files were not copied, so their artifacts are unfinished at "
            f"the target: {' '.join(damaged[:5])} Repair the source and run the same command "
            "again, which copies the missing files."
        )
    return results


def _shared(target: Store, plan: Plan) -> Shared:
    return Shared(
        artifact=plan.artifact.path,
        target=str(target.location),
        num_files=len(plan.files),
        num_bytes=plan.num_bytes,
        already_there=plan.is_empty,
        manifest_digest=manifest_digest(plan.artifact.manifest),
    )


def _converted(target: Store, path: str, num_files: int, num_bytes: int, digest: str) -> Shared:
    return Shared(
        artifact=path,
        target=str(target.location),
        num_files=num_files,
        num_bytes=num_bytes,
        already_there=num_files == 0,
        manifest_digest=digest,
    )


def _to_convert(
    copies: Sequence[tuple[Store, Store, str]],
    forms: Sequence[Conversion | bool],
    manifests: Mapping[str, Document],
) -> Iterable[Shared]:
    """What a dry run says of artifacts that are converted: the files of the source."""
    for (source, target, path), form in zip(copies, forms, strict=True):
        digest = manifest_digest(manifests[path])
        if form is True:
            yield _converted(target, path, 0, 0, digest)
        elif form is not False:
            sizes = folder_of(source, path).sizes()
            yield _converted(target, path, len(sizes), sum(sizes.values()), digest)


def checked_manifest(source: Store, path: str, expected: Mapping[str, str]) -> Document:
    """The manifest of an artifact, before anything else of it is read or written."""
    manifest = read_manifest(source, path)
    check_expected(expected, path, manifest, str(source.location))
    return manifest


def _check_converted(target: Store, path: str, source: Document | None) -> str:
    """The digest of a converted artifact's manifest.

    Args:
        target: the store that has it now.
        path: `kind/name`.
        source: the expected manifest that it was converted from; None if none is expected. It
            names the manifest of the other form, in case the storage gave another one meanwhile.

    Raises:
        CorruptionError: the manifest is not the one that the source names.
    """
    manifest = read_manifest(target, path)
    files = {} if source is None else json.loads(source.data).get("files", {})
    names = [file for file in files if file.endswith(f"/{manifest.path}")]
    if source is not None and (
        len(names) != 1 or files[names[0]]["sha256"] != digest_bytes(manifest.data)
    ):
        raise CorruptionError(
            f"{path} in {target.location} is another form of something else than what was "
            "expected. Remove it, and pull again; if it repeats, do not trust the source."
        )
    return manifest_digest(manifest)


def _conversion(source: Store, target: Store, path: str) -> Conversion | bool:
    kind, _ = split_path(path)
    return kind.conversion(folder_of(source, path), folder_of(target, path))


def _planned(
    copies: Sequence[tuple[Store, Store, str]],
    pool: Executor,
    check: bool,
    expected: Mapping[str, str],
    progress: Progress,
) -> Iterable[tuple[Store, Plan]]:
    for done, (source, target, name) in enumerate(copies):
        progress(done, len(copies))
        folder = folder_of(target, name)
        artifact = read_artifact(source, name)
        if expected:
            # The manifest is read again with all else, and a server may answer anew each time.
            check_expected(expected, name, artifact.manifest, str(source.location))
            artifact = split_path(name)[0].held(artifact)
        yield target, plan_copy(artifact, folder, pool, check=check or bool(expected))
    progress(len(copies), len(copies))


def carry_out(plan: Plan, pool: Executor, counter: ProgressCounter) -> list[str]:
    """Copy what a plan says is missing.

    Args:
        plan: of one artifact.
        pool: copies one file each.
        counter: counts the bytes.

    Returns:
        The damage of the source's files; an artifact with damage gets no manifest.

    Raises:
        AlreadyExistsError: another writer made something else there meanwhile.
        AccessDeniedError, StorageError: a storage failed; another plan continues.
    """
    if plan.is_empty:
        return []
    artifact, target = plan.artifact, plan.target
    remove_abandoned(target)
    if plan.fingerprint is not None:
        publish_new(target / plan.fingerprint.path, plan.fingerprint.data)
    group_of = {path: number for number, group in enumerate(plan.groups) for path in group.files}
    missing = [len(group.files) for group in plan.groups]
    for group in plan.groups:
        if not group.files:
            _seal(group, target)
    problems = []
    for path, problem in copy_files(artifact.location, target, plan.files, pool):
        if problem is not None:
            # Its group gets no receipt and the artifact no manifest, so both stay unfinished.
            problems.append(str(problem))
            continue
        counter.add(plan.files[path].num_bytes)
        number = group_of[path]
        missing[number] -= 1
        if missing[number] == 0:
            _seal(plan.groups[number], target)
    if problems:
        return sorted(problems)
    _check_arrival(plan)
    if plan.manifest is not None:
        sync_folders(target)
        publish_new(target / plan.manifest.path, plan.manifest.data)
    return []


def _seal(group: GroupCopy, target: Location) -> None:
    if group.receipt is not None:
        publish_new(target / group.receipt.path, group.receipt.data)


def _check_arrival(plan: Plan) -> None:
    """Check by one listing of the target that every file has the size that was sent."""
    sizes = plan.target.sizes()
    for path, record in plan.files.items():
        if sizes.get(path) != record.num_bytes:
            raise StorageError(
                f"{plan.target / path} should have {record.num_bytes:,} bytes after copying, but "
                f"the storage lists {sizes.get(path)}. Run the same command again; if the error "
                "repeats, find out what else writes to this store."
            )
