"""A store under everything that people and machines do to it, in any order.

Hypothesis chooses stages, kills at a random operation of the disk, damage, repairs, copies,
renames, removals and clearing up. A model says what must be readable: every byte of it is known
beforehand, because a fusion that nobody disturbed was made first.

    python -m tests.store.state_machine --examples 200 --seed 1

runs it for longer and prints how often each step was made, and how it ended.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from fusestore.align.stored import open_alignment
from fusestore.align.vocabulary.stored_map import load_vocabulary_map
from fusestore.cache.reader import open_cache
from fusestore.corpus.corpus import open_corpus
from fusestore.data import FusedDataset, StreamingFusedDataset
from fusestore.errors import FusestoreError
from fusestore.fuse.shared import pack_fused
from fusestore.storage.location import Location
from fusestore.store.inventory import describe, list_artifacts
from fusestore.store.layout import Store
from fusestore.store.lineage import Lineage
from fusestore.store.registry import Artifact
from fusestore.tokenizers.vocabulary_table import load_vocabulary
from fusestore.workflows.managing.garbage import GarbageSettings, collect_garbage
from fusestore.workflows.managing.removal import remove_artifacts
from fusestore.workflows.managing.renaming import rename_artifact
from fusestore.workflows.repair import repair_store
from fusestore.workflows.sharing import CopySettings, copy_artifacts
from fusestore.workflows.verification import verify_store
from tests.helpers.disk_operations import Killed, watched
from tests.helpers.small_fusion import SmallFusion, files_below, write_files

End = Literal["done", "refused", "killed"]
Numbers = list[npt.NDArray[Any]]

ON_DEMAND = ("vocabulary/", "map/")
STAGES = ("corpus/c", "cache/own", "cache/other", "alignment/a", "fused/f")
NEEDS = {
    "corpus/c": [],
    "cache/own": ["corpus/c"],
    "cache/other": ["corpus/c"],
    "alignment/a": ["corpus/c", "cache/other"],
    "fused/f": ["corpus/c", "cache/own", "cache/other", "alignment/a"],
}

counts: Counter[tuple[str, End]] = Counter()
"""Steps that were made, and how they ended."""

kills = st.one_of(st.none(), st.none(), st.integers(1, 40), st.integers(1, 400))
"""The operation at which the process is killed; None if it is not."""


def numbers(store: Store, path: str) -> Numbers:
    """What a reader gets of a finished artifact.

    Raises:
        FusestoreError: it cannot be read.
    """
    kind, _, name = path.partition("/")
    if kind == "corpus":
        return [np.array(open_corpus(store, name).table()["text"].to_list())]
    if kind == "vocabulary":
        return [np.array(load_vocabulary(store, name).token_bytes)]
    if kind == "map":
        return [load_vocabulary_map(store.location / "vocabulary_maps" / name).target_id]
    if kind == "cache":
        cache = open_cache(store, name)
        rows = cache[:]
        return [rows.ids, rows.logprobs, rows.tail, rows.label_logprob, cache.tokens.token_ids]
    if kind == "alignment":
        alignment = open_alignment(store.alignment(name))
        return list(alignment.for_documents(0, len(alignment.document_offsets) - 1))
    return windows(FusedDataset(store.fused(name).path))


def windows(dataset: Any) -> Numbers:
    """The arrays of every window, in the order of the windows."""
    found = sorted(dataset, key=lambda window: int(window["window"]))
    return [np.asarray(window[name]) for window in found for name in sorted(window)]


def equal(first: Numbers, second: Numbers) -> bool:
    """Whether all numbers are the same; an unknown one is NaN."""
    return len(first) == len(second) and all(
        np.array_equal(one, two, equal_nan=one.dtype.kind == "f")
        for one, two in zip(first, second, strict=True)
    )


class StoreMachine(RuleBasedStateMachine):
    """Two stores, and what must be readable in them.

    Attributes:
        fusion: what an undisturbed run makes.
        read: what a reader gets of each artifact of it.
        roots: folder of each store.
        whole: of each store the finished artifacts, with the artifact of the reference that each
            is equal to.
        origins: of each store the artifact of the reference that each name stands for, also after
            a removal, which a repair may undo if it was interrupted.
        damaged: of each store the artifacts that were damaged since.
    """

    fusion: ClassVar[SmallFusion]
    read: ClassVar[dict[str, Numbers]]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="stores-", dir=self.fusion.folder))
        self.history: list[str] = []
        self.roots = [self.folder / "first", self.folder / "second"]
        for root in self.roots:
            root.mkdir()
        self.whole: list[dict[str, str]] = [{}, {}]
        self.origins = [{path: path for path in self.fusion.artifacts} for _ in self.roots]
        self.damaged: list[set[str]] = [set(), set()]
        self.touched: set[tuple[int, str]] = set()
        self.listed: list[dict[str, Artifact]] = [{}, {}]

    def teardown(self) -> None:
        note("\n".join(self.history))
        self.touched = {(at, path) for at, whole in enumerate(self.whole) for path in whole}
        self.what_is_finished_reads_back()
        shutil.rmtree(self.folder)

    def store(self, at: int) -> Store:
        return Store.open(self.roots[at])

    # What a step does.

    def act(
        self,
        step: str,
        at: int,
        action: Callable[[], object],
        *,
        makes: dict[str, str] | None = None,
        loses: Iterable[str] = (),
        kill_at: int | None = None,
        surely: bool = False,
    ) -> End:
        """Do something to a store, perhaps in a process that is killed, and compare.

        Args:
            step: what it is called in `counts`.
            at: the store that it changes.
            action: what is done.
            makes: what is finished afterwards, as in `whole`.
            loses: artifacts that need not be finished afterwards.
            kill_at: the operation at which it is killed.
            surely: whether there is no reason to refuse.
        """
        end: End = "done"
        refused = ""
        try:
            if kill_at is None:
                action()
            else:
                with watched(self.roots[at], kill_at=kill_at):
                    action()
        except Killed:
            end = "killed"
        except FusestoreError as error:
            end = "refused"
            self.history.append(str(error)[:300])
            refused = f"{step} refused: {error}"
        assert not (refused and surely) or any(self.damaged), refused
        counts[step, end] += 1
        self.history.append(f"{step} {end}" + ("" if kill_at is None else f" at {kill_at}"))
        self.compare(step, at, end, makes or {}, set(loses))
        return end

    def compare(self, step: str, at: int, end: End, makes: dict[str, str], loses: set[str]) -> None:
        """The model after a step: what the store says, if that is what it may say."""
        listed = self.listed[at] = self.artifacts(at)
        complete = {path for path, each in listed.items() if each.complete}
        before = self.whole[at]
        if end == "done":
            missing = makes.keys() - complete - self.damaged[at]
            assert not missing, f"{step} was done without {missing}"
        lost = before.keys() - complete - loses - self.damaged[at]
        assert not lost, f"{step} {end} lost {lost}"
        self.origins[at] |= makes
        self.whole[at] = {path: self.origins[at][path] for path in complete}
        self.touched |= {(at, path) for path in complete & (makes.keys() | loses)}
        self.damaged[at] &= listed.keys()
        found = files_below(self.roots[at])
        for path in complete:
            differing = self.differing(at, path, found)
            if path not in self.damaged[at]:
                assert differing == [], f"{path} differs after {step} {end}"
            elif differing == []:
                self.damaged[at].discard(path)

    def artifacts(self, at: int) -> dict[str, Artifact]:
        """The artifacts of a store by `kind/name`."""
        if not any(self.roots[at].iterdir()):
            return {}
        return {each.path: each for each in list_artifacts(self.store(at))}

    def folder_of(self, at: int, path: str) -> str:
        """An artifact's folder below its store."""
        kind, _, _ = self.fusion.artifacts[self.whole[at][path]].partition("/")
        return f"{kind}/{path.partition('/')[2]}"

    def differing(self, at: int, path: str, found: dict[str, bytes]) -> list[str]:
        """The files of an artifact that are not those of the reference."""
        folder = self.folder_of(at, path)
        return [
            name
            for name, data in self.expected(at, path, found).items()
            if found.get(f"{folder}/{name}") != data
        ]

    def expected(self, at: int, path: str, found: dict[str, bytes]) -> dict[str, bytes]:
        """The files of an artifact; tokens are made when they are needed."""
        folder = self.folder_of(at, path)
        return {
            name: data
            for name, data in self.fusion.expected(self.whole[at][path]).items()
            if not name.startswith("tokens/")
            or f"{folder}/{'/'.join(name.split('/')[:2])}/manifest.json" in found
        }

    def finished(self, at: int, paths: Iterable[str]) -> bool:
        """Whether artifacts are there, undamaged."""
        return all(path in self.whole[at] and path not in self.damaged[at] for path in paths)

    def named(self, at: int, origin: str) -> str:
        """What the artifact of the reference is called now."""
        return next((path for path, like in self.whole[at].items() if like == origin), origin)

    def users(self, at: int, path: str) -> set[str]:
        lineage = Lineage.of(self.store(at))
        (found,) = (each for each in lineage.artifacts if each.path == path)
        return {each.path for each in lineage.broken_without({path: found})}

    # The steps.

    @initialize(stage=st.sampled_from(["fused/f", "fused/f", "cache/own", "alignment/a", None]))
    def begin(self, stage: str | None) -> None:
        """With the store that was made up to a stage."""
        if stage is not None:
            write_files(self.roots[0], self.fusion.stores[stage])
            self.compare("begin", 0, "done", {}, set())

    @rule(stage=st.sampled_from(STAGES), kill_at=kills)
    def make(self, stage: str, kill_at: int | None) -> None:
        """A stage, from the beginning or where an earlier one ended."""
        needs = NEEDS[stage]
        if not all(need in self.whole[0] for need in needs):
            if not self.listed[0]:
                return
            kill_at = None
        makes = {stage: stage}
        self.act(
            f"make {stage}",
            0,
            lambda: self.fusion.stages[stage](self.store(0)),
            makes=makes,
            kill_at=kill_at,
            surely=self.finished(0, needs),
        )

    @rule(kill_at=kills)
    def begin_fusing(self, kill_at: int | None) -> None:
        """The definition of a fused dataset alone."""
        if self.finished(0, NEEDS["fused/f"]):
            action = lambda: self.fusion.begin_fusing(self.store(0))  # noqa: E731
            self.act("begin fused/f", 0, action, kill_at=kill_at, surely=True)

    @rule(at=st.sampled_from([0, 1]))
    def verify(self, at: int) -> None:
        """Says exactly what is damaged."""
        if not self.listed[at]:
            return
        found = verify_store(self.store(at))
        counts["verify", "done"] += 1
        for path, findings in found.items():
            # Unfinished tokens of a corpus count as missing ones.
            files = [f"{each.file} {each.problem}" for each in findings]
            files = [file for file in files if not file.startswith("tokens/")]
            if path in self.whole[at]:
                sound = path not in self.damaged[at]
                assert bool(findings if not sound else files) != sound, (path, files)

    @rule(data=st.data(), at=st.sampled_from([0, 1]))
    def damage(self, data: st.DataObject, at: int) -> None:
        """A file of a finished artifact is changed, cut or lost: verify and readers tell."""
        paths = sorted(self.whole[at].keys() - self.damaged[at])
        if not paths:
            return
        path = data.draw(st.sampled_from(paths), "artifact")
        folder = self.roots[at] / self.folder_of(at, path)
        names = sorted(self.expected(at, path, files_below(self.roots[at])))
        file = folder / data.draw(st.sampled_from(names), "file")
        content = file.read_bytes()
        how = data.draw(st.sampled_from(["flip", "cut", "delete"]), "damage")
        if how == "delete":
            file.unlink()
        elif how == "cut":
            file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1), "length")])
        else:
            place = data.draw(st.integers(0, 8 * len(content) - 1), "bit")
            changed = bytearray(content)
            changed[place // 8] ^= 1 << place % 8
            file.write_bytes(changed)
        counts[f"damage: {how}", "done"] += 1
        self.damaged[at].add(path)
        self.history.append(f"damage: {how} {file.relative_to(self.folder)}")
        self.listed[at] = self.artifacts(at)
        if self.listed[at][path].complete:
            assert verify_store(self.store(at), path)[path], f"verify missed {file}"
        try:
            read = numbers(self.store(at), path)
        except FusestoreError:
            return
        assert equal(read, self.read[self.whole[at][path]]), f"{path} reads other numbers"

    @rule(at=st.sampled_from([0, 1]), kill_at=kills)
    def repair(self, at: int, kill_at: int | None) -> None:
        """Mends what it can, and says of all else why not."""
        if not self.listed[at]:
            return
        repaired: dict[str, Any] = {}
        store = self.store(at)

        def action() -> None:
            repaired.update(repair_store(store, models=self.fusion.specs))

        before = set(self.damaged[at])
        end = self.act("repair", at, action, kill_at=kill_at, loses=before)
        for path in before & self.listed[at].keys() if end == "done" else ():
            if path in self.damaged[at] and self.listed[at][path].complete:
                assert repaired[path].problem, f"{path} is said to be repaired"
                self.history.append(f"not repaired: {path}: {repaired[path].problem}")
                counts[f"not repaired: {path.partition('/')[0]}", "refused"] += 1

    @rule(
        ends=st.sampled_from([(0, 1), (1, 0)]),
        stage=st.sampled_from(STAGES),
        check=st.booleans(),
        kill_at=kills,
    )
    def push(self, ends: tuple[int, int], stage: str, check: bool, kill_at: int | None) -> None:
        """Copy an artifact and its inputs to the other store."""
        source, target = ends
        path = self.named(source, stage)
        if path not in self.whole[source]:
            return
        if not self.may_copy(source, target):
            return
        self.act(
            "push" if source == 0 else "pull",
            target,
            lambda: copy_artifacts(
                self.store(source),
                self.store(target),
                [path],
                CopySettings(inputs=True, check=check, jobs=2),
            ),
            makes={path: stage},
            kill_at=kill_at,
        )

    def may_copy(self, source: int, target: int) -> bool:
        """Whether both stores have the same names for their artifacts, which a copy keeps."""
        both = self.whole[source].keys() & self.whole[target].keys()
        names = all(self.whole[source][name] == self.whole[target][name] for name in both)
        return names and self.whole[source].keys() <= self.fusion.artifacts.keys()

    @rule(stage=st.sampled_from(STAGES[1:]), kill_at=kills)
    def rename(self, stage: str, kill_at: int | None) -> None:
        """To another name, or back."""
        path = self.named(0, stage)
        if not self.finished(0, [path]):
            return
        new = stage if path != stage else f"{stage}-2"
        end = self.act(
            "mv",
            0,
            lambda: rename_artifact(self.store(0), path, new),
            makes={new: stage},
            loses=[path],
            kill_at=kill_at,
            surely=new not in self.listed[0],
        )
        if end == "done":
            assert path not in self.whole[0]
        assert path in self.whole[0] or new in self.whole[0]

    @rule(at=st.sampled_from([0, 1]), stage=st.sampled_from(STAGES), kill_at=kills)
    def remove(self, at: int, stage: str, kill_at: int | None) -> None:
        """With everything that was made from it."""
        path = self.named(at, stage)
        if path not in self.listed[at]:
            return
        gone = {path, *self.users(at, path)}
        end = self.act(
            "rm",
            at,
            lambda: remove_artifacts(self.store(at), [path], cascade=True),
            loses=gone,
            kill_at=kill_at,
            surely=True,
        )
        assert end != "done" or not gone & self.whole[at].keys()

    @rule(at=st.sampled_from([0, 1]), unfinished=st.booleans(), kill_at=kills)
    def clear_up(self, at: int, unfinished: bool, kill_at: int | None) -> None:
        """Nothing that is used goes, and nothing temporary stays."""
        if not self.listed[at]:
            return
        lineage = Lineage.of(self.store(at))
        unused = {
            each.path
            for each in lineage.artifacts
            if each.path.startswith(ON_DEMAND)
            and not [user for user in lineage.used_by(each) if not user.path.startswith(ON_DEMAND)]
        }
        end = self.act(
            "gc",
            at,
            lambda: collect_garbage(
                self.store(at),
                GarbageSettings(older_than=0, unfinished_older_than=0 if unfinished else None),
            ),
            loses=unused,
            kill_at=kill_at,
            surely=True,
        )
        if end == "done":
            left = [path for path in files_below(self.roots[at]) if "/.tmp-" in f"/{path}"]
            assert left == [], f"gc left {left}"
            begun = [each for each in self.listed[at].values() if not each.complete]
            if unfinished:
                assert all(each.kind.usable_unfinished for each in begun)

    @rule(limited=st.booleans(), kill_at=kills, data=st.data())
    def stream(self, limited: bool, kill_at: int | None, data: st.DataObject) -> None:
        """The shared form on its way to a loader; shards are evicted, and damaged, in between."""
        path = self.named(0, "fused/f")
        if not self.finished(0, [path]):
            return
        source = Location.parse(self.store(0).location.path / "fused" / path.partition("/")[2])
        target = Location.parse(self.folder / "shared.store" / "fused" / "f")
        target.path.mkdir(parents=True, exist_ok=True)
        try:
            with watched(target.path, kill_at=kill_at):
                pack_fused(source, target)
        except Killed:
            counts["share", "killed"] += 1
            return
        counts["share", "done"] += 1
        cache = self.folder / "fetched"
        cache.mkdir(mode=0o700, exist_ok=True)
        for shard in sorted(file for file in cache.rglob("0*") if file.is_file()):
            if data.draw(st.booleans(), "spoil"):
                shard.write_bytes(bytes(shard.stat().st_size // 2))
        dataset = StreamingFusedDataset(
            f"local://{target.path}", cache_dir=cache, shuffle_span=None if not limited else 1
        )
        read = windows(dataset)
        assert equal(read, self.read["fused/f"]), "a stream gave other numbers"
        counts["stream", "done"] += 1
        if limited:
            shutil.rmtree(cache)

    @rule(at=st.sampled_from([0, 1]))
    def look(self, at: int) -> None:
        """What `ls` prints."""
        for artifact in self.artifacts(at).values():
            assert describe(artifact)

    # What holds after each step.

    @invariant()
    def what_is_finished_reads_back(self) -> None:
        """What the last step touched reads back as the very same numbers."""
        for at, path in sorted(self.touched):
            if path in self.whole[at] and path not in self.damaged[at]:
                read = numbers(self.store(at), path)
                assert equal(read, self.read[self.whole[at][path]]), f"{path} in store {at}"
        self.touched = set()

    @invariant()
    def what_is_unfinished_does_not_open(self) -> None:
        """No reader takes it for finished."""
        for at, listed in enumerate(self.listed):
            for artifact in listed.values():
                if artifact.complete or artifact.path in self.damaged[at]:
                    continue
                try:
                    numbers(self.store(at), artifact.path)
                except FusestoreError:
                    continue
                raise AssertionError(f"{artifact.path} opens without a manifest")


def run(fusion: SmallFusion, examples: int, steps: int, choice: int | None = None) -> None:
    """Run the machine.

    Args:
        fusion: what an undisturbed run makes.
        examples: stores that are made and treated.
        steps: most steps of each.
        choice: seed of the choices; None for the same ones in each run.
    """
    reference = Store.open(fusion.folder / "reference")
    _ = fusion.artifacts
    machine = type(
        "Machine",
        (StoreMachine,),
        {"fusion": fusion, "read": {path: numbers(reference, path) for path in fusion.artifacts}},
    )
    if choice is not None:
        machine = seed(choice)(machine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=choice is None,
            database=None,
            # To make a failure shorter takes minutes.
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))  # noqa: S311
    arguments = parser.parse_args()
    sys.stdout.write(f"seed {arguments.seed}\n")
    torch.set_num_threads(1)
    os.fsync = lambda _: None
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FUSESTORE_HOME"] = f"{folder}/home"
        try:
            run(
                SmallFusion.make(Path(folder)),
                arguments.examples,
                arguments.steps,
                arguments.seed,
            )
        finally:
            for (step, end), count in sorted(counts.items()):
                sys.stdout.write(f"{count:7,} {step}: {end}\n")
            sys.stdout.write(f"{sum(counts.values()):7,} steps in all\n")


if __name__ == "__main__":
    main()
