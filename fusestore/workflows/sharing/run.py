"""`copy_things` and `sync_stores`: things from one store to another, only what is missing.

A copy appears in the order in which things are made: the claim, data files, each receipt after
its files, the manifest last. So a copy that was cut short is an unfinished thing, cannot be
opened, and goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from fusestore.errors import CorruptionError, InvalidInputError, StorageError
from fusestore.progress import Progress, Reporter, SilentReporter
from fusestore.storage.location import Location
from fusestore.storage.publish import publish_new, remove_abandoned
from fusestore.store.copy import copy_files
from fusestore.store.layout import Store
from fusestore.workflows.sharing.forms import change_of_form
from fusestore.workflows.sharing.inputs import with_inputs, with_vocabularies
from fusestore.workflows.sharing.plan import PartCopy, Plan, plan_copy
from fusestore.workflows.sharing.things import folder_of, names_in, read_thing

DEFAULT_JOBS = 8


@dataclass(frozen=True)
class Shared:
    """What happened to one thing.

    Attributes:
        thing: `kind/name`.
        target: the store it went to.
        num_files: data files copied.
        num_bytes: their bytes.
        already_there: nothing was missing.
    """

    thing: str
    target: str
    num_files: int
    num_bytes: int
    already_there: bool


def copy_things(
    source: Store,
    target: Store,
    names: Sequence[str] | None,
    *,
    inputs: bool = False,
    jobs: int = DEFAULT_JOBS,
    check: bool = False,
    reporter: Reporter | None = None,
) -> list[Shared]:
    """Copy things; what is there already is kept, byte for byte what it was.

    Args:
        source: where they are.
        target: where they go.
        names: `kind/name` each; None copies every complete thing.
        inputs: also copy what they were made from. Caches always bring their vocabulary.
        jobs: files under way at a time.
        check: also read back what the target has, and copy again what is damaged.
        reporter: hears the progress.

    Returns:
        One entry a thing, in the order copied: what things are made from comes first, but fused
        datasets that are unpacked from their shared form into a folder come last.

    Raises:
        NotFoundError: no such thing, or one that is not complete.
        AlreadyExistsError: the target has something else of that name; nothing was copied.
        CorruptionError: files of the source are damaged. They were not copied, and their things
            are unfinished at the target; everything else is copied.
        InvalidInputError: source and target are one store.
        AccessDeniedError, StorageError: the copy goes on where it stopped when it is run again.
    """
    _check_different(source, target)
    reporter = reporter or SilentReporter()
    if names is None:
        states = names_in(source)
        wanted = [name for name, complete in states.items() if complete]
        _say_unfinished(reporter, source, states)
    else:
        wanted = with_inputs(source, list(names)) if inputs else list(names)
    wanted = with_vocabularies(source, wanted)
    return _copy([(source, target, name) for name in wanted], jobs, check, reporter)


def sync_stores(
    one: Store,
    other: Store,
    names: Sequence[str] | None = None,
    *,
    jobs: int = DEFAULT_JOBS,
    check: bool = False,
    reporter: Reporter | None = None,
) -> list[Shared]:
    """Give each of two stores the complete things that only the other one has.

    A store that is not there yet counts as an empty one. For the rest see `copy_things`.
    """
    _check_different(one, other)
    reporter = reporter or SilentReporter()
    states = [_names_or_none(store) for store in (one, other)]
    known = [name for state in states for name in state]
    wanted = list(dict.fromkeys(known if names is None else names))
    if names is None:
        wanted = [name for name in wanted if any(state.get(name) for state in states)]
        for store, state in zip((one, other), states, strict=True):
            _say_unfinished(reporter, store, state)
    # A name that neither has complete is for `read_thing` to explain.
    back = [name for name in wanted if states[1].get(name) and not states[0].get(name)]
    forth = [name for name in wanted if name not in back]
    copies = [(one, other, name) for name in with_vocabularies(one, forth)]
    copies += [(other, one, name) for name in with_vocabularies(other, back)]
    return _copy(copies, jobs, check, reporter)


def _names_or_none(store: Store) -> dict[str, bool]:
    return names_in(store) if store.location.exists() else {}


def _check_different(source: Store, target: Store) -> None:
    if source.location.url == target.location.url and (
        source.location.storage_options == target.location.storage_options
    ):
        raise InvalidInputError(
            f"Both stores are {source.location}: give two different ones to copy between."
        )


def _say_unfinished(reporter: Reporter, store: Store, states: dict[str, bool]) -> None:
    unfinished = [name for name, complete in states.items() if not complete]
    if unfinished:
        reporter.line(f"Unfinished in {store.location} and left out: {', '.join(unfinished)}")


def _copy(
    copies: Sequence[tuple[Store, Store, str]], jobs: int, check: bool, reporter: Reporter
) -> list[Shared]:
    results = []
    damaged: list[str] = []
    forms = [change_of_form(*copy) for copy in copies]
    plain = [copy for copy, form in zip(copies, forms, strict=True) if form is False]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            with reporter.stage("Comparing", "things") as progress:
                plans = list(_planned(plain, pool, check, progress))
            total = sum(plan.num_bytes for _, plan in plans)
            with reporter.stage("Copying", "bytes") as progress:
                counter = _Counter(progress, total)
                for target, plan in plans:
                    # Sound files of a damaged thing are copied too: it goes on from there.
                    damaged += _carry_out(plan, pool, counter)
                    results.append(
                        Shared(
                            plan.thing.name,
                            str(target.location),
                            len(plan.files),
                            plan.num_bytes,
                            plan.is_empty,
                        )
                    )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for (_, target, name), form in zip(copies, forms, strict=True):
        if callable(form):
            with reporter.stage(f"Unpacking {name}", "tokens") as progress:
                manifest = form(progress)
            num_files = len(manifest.files)
            results.append(Shared(name, str(target.location), num_files, manifest.num_bytes, False))
        elif form is True:
            results.append(Shared(name, str(target.location), 0, 0, True))
    if damaged:
        raise CorruptionError(
            f"{len(damaged)} damaged files were not copied, and what they belong to is unfinished "
            f"at the target: {' '.join(damaged[:5])} Repair the source and run this again; it "
            "copies what is missing."
        )
    return results


def _planned(
    copies: Sequence[tuple[Store, Store, str]], pool: Executor, check: bool, progress: Progress
) -> Iterable[tuple[Store, Plan]]:
    for done, (source, target, name) in enumerate(copies):
        progress(done, len(copies))
        folder = folder_of(target, name)
        yield target, plan_copy(read_thing(source, name), folder, pool, check=check)
    progress(len(copies), len(copies))


class _Counter:
    """Bytes done, told to the listener; used by one thread."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total
        progress(0, total)

    def add(self, num_bytes: int) -> None:
        self._done += num_bytes
        self._progress(self._done, self._total)


