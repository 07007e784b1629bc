"""A power cut at any operation loses work, and never what a manifest says is there.

Every stage runs once and is recorded; then each state that POSIX allows after a cut at each
operation is looked at: see `tests/helpers/power_cut.py`.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from fusestore.storage.replace import created_folder, replaced_folder, whole_folder
from fusestore.store.inventory import list_artifacts
from fusestore.store.layout import Store
from fusestore.workflows.managing.garbage import GarbageSettings, collect_garbage
from fusestore.workflows.managing.removal import remove_artifacts
from fusestore.workflows.managing.renaming import rename_artifact
from fusestore.workflows.repair import repair_store
from fusestore.workflows.verification import verify_store
from tests.helpers.disk_operations import Killed, Operation, watched
from tests.helpers.power_cut import Files, cuts
from tests.helpers.small_fusion import SmallFusion, files_below, push, write_files
from tests.helpers.some_cases import some

Action = Callable[[Store], object]

STAGES = ("corpus/c", "cache/own", "cache/other", "alignment/a", "fused/f")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums over several threads round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def fusion(tmp_path_factory: pytest.TempPathFactory) -> SmallFusion:
    return SmallFusion.make(tmp_path_factory.mktemp("fusion"))


def record(root: Path, action: Action, kill_at: int | None = None) -> list[Operation]:
    """What an action does to the store at `root`; if it is killed first, with its second try."""
    operations: list[Operation] = []
    if kill_at is not None:
        with pytest.raises(Killed), watched(root, kill_at=kill_at) as watch:
            action(Store.open(root))
        operations += watch.operations
    with watched(root) as watch:
        action(Store.open(root))
    return operations + watch.operations


@cache
def sealed(fusion: SmallFusion) -> dict[bytes, Files]:
    """The files of each artifact by the bytes of its manifest; tokens are sealed by themselves."""
    wholes = map(fusion.expected, fusion.artifacts)
    return {
        whole["manifest.json"]: {n: d for n, d in whole.items() if not n.startswith("tokens/")}
        for whole in wholes
    }


@cache
def digests_in(document: bytes) -> dict[str, str]:
    """SHA-256 of each file that a receipt or manifest lists."""
    return {file: record["sha256"] for file, record in json.loads(document)["files"].items()}


@cache
def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def untrue(files: Files, fusion: SmallFusion, *, killed: bool = False) -> list[str]:
    """What documents of a store say that is not so: empty after every cut.

    Args:
        files: of the store.
        fusion: what it was made from.
        killed: whether a process was killed before, whose files had durable bytes, but perhaps
            no durable names. Who continues notices that a file of a receipt, or of tokens in an
            unfinished corpus, is missing.
    """
    problems = []
    wholes = sealed(fusion)
    for path, data in files.items():
        folder, _, name = path.rpartition("/")
        artifact = "/".join(path.split("/")[:2])
        if name.startswith(".tmp-"):
            continue
        if name == "manifest.json" and data in wholes:
            for file, expected in wholes[data].items():
                if files.get(f"{folder}/{file}") != expected:
                    problems.append(f"{path} stands without {file}")
        elif name == "manifest.json" or folder.endswith("/receipts"):
            root = folder.removesuffix("/receipts")
            for file, digest in digests_in(data).items():
                found = files.get(f"{root}/{file}")
                if found is None and killed and f"{artifact}/manifest.json" not in files:
                    continue
                if found is None or sha256(found) != digest:
                    problems.append(f"{path} stands without {file}")
    return problems


def check_all_cuts(
    before: Files, operations: list[Operation], fusion: SmallFusion, *, killed: bool = False
) -> list[Files]:
    """Nothing untrue after any cut; returns the states."""
    states = cuts(before, operations, seed=1)
    for number, files in states:
        last = operations[number - 1] if number else None
        assert untrue(files, fusion, killed=killed) == [], f"cut after {number}: {last}"
    return [files for _, files in states]


def check_sound(states: list[Files], folder: Path) -> None:
    """After no cut `verify` finds damage in what is complete: by its names and sizes."""
    differing = {
        frozenset((path, len(data)) for path, data in files.items() if ".tmp-" not in path): files
        for files in states
    }
    for number, files in enumerate(differing.values()):
        store = Store.open(write_files(folder / f"state-{number}", files))
        for artifact in list_artifacts(store):
            if artifact.complete:
                assert verify_store(store, artifact.path, quick=True)[artifact.path] == [], number


def check_resumes(
    states: list[Files], action: Action, after: Files, folder: Path, count: int
) -> None:
    """After some of the cuts the same call ends with the same bytes as if there were none."""
    chance = random.Random(count)  # noqa: S311 - no secret
    for number, files in enumerate(chance.sample(states, min(count, len(states)))):
        store = Store.open(write_files(folder / f"cut-{number}", files))
        action(store)
        found = files_below(store.location.path)
        # Temporary files and leases of processes of this machine may be there for a while.
        left = {p: data for p, data in found.items() if p in after or not _is_passing(p)}
        assert left == {p: data for p, data in after.items() if not _is_passing(p)}


def _is_passing(path: str) -> bool:
    return "/.tmp-" in path or path.startswith(".tmp-") or "/leases/" in path


def stores_before(fusion: SmallFusion) -> dict[str, Files]:
    wholes = [{}, *fusion.stores.values()]
    return dict(zip(STAGES, wholes, strict=False))


@pytest.mark.parametrize("stage", some(STAGES, "corpus/c", "alignment/a"))
def test_a_stage(fusion, stage, tmp_path):
    before = stores_before(fusion)[stage]
    root = write_files(tmp_path / "store", before)
    operations = record(root, fusion.stages[stage])
    states = check_all_cuts(before, operations, fusion)
    assert untrue(states[-1], fusion) == []
    check_sound(states, tmp_path)
    check_resumes(states, fusion.stages[stage], fusion.stores[stage], tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_resumed_after_any_cut(fusion, stage, tmp_path):
    before = stores_before(fusion)[stage]
    root = write_files(tmp_path / "store", before)
    states = check_all_cuts(before, record(root, fusion.stages[stage]), fusion)
    check_resumes(states, fusion.stages[stage], fusion.stores[stage], tmp_path, 6)


# At 95 a file has its name, but the name is not durable yet; at 29 a folder.
@pytest.mark.parametrize(
    ("stage", "operations"),
    [
        ("corpus/c", range(1, 29, 3)),
        ("alignment/a", (29, 95)),
        pytest.param("alignment/a", range(1, 120, 4), marks=pytest.mark.slow),
        pytest.param("cache/own", range(1, 360, 40), marks=pytest.mark.slow),
        pytest.param("fused/f", range(1, 260, 40), marks=pytest.mark.slow),
    ],
)
def test_a_stage_that_continues_what_a_killed_one_left(fusion, stage, operations, tmp_path):
    before = stores_before(fusion)[stage]
    for kill_at in operations:
        root = write_files(tmp_path / f"store-{kill_at}", before)
        recorded = record(root, fusion.stages[stage], kill_at)
        check_all_cuts(before, recorded, fusion, killed=True)


@pytest.mark.parametrize("kill_at", some([None, 60], 60))
def test_a_push(fusion, tmp_path, kill_at):
    source = Store.open(write_files(tmp_path / "source", fusion.whole))

    def action(target: Store) -> None:
        push(source, target, "fused/f")

    (tmp_path / "target").mkdir()
    operations = record(tmp_path / "target", action, kill_at)
    states = check_all_cuts({}, operations, fusion, killed=kill_at is not None)
    check_resumes(states, action, fusion.whole, tmp_path, 2)


def test_a_rename(fusion, tmp_path):
    root = write_files(tmp_path / "store", fusion.whole)
    operations = record(root, lambda store: rename_artifact(store, "fused/f", "g"))
    states = check_all_cuts(fusion.whole, operations, fusion)
    renamed = {path.replace("fused/f/", "fused/g/"): data for path, data in fusion.whole.items()}
    assert all(state in (fusion.whole, renamed) for state in states)


@pytest.mark.parametrize("named", some(["fused/f", "cache/other"], "fused/f"))
def test_a_removal(fusion, tmp_path, named):
    root = write_files(tmp_path / "store", fusion.whole)

    def action(store: Store) -> None:
        if any(artifact.path == named for artifact in list_artifacts(store)):
            remove_artifacts(store, [named], cascade=True)

    states = check_all_cuts(fusion.whole, record(root, action), fusion)
    for files in states[:: len(states) // 4]:
        store = Store.open(write_files(tmp_path / f"cut-{states.index(files)}", files))
        action(store)
        assert named not in [artifact.path for artifact in list_artifacts(store)]


def test_garbage(fusion, tmp_path):
    before = {
        path: data
        for path, data in fusion.whole.items()
        if path.startswith(("corpora/", "vocabular"))
    }
    root = write_files(tmp_path / "store", before)
    settings = GarbageSettings(older_than=0)
    operations = record(root, lambda store: collect_garbage(store, settings))
    states = check_all_cuts(before, operations, fusion)
    assert {path.partition("/")[0] for path in states[-1]} <= {"corpora", "vocabularies"}


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["fused/f/tail/c/0", "alignments/a/kind/c/0"])
def test_a_repair(fusion, tmp_path, damaged):
    """What is damaged before may be damaged after a cut; all else is as it was or is said so."""
    before = {**fusion.whole, damaged: fusion.whole[damaged][:-1]}
    root = write_files(tmp_path / "store", before)

    def action(store: Store) -> None:
        repairs = repair_store(store, models=fusion.specs)
        assert [repair.problem for repair in repairs.values() if repair.problem] == []
        fusion.align(store)
        fusion.fuse(store)

    states = [files for _, files in cuts(before, record(root, action), seed=1)]
    chance = random.Random(0)  # noqa: S311 - no secret
    for number, files in enumerate(chance.sample(states, 3)):
        store = Store.open(write_files(tmp_path / f"cut-{number}", files))
        action(store)
        for path, data in fusion.whole.items():
            assert (store.location / path).read_bytes() == data, path


def test_a_replaced_folder_is_the_old_one_or_the_new_one(tmp_path):
    """As checkpoints are; the first one brings its folder with it."""
    root = tmp_path / "root"
    root.mkdir()
    folder = root / "runs" / "demo" / "checkpoint"

    def write(content: str) -> list[Operation]:
        with watched(root) as watch, replaced_folder(folder) as temporary:
            for name in ("weights", "state"):
                (temporary / name).write_text(content)
        return watch.operations

    before: Files = {}
    for content in ("first", "second", "third"):
        after = {f"runs/demo/checkpoint/{n}": content.encode() for n in ("weights", "state")}
        states = [files for _, files in cuts(before, write(content), seed=1)]
        for number, files in enumerate(states):
            cut = write_files(tmp_path / f"{content}-{number}", files)
            found = whole_folder(cut / "runs" / "demo" / "checkpoint")
            kept = None if found is None else set(files_below(found).values())
            assert kept in ([None] if content == "first" else []) or (
                kept in ({data} for data in (*before.values(), *after.values()))
            ), (number, files)
        assert {n: d for n, d in states[-1].items() if ".tmp-" not in n} == after
        before = after


def test_a_created_folder_is_whole(tmp_path):
    """As converted models are: whoever finds the folder asks no more."""
    folder = tmp_path / "models" / "demo"
    with watched(tmp_path) as watch, created_folder(folder) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "weights").write_text("all of them")
        (temporary / "inner" / "template").write_text("text")
    after = {"models/demo/weights": b"all of them", "models/demo/inner/template": b"text"}
    states = [files for _, files in cuts({}, watch.operations, seed=1)]
    for files in states:
        found = {path: data for path, data in files.items() if path.startswith("models/demo/")}
        assert found in ({}, after)
    assert states[-1] == after
