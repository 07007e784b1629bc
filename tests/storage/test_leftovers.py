"""What a killed process leaves of unfinished files is gone when its work is done again.

`test_failing_writes.py` kills whole commands; here is what they write outside of stores.
"""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fusestore.data.shard_cache.cache_folder import ShardFolder
from fusestore.storage.location import Location
from fusestore.storage.publish import (
    ABANDONED_AFTER_S,
    publish_beside,
    publish_chunks,
    remove_abandoned_in,
)
from fusestore.storage.replace import (
    created_folder,
    replaced_file,
    replaced_folder,
    scratch_folder,
)
from fusestore.tokenizers.manifest import VocabularyFingerprint
from fusestore.train.student.model_folder import publish_folder
from tests.helpers.fork_server import python

KILLED = "import os, signal, sys; sys.path.insert(0, {root!r}); import {module} as tests; "
KILLED += "tests.WORKS[{name!r}](tests.Path({folder!r}), tests.die)"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _beside(folder: Path, during: Callable[[], object]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # Between writing and renaming.
        patch.setattr(os, "fsync", lambda _: during())
        publish_beside(Location.parse(folder / "page.html"), b"page")


def _joined(folder: Path, during: Callable[[], object]) -> None:
    def chunks():
        yield b"first"
        during()
        yield b"second"

    remove_abandoned_in(folder)
    publish_chunks(Location.parse(folder / "whole.gguf"), chunks())


def _converted(folder: Path, during: Callable[[], object]) -> None:
    with created_folder(folder / "model-of-a-package") as temporary:
        (temporary / "config.json").write_text("{}")
        during()


def _scratch(folder: Path, during: Callable[[], object]) -> None:
    with scratch_folder("merge", folder) as temporary:
        (temporary / "large").write_bytes(bytes(1000))
        during()


def _checkpoint(folder: Path, during: Callable[[], object]) -> None:
    with replaced_folder(folder / "checkpoint") as temporary:
        (temporary / "state.json").write_text("{}")
        during()


def _log(folder: Path, during: Callable[[], object]) -> None:
    with replaced_file(folder / "events") as temporary:
        temporary.write_bytes(b"events")
        during()


def _fetched(folder: Path, during: Callable[[], object]) -> None:
    shards = ShardFolder(folder, "dataset", 100, None)
    shards.remove_unfinished()
    # Another shard than the one that was under way before.
    number = 1 if (folder / "dataset").exists() else 0
    with shards.create(number) as file:
        assert file is not None
        shards.reserve(file, ())
        during()
        shards.publish(number)


def _model(folder: Path, during: Callable[[], object]) -> None:
    (folder / "files").mkdir(exist_ok=True)
    (folder / "files/config.json").write_text("{}")
    plan = VocabularyFingerprint(tokenizer_digest="0" * 64)
    with pytest.MonkeyPatch.context() as patch:
        # Not while the folder is made.
        patch.setattr(os, "fsync", lambda _: during() if unfinished(folder) else None)
        publish_folder(folder / "files", Location.parse(folder / "model"), plan)


WORKS = {
    "a model": _model,
    "a page": _beside,
    "a joined file": _joined,
    "a converted model": _converted,
    "a folder of temporary files": _scratch,
    "a checkpoint": _checkpoint,
    "a log": _log,
    "a fetched shard": _fetched,
}


def unfinished(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.startswith(".tmp-")]


@pytest.mark.parametrize("name", WORKS)
def test_a_second_try_leaves_nothing_of_the_first(tmp_path: Path, name: str) -> None:
    program = KILLED.format(
        root=str(Path(__file__).parents[2]), module=__name__, name=name, folder=str(tmp_path)
    )
    done = subprocess.run([python(), "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    assert unfinished(tmp_path)
    WORKS[name](tmp_path, lambda: None)
    assert not unfinished(tmp_path)
    assert any(tmp_path.iterdir()) == (name != "a folder of temporary files")


def test_what_others_are_making_stays(tmp_path: Path) -> None:
    own = tmp_path / f".tmp-fusestore-merge-{'0' * 12}-1-{'a' * 8}"
    own.mkdir()
    remove_abandoned_in(tmp_path)
    assert own.exists()
    # A day later by the clock of the disk, whatever this machine's says.
    old = own.stat().st_mtime - ABANDONED_AFTER_S - 60
    os.utime(own, (old, old))
    remove_abandoned_in(tmp_path)
    assert not own.exists()
