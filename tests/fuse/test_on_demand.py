"""A dataset is there when its recipe is opened; its shards are made when they are read."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import fusestore as fs
from fusestore.data import BatchOrder, FusedDataset, collate
from fusestore.errors import (
    CorruptionError,
    FingerprintMismatchError,
    IncompatibleError,
    InvalidInputError,
    NotFoundError,
)
from fusestore.fuse.begin import reopen
from fusestore.fuse.folder import FusedFolder
from fusestore.fuse.locks import lock_folder, shard_lock
from fusestore.fuse.materialize import materialize
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.resolve import find_inputs
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from fusestore.store.layout import Store
from tests.helpers.fork_server import python
from tests.helpers.small_store import ROWS_PER_SHARD, make_small_store

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The store's files as they are before anything is fused; not to be changed."""
    folder = tmp_path_factory.mktemp("small")
    return make_small_store(folder / "store", folder)


@pytest.fixture
def small(made, tmp_path):
    """A copy of the store that a test may change."""
    root = shutil.copytree(made.root, tmp_path / "store")
    return type(made)(Store.open(root), made.target)


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    """The same recipe, materialized by one process."""
    location = Location.parse(tmp_path_factory.mktemp("whole") / "fused")
    folder = FusedFolder(location, find_inputs(made.store, Recipe.parse(made.recipe())))
    materialize(folder)
    return location


def files(location):
    return {name: (location / name).read_bytes() for name in location.list_recursive()}


def shards_made(location):
    return sorted(int(name.removesuffix(".json")) for name in (location / "receipts").list())


def rows_of(dataset):
    return [{key: value.tolist() for key, value in dataset[i].items()} for i in range(len(dataset))]


def test_reading_makes_the_shards_it_needs_and_no_others(small, whole):
    dataset = fs.open_recipe(small.root, small.recipe(), "demo")
    location = small.store.fused("demo")
    assert shards_made(location) == []
    assert not (location / "manifest.json").exists()
    expected = FusedDataset(whole.path)
    assert len(dataset) == len(expected) > 3
    assert dataset.digest == expected.digest
    for key, value in dataset[4].items():
        assert torch.equal(value, expected[4][key])
    assert shards_made(location) == [1]
    dataset[3]
    assert shards_made(location) == [0, 1]
    assert dataset.documents(0) == expected.documents(0)
    assert shards_made(location) == [0, 1]


def test_reading_everything_completes_it_with_the_same_bytes(small, whole):
    dataset = fs.open_recipe(small.root, small.recipe(), "demo")
    assert rows_of(dataset) == rows_of(FusedDataset(whole.path))
    assert files(small.store.fused("demo")) == files(whole)
    assert fs.open_fused(small.root, "demo").digest == dataset.digest


def test_a_begun_dataset_is_opened_by_its_name(small, whole):
    fs.open_recipe(small.root, small.recipe(), "demo")[0]
    again = fs.open_fused(small.root, "demo")
    assert rows_of(again) == rows_of(FusedDataset(whole.path))


def test_the_same_recipe_is_one_dataset_however_it_is_written(small, tmp_path):
    first = fs.open_recipe(small.root, small.recipe())
    (tmp_path / "r.json").write_text(json.dumps(small.recipe(target=small.target.digest[:16])))
    toml = "\n".join(
        f"{key} = {json.dumps(value)}" for key, value in small.recipe().items() if key != "sources"
    )
    toml += '\n[[sources]]\ncache = "own"\n[[sources]]\ncache = "other"\n'
    toml += 'alignment = "other--target"\n'
    (tmp_path / "r.toml").write_text(toml)
    for recipe in (tmp_path / "r.json", str(tmp_path / "r.toml"), Recipe.parse(small.recipe())):
        assert fs.open_recipe(small.root, recipe).folder == first.folder
    assert first.folder.name == f"recipe-{first.digest[:16]}"
    first[0]
    other = fs.open_recipe(small.root, small.recipe(strategy="avgce"))
    assert other.folder != first.folder
    assert shards_made(Location.parse(other.folder)) == []


