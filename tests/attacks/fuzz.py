"""Changes files of the kept store in many ways, and looks at what reading them does.

    python -m tests.attacks.fuzz /dev/shm --count 10000 --seed 1 [--jobs 2]

A folder in memory makes it four times as fast.

A mutation is raw damage (bits, cuts, parts twice) or a hostile value in the right place, with all
checksums made again so that it gets past them. What must come of it: an error of ours; or numbers,
the same or others that lie in their range, unless `verify` says that they do not. What must not: a
foreign exception, more than 5 seconds of the processor, 300 MB more memory, numbers outside their
range without a word. The same seed gives the same mutations.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import fusestore as fs
from fusestore.align.report.unmatched import read_unmatched
from fusestore.align.stored import open_alignment
from fusestore.align.vocabulary.stored_map import load_vocabulary_map
from fusestore.corpus.corpus import open_corpus
from fusestore.corpus.manifest import TokensManifest
from fusestore.corpus.tokenize import StoredTokens
from fusestore.data import StreamingFusedDataset, collate, open_fused
from fusestore.errors import FusestoreError
from fusestore.models.safetensors_check import not_finite, safetensors_header
from fusestore.storage.location import Location
from fusestore.store.inventory import _read, describe, list_artifacts
from fusestore.store.layout import Store
from fusestore.store.registry import kind_named
from fusestore.tokenizers.vocabulary_table import load_vocabulary
from fusestore.train.guards import check_rows
from fusestore.version import FORMAT_VERSION
from fusestore.workflows.verification import check_artifact
from tests.helpers.limits import MEGABYTES, SECONDS, alarm, forget_peak, memory
from tests.helpers.resealed import (
    KINDS,
    arrays_of,
    artifact_folders,
    change_array,
    read_json,
    reseal,
    sealed,
)

KEPT = Path(__file__).parent.parent / f"kept_store/format-{FORMAT_VERSION}/store"

HOSTILE: tuple[Any, ...] = (
    *(0, 1, -1, 2, 255, 2**31, 2**62, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400),
    *(0.5, -0.0, 1e308, 1e-320, True, False, None, "", "x", "0", "x" * 5_000),
    *("../../x", "/etc/passwd", "a\x00b", "a/../../b", "\u202e", "C:\\x", "é" * 100, "0" * 64),
    *([], {}, [[]], [0], [None], {"a": 1}, [-1, 2**63 - 1], [[[[[[[[]]]]]]]], ["x"] * 1_000),
)

HOSTILE_NUMBERS = (np.nan, np.inf, -np.inf, 1e30, -1e30, 5.0, 0.5, -0.5, 0.0, -1, 1, 255, 2**31 - 1)


# What is changed


def mutate(folder: Path, choice: random.Random) -> str:
    """Change one file of an artifact's folder; says what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # Each kind of file as often as any other: most are chunks.
    kinds: dict[str, list[Path]] = {}
    for file in files:
        kinds.setdefault(_kind_of(file), []).append(file)
    kind = choice.choice(sorted(kinds))
    file = choice.choice(kinds[kind])
    if choice.random() < 0.3:
        done = _damage(file, choice)
        if choice.random() < 0.7:
            _reseal(folder)
            done += ", resealed"
    else:
        done = _STRUCTURED[kind](folder, file, choice)
    return f"{file.relative_to(folder.parent.parent)}: {done}"


def _kind_of(file: Path) -> str:
    if file.name == "zarr.json":
        return "zarr"
    if file.suffix == ".json":
        return "document"
    return {".parquet": "table", ".safetensors": "weights"}.get(file.suffix, "array")


def _reseal(folder: Path) -> None:
    with contextlib.suppress(Exception):
        reseal(folder)