def _carry_out(plan: Plan, pool: Executor, counter: _Counter) -> list[str]:
    """Copy what a plan says; returns what is wrong with the source's files."""
    if plan.is_empty:
        return []
    thing, target = plan.thing, plan.target
    remove_abandoned(target)
    if plan.claim is not None:
        publish_new(target / plan.claim.path, plan.claim.data)
    part_of = {path: number for number, part in enumerate(plan.parts) for path in part.files}
    missing = [len(part.files) for part in plan.parts]
    for part in plan.parts:
        if not part.files:
            _seal(part, target)
    problems = []
    for path, problem in copy_files(thing.location, target, plan.files, pool):
        if problem is not None:
            # Its part is never sealed, nor is the thing: it stays unfinished at the target.
            problems.append(str(problem))
            continue
        counter.add(plan.files[path].num_bytes)
        number = part_of[path]
        missing[number] -= 1
        if missing[number] == 0:
            _seal(plan.parts[number], target)
    if problems:
        return sorted(problems)
    _check_arrival(plan)
    if plan.manifest is not None:
        publish_new(target / plan.manifest.path, plan.manifest.data)
    return []


def _seal(part: PartCopy, target: Location) -> None:
    if part.seal is not None:
        publish_new(target / part.seal.path, part.seal.data)


def _check_arrival(plan: Plan) -> None:
    """One listing of the target: every file has the size that was sent."""
    sizes = plan.target.sizes()
    for path, record in plan.files.items():
        if sizes.get(path) != record.num_bytes:
            raise StorageError(
                f"{plan.target / path} should have {record.num_bytes:,} bytes after copying, the "
                f"storage lists {sizes.get(path)}. Run the same command again; if that does not "
                "help, something else writes to this store."
            )
