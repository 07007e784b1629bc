"""Commands whose n-th write fails: each ends with what to do, and once there is room, as ever.

    python -m tests.helpers.failing_writes [--stage NAME] [--stride N] [--most N] [--seed N]

For each stage and each n, in a process of its own: the n-th operation that opens a file for
writing, writes, syncs, renames, links, makes a folder or sets a size below the test's folder fails,
as `failing_writes.c` makes the C library say so, or the process is killed there. Then the same
command runs again without faults. Its files must be those of an undisturbed run, and no others.
Prints one line of JSON a stage, with the problems found.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers import fork_server

KEPT = Path(__file__).parents[1] / "kept_store/format-1/store"

KILLED = -1
"""Instead of an error number: the process is killed in front of the operation."""

FAULTS = (
    # Errors that stay until somebody frees space or mounts the disk again, and single ones.
    (errno.ENOSPC, True),
    (errno.EROFS, True),
    (errno.EIO, False),
    (errno.ENOSPC, False),
    (errno.EDQUOT, True),
    (errno.EACCES, False),
    (KILLED, False),
)

LIGHT_MODULES = ("numba", "pydantic", "typer", "rich.console", "zarr.codecs.numcodecs")
HEAVY_MODULES = (*fork_server.MODULES, "tensorboard.compat.proto.event_pb2")
"""What is imported before the forks, by whether a stage needs torch; see `fork_server`."""

FUSE = (
    "fuse --source small --source wide --target small --name new --window-length 64 "
    "--rows-per-shard 96 -s {store}"
)
TRAIN = (
    "train fused --fused mince --name new --precision float32 --max-steps 2 --checkpoint-every 1 "
    "--work-dir {work}/run -s {store}"
)
EXPORT = "export cache/wide {work}/rows -s {store} --format"


@dataclass(frozen=True)
class Stage:
    """A command on a copy of the kept store.

    Attributes:
        command: its arguments; `{store}` is the copy, `{kept}` the original, `{work}` a folder with
            `texts.jsonl` and `rows.npz`.
        without: folders and files of the copy that are removed before.
        needs_torch: whether it imports torch, which takes long.
        removes: whether it takes away or replaces what was there.
        other_bytes: pattern of the paths of files that hold times and the like.
    """

    command: str
    without: tuple[str, ...] = ()
    needs_torch: bool = True
    removes: bool = False
    other_bytes: str = "$."


STAGES = {
    "align": Stage(
        "align wide --target small -s {store}",
        ("alignments/wide--small", "vocabulary_maps/2fc7ebcd56fd74cb-deba6c3979ce4230-prefix"),
        needs_torch=False,
    ),
    "fuse": Stage(f"{FUSE} --strategy em --materialize", ("fits",), needs_torch=False),
    "shared": Stage(f"{FUSE} --shared-to {{work}}/shared", needs_torch=False),
    "report": Stage("report -o {work}/page.html -s {store}", needs_torch=False),
    "export parquet": Stage(f"{EXPORT} parquet", needs_torch=False),
    "export datasets": Stage(f"{EXPORT} datasets", needs_torch=False),
    "export distillkit": Stage(f"{EXPORT} distillkit", needs_torch=False),
    "export mds": Stage(f"{EXPORT} mds", needs_torch=False),
    "export numpy": Stage(f"{EXPORT} numpy", needs_torch=False),
    "export safetensors": Stage(f"{EXPORT} safetensors", needs_torch=False),
    "push": Stage("push fused/mince cache/wide -s {store} --to {work}/other", needs_torch=False),
    "pull": Stage("pull fused/mixed --from {kept} --to {work}/other", needs_torch=False),
    "publish": Stage("publish fused/mince model/fused {work}/other -s {store}", needs_torch=False),
    "mv": Stage("mv cache/patchy new -s {store}", needs_torch=False, removes=True),
    "rm": Stage("rm fused/mince --cascade --yes -s {store}", needs_torch=False, removes=True),
    "gc": Stage(
        "gc --older-than 0 -s {store}",
        ("alignments/drawn--small", "alignments/wide--small", "fused/mixed"),
        needs_torch=False,
        removes=True,
    ),
    # Killed behind the last receipt it leaves a sound dataset, and the lock of that shard.
    "repair": Stage(
        "verify fused/mince --repair -s {store}",
        ("fused/mince/tail/c/0", "fused/mince/tail/zarr.json"),
        needs_torch=False,
        removes=True,
        other_bytes=r"/\.tmp-locks/",
    ),
    "init": Stage("init {work}/deep/er/fusion.toml", needs_torch=False),
    "script": Stage(
        f"{FUSE} --materialize --executor slurm --script {{work}}/job.sh", needs_torch=False
    ),
    "distill": Stage(
        "distill {store}/models/fused {store}/models/merged {work}/texts.jsonl "
        "--file {work}/distill.toml -s {work}/new.store --dry-run"
    ),
    "import": Stage("import numpy {work}/rows.npz --name new -t fused -s {store}"),
    "corpus": Stage("corpus {work}/texts.jsonl --name new -t fused -s {store}"),
    "capture": Stage(
        "capture fused --name new --corpus addresses --dtype float32 --device cpu --top-k 4 "
        "--rows-per-shard 96 --rows-per-chunk 32 -s {store}"
    ),
    "train": Stage(f"{TRAIN} --eval-every 1 --result best --evaluate addresses/held_out"),
    "logs": Stage(f"{TRAIN} --log-dir {{work}}/logs", other_bytes="logs/"),
    "adapter": Stage(f"{TRAIN} --lora-rank 2 --lora-adapter-only"),
    "merge": Stage(
        "merge fused merged --name new --evaluate addresses/held_out --precision float32 -s {store}"
    ),
    "compare": Stage(
        "compare -s {store} --evaluate addresses/held_out --precision float32",
    ),
}


def compiled(folder: Path) -> Path | None:
    """The library that makes writes fail; None without a compiler of C."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "failing_writes.so"
    source = Path(__file__).with_name("failing_writes.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def run_stages(folder: Path, *arguments: str) -> list[dict[str, Any]] | None:
    """What this file prints as a program, in a process with the library; None without compiler."""
    library = compiled(folder)
    if library is None:
        return None
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.helpers.failing_writes", *arguments],
        env={**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


class _Workshop:
    """A folder in which one stage runs again and again, always from the same beginning."""

    def __init__(self, folder: Path, stage: Stage) -> None:
        self._folder = folder
        self._stage = stage
        self.begin()
        before = self.tree()
        code, said, self.num_operations = self.run()
        assert code == 0, said
        self.whole = self.tree()
        self._before = before

    def begin(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        for name in ("work", "home", "tmp"):
            (self._folder / name).mkdir(parents=True, mode=0o700)
        shutil.copytree(KEPT, self._folder / "store")
        for name in self._stage.without:
            path = self._folder / "store" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        rows = [{"text": f"Fellow citizens, {n}."} for n in range(3)]
        (self._folder / "work/texts.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
        _rows_to_import(self._folder / "work/rows.npz")

    def run(self, chosen: int = 0, number: int = 0, stays: bool = False) -> tuple[int, str, int]:
        """Exit code, what it printed and number of operations of the command in a fork."""
        said = self._folder.with_suffix(".said")
        child = os.fork()
        if child == 0:
            code = 70
            try:
                code = self._run_here(said, chosen, number, stays)
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        text = said.read_text(errors="replace")
        # A thread may print after the command has ended.
        counted = re.search(r"\noperations: (\d+)", text)
        if counted is None:
            return status, text, -1
        said, last = text[: counted.start()].rsplit("\nfailed: ", 1)
        return status, f"{said}{text[counted.end() :]}\nfailed: {last}", int(counted[1])

    def _run_here(self, said: Path, chosen: int, number: int, stays: bool) -> int:
        folder = str(self._folder)
        os.environ.update(
            FUSESTORE_HOME=f"{folder}/home", TMPDIR=f"{folder}/tmp", HF_HUB_OFFLINE="1"
        )
        tempfile.tempdir = None
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 2)
        os.dup2(file, 1)
        faults = ctypes.CDLL(os.environ["LD_PRELOAD"])
        faults.faults_last.restype = ctypes.c_char_p
        from fusestore_cli.app import run_command

        places = {"store": f"{folder}/store", "work": f"{folder}/work", "kept": str(KEPT)}
        words = self._stage.command.split()
        sys.argv = ["fusestore", *(word.format(**places) for word in words)]
        code = 71
        removals = 2 if self._stage.removes else number == errno.EROFS
        faults.faults_arm(folder.encode(), chosen, number, int(stays), int(removals))
        try:
            run_command()
        except SystemExit as end:
            code = int(end.code or 0)
        except KeyboardInterrupt:
            code = 130
        if "torch" in sys.modules and not self._stage.needs_torch:
            code = 72
        count = faults.faults_count()
        last = faults.faults_last().decode()
        faults.faults_arm(b"", 0, 0, 0, 0)
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(2, f"\nfailed: {last}\noperations: {count}".encode())
        return code

    def tree(self) -> dict[str, str]:
        """SHA-256 of each file by its path; of those that hold times, nothing."""
        found = {}
        for path in sorted(self._folder.rglob("*")):
            name = path.relative_to(self._folder).as_posix()
            if path.is_file():
                own = name.startswith("home/") or re.search(self._stage.other_bytes, name)
                data = b"" if own else path.read_bytes()
                found[name] = hashlib.sha256(data).hexdigest()
            elif not self._stage.removes and not any(path.iterdir()):
                # An empty folder holds nothing that would have to be removed.
                found[f"{name}/"] = ""
        return found

    def problems(self, chosen: int, number: int, stays: bool) -> list[str]:
        """What is wrong when the chosen operation fails, and the command runs again."""
        self.begin()
        code, text, _ = self.run(chosen, number, stays)
        said, _, last = text.rpartition("\nfailed: ")
        found = []
        if number == KILLED:
            if code == -signal.SIGKILL:
                code, last = 0, "killed"
            else:
                return [f"{chosen}: ended with {code} before it was killed"]
        elif not last:
            return [f"{chosen}: fewer operations than before"]
        # What a repair could not do stands in its output, by artifact.
        message = said.partition("Error: " if "Error: " in said else "not repaired: ")[2].strip()
        flat = " ".join(message.split())
        if code not in (0, 1):
            found.append(f"exit code {code}")
        if "Traceback" in said or "defect of fusestore" in flat:
            found.append("traceback or defect")
        elif code == 1 and not _helps(message, str(self._folder)):
            found.append("no path or no hint")
        if not self._stage.removes:
            now = self.tree()
            kept = {
                n: d for n, d in self._before.items() if n.startswith("store/") and n[-1] != "/"
            }
            changed = [n for n, d in kept.items() if now.get(n) != d]
            if changed:
                found.append(f"changed {changed[:3]}")
        if code == 0 and number != KILLED:
            # What is only remembered may be lost, and a disk that is read-only keeps what is there.
            outcome = self.difference(ignored="home/")
            found += [f"succeeded with {outcome}"] if outcome else []
        # What is done and says so, such as a new name, cannot be done again.
        if self.difference():
            again, said_again, _ = self.run()
            found += [f"again: {' '.join(said_again.split())[:600]}"] if again else []
            found += self.difference()
        fault = errno.errorcode.get(number, "SIGKILL") + (" on" if stays else "")
        where = f"{chosen} {fault} {last.strip()}"
        return [f"{where}: {each}: {flat[:500] or said[-300:]}" for each in found]

    def difference(self, ignored: str | None = None) -> list[str]:
        now = self.tree()
        names = {n for n in set(now) ^ set(self.whole) if not _may_vary(n, self._stage)}
        other = {n for n in set(now) & set(self.whole) if now[n] != self.whole[n]}
        both = sorted(n for n in names | other if ignored is None or not n.startswith(ignored))
        return [f"differs from undisturbed: {both[:5]}"] if both else []


def _may_vary(name: str, stage: Stage) -> bool:
    # The logs of TensorBoard begin a file at each start. Python tries a folder for temporary files
    # by a file of its own, which stays where the disk is read-only afterwards.
    return (
        bool(re.search(stage.other_bytes, name))
        or name in ("home/remembered.json", "home/")
        or bool(re.fullmatch(r"tmp/([a-z0-9_]{8})?", name))
    )


def _helps(message: str, folder: str) -> bool:
    flat = re.sub(r"\s", "", message)
    return folder in flat and bool(re.search("[Ff]reespace|writable|Checkthedisk", flat))


def _rows_to_import(path: Path) -> None:
    import numpy as np

    token_ids = np.arange(70, 80, dtype=np.int32)
    ids = token_ids[:, None] + np.arange(3, dtype=np.int32)
    logprobs = np.log(np.full(ids.shape, 0.25, np.float32))
    offsets = np.array([0, len(token_ids)])
    np.savez(path, token_ids=token_ids, document_offsets=offsets, ids=ids, logprobs=logprobs)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stage", action="append", choices=STAGES)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--most", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    names = arguments.stage or list(STAGES)
    heavy = any(STAGES[name].needs_torch for name in names)
    fork_server.import_modules(HEAVY_MODULES if heavy else LIGHT_MODULES)
    base = Path(tempfile.mkdtemp(prefix="failing-writes-"))
    try:
        for name in names:
            workshop = _Workshop(base / "x", STAGES[name])
            count = workshop.num_operations
            stride = arguments.stride
            if arguments.most:
                stride = max(stride, -(-count // arguments.most))
            tried = range((arguments.seed % stride) + 1, count + 1, stride)
            problems = []
            for chosen in tried:
                number, stays = FAULTS[(chosen + arguments.seed) % len(FAULTS)]
                problems += workshop.problems(chosen, number, stays)
            done = {"stage": name, "operations": workshop.num_operations, "tried": len(tried)}
            print(json.dumps({**done, "problems": problems}), flush=True)
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