def _damage(file: Path, choice: random.Random) -> str:
    if choice.random() < 0.05:
        file.unlink()
        return "removed"
    data = bytearray(file.read_bytes())
    place = choice.randrange(len(data) + 1)
    length = choice.choice((1, 4, 50, 1_000))
    kind = choice.choice(("bit", "cut", "twice", "zeros", "ones", "gone", "longer"))
    if kind == "bit" and data:
        data[place % len(data)] ^= 1 << choice.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "twice":
        data[place:place] = data[place : place + length]
    elif kind in ("zeros", "ones"):
        data[place : place + length] = bytes([255 * (kind == "ones")]) * length
    elif kind == "gone":
        del data[place : place + length]
    else:
        data += choice.randbytes(length)
    file.write_bytes(data)
    return f"{kind} at {place}"


def _document(folder: Path, file: Path, choice: random.Random) -> str:
    content = read_json(file)
    done = _change_json(content, choice)
    data = json.dumps(content).encode("utf-8", "surrogatepass")
    with contextlib.suppress(ValueError, TypeError):
        data = sealed(content)[0]
    file.write_bytes(data)
    if choice.random() < 0.8:
        _reseal(folder)
    return done


def _zarr(folder: Path, file: Path, choice: random.Random) -> str:
    content = read_json(file)
    done = _change_json(content, choice)
    file.write_text(json.dumps(content))
    _reseal(folder)
    return done


def _change_json(content: Any, choice: random.Random) -> str:
    places = list(_places(content))
    inside, key, path = choice.choice(places)
    value = choice.choice(HOSTILE)
    if choice.random() < 0.1:
        del inside[key]
        return f"without {path}"
    if choice.random() < 0.1 and isinstance(inside, dict):
        inside["other"] = value
        return f"{path}.other = {value!r:.40}"
    old = inside[key]
    if isinstance(old, int) and not isinstance(old, bool) and choice.random() < 0.3:
        value = old + choice.choice((-1, 1))
    inside[key] = value
    return f"{path} = {value!r:.40}"


def _places(content: Any, path: str = "") -> Any:
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in list(pairs):
        yield content, key, f"{path}.{key}"
        if isinstance(value, dict | list):
            yield from _places(value, f"{path}.{key}")


def _array(folder: Path, file: Path, choice: random.Random) -> str:
    inner = file.parent
    while inner.name != "c":
        inner = inner.parent
    name, owner = inner.parent.name, inner.parent.parent
    if name not in arrays_of(owner):
        return _damage(file, choice)
    value = choice.choice(HOSTILE_NUMBERS)
    done = []

    def edit(values: Any) -> None:
        place: Any = choice.randrange(len(values))
        if choice.random() < 0.3:
            place = slice(place, None)
        if values.dtype.kind in "iu":
            limits = np.iinfo(values.dtype)
            whole = int(np.clip(np.nan_to_num(value), limits.min, limits.max))
            whole = choice.choice((whole, limits.max, limits.min))
            values[place] = min(max(whole, limits.min), limits.max)
        elif choice.random() < 0.7 and values.ndim == 2:
            values[place, choice.randrange(values.shape[1])] = value
        else:
            values[place] = value
        done.append(f"{name}[{place}] = {value}")

    change_array(owner, name, edit)
    _reseal(folder)
    return done[0]