def test_a_changed_input_is_another_dataset_and_never_reads_old_shards(small):
    dataset = fs.open_recipe(small.root, small.recipe())
    named = fs.open_recipe(small.root, small.recipe(), "demo")
    named[0]
    from fusestore.corpus.tokenize import corpus_tokens
    from tests.helpers.small_store import write_cache

    corpus = fs.open_corpus(small.root, "c")
    small.store.cache("own").delete()
    tokens = corpus_tokens(small.store, corpus, small.target, False)
    write_cache(small.store, "own", small.target, tokens, corpus.digest, seed=9)
    assert fs.open_recipe(small.root, small.recipe()).folder != dataset.folder
    with pytest.raises(FingerprintMismatchError, match="cache_digest"):
        fs.open_recipe(small.root, small.recipe(), "demo")
    # What is made can still be read; what is not cannot be made any more.
    again = fs.open_fused(small.root, "demo")
    again[0]
    with pytest.raises(FingerprintMismatchError, match="cache_digest"):
        again[len(again) - 1]


@pytest.mark.slow
def test_a_remote_store_is_filled_on_this_machine(small, whole, s3_url, tmp_path):
    remote = Location.parse(s3_url) / "some.store"
    for name, data in files(small.store.location).items():
        publish(remote / name, data)
    before = set(remote.list_recursive())
    dataset = fs.open_recipe(remote, small.recipe(), cache_dir=tmp_path / "kept")
    assert rows_of(dataset) == rows_of(FusedDataset(whole.path))
    assert set(remote.list_recursive()) == before
    assert dataset.folder == tmp_path / "kept" / "on_demand" / dataset.digest
    assert files(Location.parse(dataset.folder)) == files(whole)
    again = fs.open_recipe(remote, small.recipe(), cache_dir=tmp_path / "kept")
    assert again.folder == dataset.folder
    # Begun in the remote store under a name, by whoever may write there, and read elsewhere.
    named = fs.open_recipe(remote, small.recipe(), "demo", cache_dir=tmp_path / "elsewhere")
    assert {"fused/demo/fingerprint.json"} < set(remote.list_recursive()) - before
    assert named[0]["input_ids"].tolist() == dataset[0]["input_ids"].tolist()
    assert not [name for name in remote.list_recursive() if "/c/" in name.partition("fused/")[2]]


@pytest.mark.slow
@pytest.mark.parametrize("method", [pytest.param("spawn", marks=pytest.mark.slow), "forkserver"])
def test_workers_make_shards_without_hanging(small, whole, method):
    """The main process has used Polars and zarr already: opening a recipe does."""
    dataset = fs.open_recipe(small.root, small.recipe(), "demo")
    dataset[0]
    order = BatchOrder(len(dataset), 4, seed=1, epoch=0)
    options: dict[str, Any] = {"batch_sampler": order, "collate_fn": collate}
    shared = list(DataLoader(dataset, num_workers=2, multiprocessing_context=method, **options))
    alone = list(DataLoader(FusedDataset(whole.path), **options))
    assert len(shared) == len(alone) > 3
    for one, other in zip(alone, shared, strict=True):
        for name in one:
            assert torch.equal(one[name], other[name]), name
    assert files(small.store.fused("demo")) == files(whole)


@pytest.mark.slow
def test_a_worker_reports_what_is_wrong(small):
    dataset = fs.open_recipe(small.root, small.recipe(), "demo")
    damage(small.store.cache("own") / "ids/c/1/0")
    loader = DataLoader(dataset, batch_size=1, num_workers=1, multiprocessing_context="forkserver")
    with pytest.raises(CorruptionError, match=r"Cache 'own' is damaged.*ids/c/1/0"):
        list(loader)


@pytest.mark.slow
def test_a_forked_worker_says_what_to_do_instead(small, whole):
    dataset = fs.open_recipe(small.root, small.recipe(), "demo")
    dataset[0]
    loader = DataLoader(dataset, batch_size=1, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(InvalidInputError, match=r"forked worker makes shards of .*forkserver"):
        list(loader)
    # What is made already is read by any worker.
    rest = DataLoader(
        FusedDataset(whole.path), batch_size=1, num_workers=1, multiprocessing_context="fork"
    )
    assert len(list(rest)) == len(dataset)


@pytest.mark.slow
def test_several_processes_give_the_bytes_of_one(small, whole):
    fs.open_recipe(small.root, small.recipe(), "demo")[4]
    folder = reopen(small.store, small.store.fused("demo"))
    seen = []
    materialize(folder, jobs=3, progress=lambda done, total: seen.append((done, total)))
    total = folder.fusion.num_tokens
    assert seen[0] == (ROWS_PER_SHARD, total)
    assert seen[-1] == (total, total)
    assert files(folder.location) == files(whole)


@pytest.mark.slow
def test_an_error_in_a_process_is_told_and_the_rest_stays(small):
    folder = FusedFolder(
        small.store.fused("demo"), find_inputs(small.store, Recipe.parse(small.recipe()))
    )
    damage(small.store.cache("own") / "ids/c/2/0")
    with pytest.raises(CorruptionError, match=r"Cache 'own' is damaged.*ids/c/2/0.*--repair"):
        materialize(folder, jobs=2)
    made = shards_made(folder.location)
    assert made
    assert len(made) < folder.num_shards
    with pytest.raises(InvalidInputError, match="jobs is 0"):
        materialize(folder, jobs=0)


def damage(location):
    data = bytearray(location.read_bytes())
    data[len(data) // 3] ^= 1
    location.path.write_bytes(bytes(data))


def test_a_cache_damaged_midway_names_file_and_repair_and_goes_on_after_it(small, whole):
    dataset = fs.open_recipe(small.root, small.recipe(), "demo")
    file = small.store.cache("other") / "logprobs/c/1/0"
    sound = file.read_bytes()
    damage(file)
    dataset[0]
    with pytest.raises(CorruptionError) as caught:
        rows_of(dataset)
    assert "other/logprobs/c/1/0" in str(caught.value)
    assert "`fusestore verify cache/other --repair`" in str(caught.value)
    made = shards_made(small.store.fused("demo"))
    assert made
    assert all((small.store.fused("demo") / "ids/c" / str(shard) / "0").exists() for shard in made)
    file.path.write_bytes(sound)
    again = fs.open_fused(small.root, "demo")
    rows_of(again)
    assert files(small.store.fused("demo")) == files(whole)


COUNTING = """
import sys
from fusestore.fuse import folder as module
from fusestore.fuse.begin import reopen
from fusestore.store.layout import Store

write = module.FusedFolder._write

def slow(self, shard):
    import time
    time.sleep(0.5)
    write(self, shard)
    print(shard, flush=True)

module.FusedFolder._write = slow
store = Store.open(sys.argv[1])
folder = reopen(store, store.fused("demo"))
print("ready", flush=True)
sys.stdin.readline()
for shard in range(4):
    folder.make_shard(shard)
"""


def start_counting(small):
    process = subprocess.Popen(
        [python(), "-c", COUNTING, small.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.slow
def test_two_processes_do_not_both_pay_for_a_shard(small):
    fs.open_recipe(small.root, small.recipe(), "demo")
    processes = [start_counting(small) for _ in range(2)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    made = []
    for process in processes:
        made += process.communicate(timeout=120)[0].split()
        assert process.returncode == 0
    assert sorted(made) == ["0", "1", "2", "3"]


@pytest.mark.slow
def test_a_killed_process_leaves_its_lock_to_the_next(small, whole):
    dataset = fs.open_recipe(small.root, small.recipe(), "demo")
    process = start_counting(small)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "0\n"
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert rows_of(dataset) == rows_of(FusedDataset(whole.path))
    assert files(small.store.fused("demo")) == files(whole)
    assert not lock_folder(small.store.fused("demo")).exists()


def test_locks_of_remote_folders_are_kept_here(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSESTORE_HOME", str(tmp_path))
    remote = Location.parse("s3://bucket/store/fused/demo")
    with shard_lock(remote, 3):
        assert lock_folder(remote).is_relative_to(tmp_path)
        assert [path.name for path in lock_folder(remote).iterdir()] == ["000003"]
    assert list(lock_folder(remote).iterdir()) == []
    with pytest.raises(RuntimeError), shard_lock(remote, 3):
        raise RuntimeError
    with shard_lock(remote, 3):
        pass


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sources": [{"cache": "absent"}]}, NotFoundError, "no cache 'absent'.*fusestore capture"),
        ({"corpus": "absent"}, NotFoundError, "absent"),
        ({"split": "absent"}, InvalidInputError, "no split 'absent'"),
        ({"target": "0" * 64}, NotFoundError, "has no tokenizer 0000000000000000"),
        ({"strategy": "absent"}, InvalidInputError, "Strategies are: avgce"),
        ({"alignment_method": "exact"}, NotFoundError, "fusestore align other.*--method exact"),
        ({"vocabulary_method": "exact"}, NotFoundError, "fusestore align.*--vocabulary exact"),
        ({"top_k": 9999}, InvalidInputError, "top_k is 9999"),
        (
            {"sources": [{"cache": "other", "alignment": "absent"}]},
            NotFoundError,
            "fusestore align other",
        ),
        ({"strategi": "mince"}, InvalidInputError, "Did you mean 'strategy'"),
    ],
)
def test_a_recipe_that_cannot_be_opened_leaves_the_store_as_it_was(small, change, error, message):
    before = files(small.store.location)
    with pytest.raises(error, match=message):
        fs.open_recipe(small.root, small.recipe(**change), "demo")
    assert files(small.store.location) == before


def test_two_alignments_that_fit_have_to_be_told_apart(small):
    from fusestore.align.run import align

    align(small.store, "other", small.target, name="other--again")
    with pytest.raises(InvalidInputError, match=r"2 alignments.*other--again, other--target"):
        fs.open_recipe(small.root, small.recipe())
    recipe = small.recipe(
        sources=[{"cache": "own"}, {"cache": "other", "alignment": "other--again"}]
    )
    assert len(fs.open_recipe(small.root, recipe)[0]["input_ids"]) == 32


def test_a_vocabulary_map_for_other_tokenizers_is_refused(small):
    from fusestore.align.vocabulary.stored_map import stored_vocabulary_map
    from fusestore.tokenizers.vocabulary_table import load_vocabulary

    (name,) = small.store.names("vocabulary_maps")
    folder = small.store.location / "vocabulary_maps" / name
    folder.delete()
    target = load_vocabulary(small.store, small.target.digest)
    stored_vocabulary_map(folder, target, target, "mined")
    with pytest.raises(IncompatibleError, match=r"vocabulary map at .* has source tokenizer"):
        fs.open_recipe(small.root, small.recipe())


def test_target_tokens_that_were_never_made(small):
    (small.store.corpus("c") / "tokens" / small.target.digest[:16]).delete()
    with pytest.raises(NotFoundError, match=r"no tokens of the target.*--target"):
        fs.open_recipe(small.root, small.recipe())
    dataset = fs.open_recipe(small.root, small.recipe(), target=small.target)
    assert len(dataset[0]["input_ids"]) == 32


def test_a_window_longer_than_any_document_holds_several_and_one_longer_than_all_is_cut(small):
    tokens = fs.open_recipe(small.root, small.recipe(window_length=200))
    assert len(tokens.documents(0)) > 1
    everything = fs.open_recipe(small.root, small.recipe(window_length=10**6))
    assert len(everything) == 1
    assert len(everything[0]["input_ids"]) == everything.num_tokens
    for granularity in ("window", "document"):
        # The random labels of this store need more mass than their rows' tails have.
        recipe = small.recipe(window_length=10**6, granularity=granularity, keep_label=False)
        assert np.isfinite(fs.open_recipe(small.root, recipe)[0]["fused_tail"]).all()


def test_a_definition_that_was_cut_short_says_so(small):
    fs.open_recipe(small.root, small.recipe(), "demo")
    (small.store.fused("demo") / "tail/zarr.json").delete()
    with pytest.raises(NotFoundError, match=r"tail.*fusestore fuse"):
        fs.open_fused(small.root, "demo")
    assert "fused_tail" in fs.open_recipe(small.root, small.recipe(), "demo")[0]