def _table(folder: Path, file: Path, choice: random.Random) -> str:
    table = pl.read_parquet(file)
    name = choice.choice(table.columns)
    column = table[name]
    changes = {
        "without": lambda: table.drop(name),
        "renamed": lambda: table.rename({name: "other"}),
        "null": lambda: table.with_columns(pl.lit(None, column.dtype).alias(name)),
        "text": lambda: table.with_columns(pl.lit("x" * 100).alias(name)),
        "number": lambda: table.with_columns(pl.lit(choice.choice((-1, 2**40, 0))).alias(name)),
        "real": lambda: table.with_columns(pl.lit(np.nan).alias(name)),
        "reversed": lambda: table.reverse(),
        "one value": lambda: table.with_columns(pl.lit(column[0], column.dtype).alias(name)),
        "fewer": lambda: table.head(choice.randrange(len(table) + 1)),
        "more": lambda: pl.concat([table] * choice.choice((2, 50))),
        "negative": lambda: table.with_columns(
            pl.lit(-choice.randrange(1, 300)).cast(column.dtype).alias(name)
        ),
        "bomb": lambda: table.clear().select(
            pl.lit(None, table.dtypes[0]).alias("x").repeat_by(1).explode()
        ),
    }
    kind = choice.choice(sorted(changes))
    try:
        changed = changes[kind]()
    except Exception:
        return _damage(file, choice)
    changed.write_parquet(file)
    _reseal(folder)
    return f"{kind} {name}"


def _weights(folder: Path, file: Path, choice: random.Random) -> str:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    content = json.loads(data[8 : 8 + length])
    if choice.random() < 0.3:
        body = bytearray(data)
        place = 8 + length + 4 * choice.randrange((len(data) - 8 - length) // 4)
        body[place : place + 4] = np.float32(choice.choice(HOSTILE_NUMBERS)).tobytes()
        file.write_bytes(body)
        done = f"a number at {place}"
    else:
        done = _change_json(content, choice)
        header = json.dumps(content).encode("utf-8", "surrogatepass")
        file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    _reseal(folder)
    return done


_STRUCTURED = {
    "document": _document,
    "zarr": _zarr,
    "array": _array,
    "table": _table,
    "weights": _weights,
}


# What is done with it


def uses(root: Path, folder: Path, work: Path, choice: random.Random) -> Any:
    """Operations with an artifact by name; each returns the numbers that it read."""
    store, name = Store.open(root), folder.name
    kind = kind_named(KINDS[folder.parent.name])
    if choice.random() < 0.05:
        yield "ls", lambda: [describe(each) for each in list_artifacts(store)]
    artifact = _read(kind, name, Location.parse(folder))
    yield "describe", lambda: describe(artifact)
    yield "verify", lambda: check_artifact(store, artifact)
    yield "quick", lambda: check_artifact(store, artifact, quick=True)
    yield "open", lambda: _READ[kind.name](root, folder, work)
    if artifact.manifest is not None and choice.random() < 0.25:
        yield "show", lambda: kind.view(store, artifact, 3)
        yield "show --document", lambda: kind.view_document(store, artifact, 0, 3)
    if choice.random() < 0.1:
        target = Store.open(work / "copy")
        path = f"{kind.name}/{name}"
        yield "pull", lambda: fs.sharing.copy_artifacts(store, target, [path])


def _cache(root: Path, folder: Path, work: Path) -> list[Any]:
    cache = fs.open_cache(root, folder.name)
    rows, tokens = cache[:], cache.tokens
    cache.document(0)
    read = [rows.ids, rows.logprobs, rows.tail, rows.label_logprob]
    return [*read, tokens.token_ids, tokens.end_offsets, tokens.document_offsets]


def _corpus(root: Path, folder: Path, work: Path) -> list[Any]:
    corpus = open_corpus(root, folder.name)
    read: list[Any] = [corpus.table()["text"].to_list(), list(corpus.text_batches())]
    read += [corpus.split_documents(split) for split in corpus.manifest.splits]
    for file in sorted(folder.glob("tokens/*/manifest.json")):
        location = Location.parse(file.parent)
        table = StoredTokens(location, TokensManifest.load(location / "manifest.json")).table()
        read += [table.token_ids, table.end_offsets, table.document_offsets]
    return read


def _vocabulary(root: Path, folder: Path, work: Path) -> list[Any]:
    vocabulary = load_vocabulary(root, folder.name)
    return [vocabulary.token_bytes, vocabulary.kinds, vocabulary.roles]


def _map(root: Path, folder: Path, work: Path) -> list[Any]:
    found = load_vocabulary_map(Location.parse(folder))
    return [found.target_id, found.distance, found.kind]


def _alignment(root: Path, folder: Path, work: Path) -> list[Any]:
    alignment = open_alignment(Location.parse(folder))
    count = alignment.manifest.fingerprint.num_documents
    read = alignment.for_documents(0, count)
    unmatched = read_unmatched(alignment)
    if (read[1] < 4).all():
        alignment.to_polars()
    return [*read, alignment.document_offsets, unmatched["token_id"].to_numpy()]


def _fit(root: Path, folder: Path, work: Path) -> list[Any]:
    manifest: Any = kind_named("fit").load(Location.parse(folder))
    return [manifest.temperatures, manifest.weights]


def _fused(root: Path, folder: Path, work: Path) -> list[Any]:
    read = []
    dataset = open_fused(root, folder.name, cache_dir=work / "cache")
    stream = StreamingFusedDataset(folder, cache_dir=work / "cache", shuffle_span=None)
    for source, samples in (
        (dataset, map(dataset.__getitem__, range(len(dataset)))),
        (stream, stream),
    ):
        batch = collate(list(samples))
        problem = check_rows(batch, source)
        if problem is not None:
            raise problem
        read += [batch[key].numpy() for key in sorted(batch)]
    return read


def _model(root: Path, folder: Path, work: Path) -> list[Any]:
    kind_named("model").load(Location.parse(folder))
    read: list[Any] = []
    for file in sorted(folder.glob("*.safetensors")):
        read.append(safetensors_header(Location.parse(file)))
        if not_finite(Location.parse(file)):
            raise FusestoreError("weights that are not finite")
    return read


_READ = {
    "cache": _cache,
    "corpus": _corpus,
    "vocabulary": _vocabulary,
    "map": _map,
    "alignment": _alignment,
    "fit": _fit,
    "fused": _fused,
    "model": _model,
}


def problem_of(folder: Path, read: list[Any], expected: list[Any]) -> str | None:
    """Why numbers that were read, where `verify` finds nothing, lie outside their range."""
    kind = KINDS[folder.parent.name]
    if kind == "cache":
        ids, logprobs, tail, label = read[:4]
        present = logprobs > -np.inf
        if np.isnan(logprobs).any() or (logprobs > 1e-3).any() or (tail > 1e-3).any():
            return "a log-probability above 0, or NaN"
        if (label > 1e-3).any() or np.isposinf(label).any():
            return "a label above 0"
        if (ids[present] < 0).any() or (ids[present] >= 2**17).any():
            return "an id outside the vocabulary"
        if (read[4] < 0).any() or (read[5] < 0).any():
            return "a token below zero"
    if kind == "alignment" and ((read[1] > 3).any() or (read[0] < -1).any()):
        return "a kind or a position that is none"
    if kind == "map" and ((read[0] < -1).any() or (read[2] > 6).any()):
        return "a target or a kind that is none"
    return None


# How it is counted


class Tally:
    """Outcomes by operation, and what must not be."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []


def run(root: Path, numbers: range, seed: int, tally: Tally | None = None) -> Tally:
    """Make mutations of a copy of the kept store in `root`, one after the other."""
    tally = tally or Tally()
    store = root / "store"
    if not store.exists():
        shutil.copytree(KEPT, store)
    folders = artifact_folders(store)
    expected: dict[str, list[Any]] = {}
    for number in numbers:
        choice = random.Random(f"{seed} {number}")  # noqa: S311 - repeatable
        folder = choice.choice(folders)
        key = str(folder.relative_to(store))
        if key not in expected:
            expected[key] = _READ[KINDS[folder.parent.name]](store, folder, root / "sound")
        before = root / "before"
        shutil.copytree(folder, before)
        work = root / "work"
        try:
            done = mutate(folder, choice)
            _look(store, folder, work, choice, expected[key], tally, f"{seed}/{number} {done}")
        finally:
            shutil.rmtree(folder)
            before.rename(folder)
            shutil.rmtree(work, ignore_errors=True)
    return tally


def _look(
    store: Path,
    folder: Path,
    work: Path,
    choice: random.Random,
    expected: list[Any],
    tally: Tally,
    what: str,
) -> None:
    found: dict[str, Any] = {}
    for name, use in uses(store, folder, work, choice):
        forget_peak()
        used, begin = memory("VmRSS"), time.process_time()
        outcome, detail = "sound", ""
        try:
            with alarm(30), contextlib.redirect_stdout(io.StringIO()):
                found[name] = use()
        except FusestoreError:
            outcome = "refused"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome, detail = "foreign exception", traceback.format_exc(limit=-4)
        seconds, megabytes = time.process_time() - begin, memory("VmHWM") - used
        if seconds > SECONDS:
            outcome, detail = "hang", f"{seconds:.1f} s"
        elif megabytes > MEGABYTES:
            outcome, detail = "memory", f"{megabytes:.0f} MB"
        if name in ("verify", "quick") and outcome == "sound" and found[name]:
            outcome = "found"
        if name == "open" and outcome == "sound" and not _same(found[name], expected):
            outcome = "other numbers"
            if not found.get("verify"):
                problem = problem_of(folder, found[name], expected)
                if problem is not None:
                    outcome, detail = "number out of range", problem
        tally.outcomes[f"{name}: {outcome}"] += 1
        if outcome in ("foreign exception", "hang", "memory", "number out of range"):
            tally.failures.append({"what": what, "use": name, "is": outcome, "detail": detail})


def _same(read: list[Any], expected: list[Any]) -> bool:
    if len(read) != len(expected):
        return False
    return all(
        np.array_equal(one, two, equal_nan=one.dtype.kind == "f")
        if isinstance(one, np.ndarray)
        else one == two
        for one, two in zip(read, expected, strict=True)
    )


def main() -> None:
    """Count the outcomes of many mutations, in processes that are replaced when they end."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where stores are copied to")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--worker", action="store_true")
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.count)
    if options.worker:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            tally = run(Path(folder), numbers, options.seed)
        print(json.dumps([tally.outcomes, tally.failures]))  # noqa: T201
        return
    outcomes, failures = in_processes(options.folder, numbers, options.seed, options.jobs)
    for name, count in sorted(outcomes.items()):
        print(f"{count:8,}  {name}")  # noqa: T201
    for failure in failures:
        print(failure["what"], failure["use"], failure["is"], failure["detail"], sep="\n    ")  # noqa: T201
    print(f"{len(numbers):,} mutations, {len(failures)} failures")  # noqa: T201
    sys.exit(bool(failures))


def in_processes(
    folder: Path, numbers: range, seed: int, jobs: int, at_once: int = 2_000
) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Run mutations in processes of their own; one that dies or hangs is a failure."""
    outcomes: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    waiting = [numbers[at : at + at_once] for at in range(0, len(numbers), at_once)]
    running: list[tuple[range, subprocess.Popen[str], float]] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            part = waiting.pop(0)
            command = [sys.executable, "-m", "tests.attacks.fuzz", str(folder), "--worker"]
            command += [f"--seed={seed}", f"--first={part.start}", f"--count={len(part)}"]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            running.append((part, process, time.monotonic()))
        part, process, _ = running.pop(0)
        try:
            out, err = process.communicate(timeout=60 + 5 * len(part))
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        if process.returncode != 0:
            what = f"{seed}/{part.start} to {part.stop}"
            failures.append(
                {"what": what, "use": "", "is": "process ended", "detail": err[-2_000:]}
            )
            continue
        counted, failed = json.loads(out.strip().splitlines()[-1])
        outcomes.update(counted)
        failures += failed
    return outcomes, failures


if __name__ == "__main__":
    main()
