"""The handle of a model: what names mean, and what is computed once."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fusestore.cache.manifest import CacheManifest
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import write_corpus
from fusestore.corpus.corpus import open_corpus
from fusestore.errors import (
    CorruptionError,
    IncompatibleError,
    InvalidInputError,
    NotFoundError,
)
from fusestore.models.loading import model_digest
from fusestore.models.model import Model
from fusestore.models.target import Target
from fusestore.storage import memory
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from fusestore.store.layout import Store
from fusestore.store.manifest import canonical_json, digest_bytes
from fusestore.store.receipts import FileRecord
from fusestore.tokenizers.remembered import folder_tokenizer
from fusestore.tokenizers.tokenizer import Tokenizer, load_tokenizer
from fusestore.tokenizers.vocabulary_table import save_vocabulary
from tests.helpers.fork_server import python
from tests.helpers.tiny_models import TEXTS, make_llama, save_model, train_tokenizer


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user cache folder of its own."""
    monkeypatch.setenv("FUSESTORE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = train_tokenizer(TEXTS, 300, adds_bos=True)
    return save_model(tmp_path_factory.mktemp("models") / "tiny", make_llama(300), tokenizer)


@pytest.fixture(scope="module")
def captured(folder, tmp_path_factory):
    """A store with a cache `tiny` that was captured from a folder."""
    store = Store.open(tmp_path_factory.mktemp("store"))
    texts = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    corpus = write_corpus(store, "corpus", texts)
    capture(store, "tiny", Model.open(folder), corpus, CaptureSettings(top_k=4, device="cpu"))
    return store


@pytest.fixture
def store(captured, tmp_path):
    """The same, as one's own copy."""
    shutil.copytree(captured.location.path, tmp_path / "own.store")
    return Store.open(tmp_path / "own.store")


def put_model(store, name, folder, *, change=None):
    """Publish a model folder as `models/NAME`, as training does; `change` alters a file after."""
    files = {}
    for path in folder.iterdir():
        data = path.read_bytes()
        files[path.name] = FileRecord.of(data)
        _write(store.model(name) / path.name, data if path.name != change else data[:-1] + b"?")
    content = {"files": {name: record.model_dump() for name, record in files.items()}}
    _write_manifest(store.model(name) / "manifest.json", content)


def _write(location, data):
    publish(location, data)


def _write_manifest(location, content):
    content = {"format_version": 1, **content}
    checksum = digest_bytes(canonical_json(content))
    _write(location, canonical_json({**content, "checksum": checksum}))


def set_model_spec(store, name, spec):
    """Let a cache's manifest name this as its model."""
    file = store.cache(name) / "manifest.json"
    manifest = CacheManifest.load(file).model_copy(update={"model_spec": spec})
    _write(file, manifest.to_bytes())


# What is remembered


def large_file(path, fill, *, age=10):
    """A file of 2 MiB that was last changed `age` seconds ago."""
    path.write_bytes(bytes([fill]) * 2**21)
    then = path.stat().st_mtime_ns - age * 10**9
    os.utime(path, ns=(then, then))


@pytest.fixture
def reads(monkeypatch):
    """Files that were hashed, in order."""
    seen = []
    digest = hashlib.file_digest

    def watched(file, kind):
        seen.append(os.path.basename(file.name))  # noqa: PTH119
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", watched)
    return seen


def test_a_large_file_is_hashed_once(home, tmp_path, reads):
    large_file(tmp_path / "a.safetensors", 1)
    first = memory.file_digest(tmp_path / "a.safetensors")
    assert memory.file_digest(tmp_path / "a.safetensors") == first
    assert reads == ["a.safetensors"]
    assert first == FileRecord.of(bytes([1]) * 2**21).sha256


def test_other_processes_remember_too(home, tmp_path, reads):
    large_file(tmp_path / "a.safetensors", 1)
    code = "import sys, pathlib; from fusestore.storage.memory import file_digest as f; "
    code += "print(f(pathlib.Path(sys.argv[1])))"
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.safetensors")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert memory.file_digest(tmp_path / "a.safetensors") == told
    assert reads == []


def test_a_file_of_the_same_size_and_another_time_is_hashed_again(home, tmp_path):
    large_file(tmp_path / "a", 1, age=20)
    first = memory.file_digest(tmp_path / "a")
    large_file(tmp_path / "a", 2, age=10)
    assert memory.file_digest(tmp_path / "a") != first


def test_a_file_whose_time_was_set_back_is_hashed_again(home, tmp_path):
    large_file(tmp_path / "a", 1)
    before = (tmp_path / "a").stat()
    first = memory.file_digest(tmp_path / "a")
    (tmp_path / "a").write_bytes(bytes([2]) * 2**21)
    os.utime(tmp_path / "a", ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert (tmp_path / "a").stat().st_mtime_ns == before.st_mtime_ns
    assert memory.file_digest(tmp_path / "a") != first


def test_a_file_that_may_still_be_changing_is_not_remembered(home, tmp_path, reads):
    large_file(tmp_path / "a", 1, age=0)
    for _ in range(2):
        memory.file_digest(tmp_path / "a")
    assert reads == ["a", "a"]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'"text"',
        b'{"files": [], "facts": 3}',
        b'{"files": {"PATH": "x"}, "facts": {"config": []}}',
        b'{"files": {"PATH": [1, 2, 3, "00"]}}',
        b"\xff\xfe\x00",
        b" " * (4 * 2**20 + 1),
    ],
    ids=range(9),
)
def test_a_damaged_memory_is_ignored_and_replaced(damage, home, tmp_path, reads):
    path = tmp_path / "a.safetensors"
    large_file(path, 1)
    home.mkdir()
    (home / "remembered.json").write_bytes(damage.replace(b"PATH", str(path).encode()))
    first = memory.file_digest(path)
    assert memory.file_digest(path) == first == FileRecord.of(bytes([1]) * 2**21).sha256
    assert reads == ["a.safetensors"]


def test_a_wrong_digest_in_the_memory_is_not_taken_for_one(home, tmp_path):
    path = tmp_path / "a.safetensors"
    large_file(path, 1)
    first = memory.file_digest(path)
    content = json.loads((home / "remembered.json").read_bytes())
    content["files"][str(path)][-1] = "not a digest"
    (home / "remembered.json").write_text(json.dumps(content))
    assert memory.file_digest(path) == first


def test_a_home_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("FUSESTORE_HOME", str(tmp_path / "home"))
    large_file(tmp_path / "a", 1)
    assert memory.file_digest(tmp_path / "a") == memory.file_digest(tmp_path / "a")


def test_writers_at_the_same_time_lose_nothing(home, tmp_path, reads):
    paths = [tmp_path / f"{number}.safetensors" for number in range(24)]
    for number, path in enumerate(paths):
        large_file(path, number)
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(memory.file_digest, paths))
    assert len(reads) == 24
    assert [memory.file_digest(path) for path in paths] == digests
    assert len(reads) == 24
    assert sorted(path.name for path in home.iterdir()) == [
        "remembered.json",
        "remembered.json.lock",
    ]


def test_the_memory_is_bounded(home, monkeypatch):
    monkeypatch.setattr(memory, "MAX_ENTRIES", 3)
    made = []
    for number in (0, 1, 2, 3, 3, 0):
        memory.remembered(
            f"fact {number}",
            lambda number=number: made.append(number) or {"n": number},
            valid=lambda fact: True,
        )
    assert made == [0, 1, 2, 3, 0]
    assert len(json.loads((home / "remembered.json").read_bytes())["facts"]) == 3


def test_what_is_remembered_of_a_tokenizer(home, folder, monkeypatch):
    loaded = load_tokenizer(folder)
    first = folder_tokenizer(folder)
    monkeypatch.setattr("fusestore.tokenizers.remembered.load_tokenizer", None)
    known = folder_tokenizer(folder)
    monkeypatch.undo()
    for tokenizer in (first, known):
        assert isinstance(tokenizer, Tokenizer)
        assert tokenizer.digest == loaded.digest
        assert len(tokenizer) == len(loaded)
        assert (tokenizer.bos_id, tokenizer.adds_bos) == (loaded.bos_id, loaded.adds_bos)
        assert tokenizer.name == loaded.name
        assert tokenizer.vocabulary == loaded.vocabulary
        table, expected = (each.encode(TEXTS, True) for each in (tokenizer, loaded))
        assert np.array_equal(table.token_ids, expected.token_ids)
        assert np.array_equal(table.end_offsets, expected.end_offsets)


def test_another_tokenizer_in_the_folder_is_noticed(home, tmp_path):
    path = save_model(tmp_path / "m", make_llama(300), train_tokenizer(TEXTS, 300))
    first = folder_tokenizer(path).digest
    known = folder_tokenizer(path)
    train_tokenizer(TEXTS, 290).save_pretrained(path)
    with pytest.raises(IncompatibleError, match="changed while it was used"):
        known.encode(TEXTS, False)
    assert folder_tokenizer(path).digest == load_tokenizer(path).digest != first


@pytest.mark.slow
def test_a_model_that_is_known_takes_no_transformers(home, folder):
    code = """
import sys
from fusestore.models.model import Model
model = Model.open(sys.argv[1])
print(model.digest, model.tokenizer.digest, len(model.tokenizer), model.architecture)
print(model.vocab_size, model.context)
print([name for name in ("torch", "transformers", "polars", "zarr") if name in sys.modules])
"""
    told = [
        subprocess.run(
            [interpreter, "-c", code, str(folder)], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for interpreter in (python(), sys.executable)
    ]
    assert told[0][:2] == told[1][:2]
    tokenizer = load_tokenizer(folder)
    assert told[1] == [
        f"{model_digest(folder)} {tokenizer.digest} {len(tokenizer)} LlamaForCausalLM",
        "300 128",
        "[]",
    ]


# What names mean


def test_each_part_of_a_model(folder):
    model = Model.open(str(folder))
    assert (model.name, model.folder, model.digest) == ("tiny", folder, model_digest(folder))
    assert (model.architecture, model.vocab_size, model.context) == ("LlamaForCausalLM", 300, 128)
    assert model.config.hidden_size == 32
    assert model.tokenizer is model.tokenizer
    assert model.portable_spec is None
    assert Model.open(model) is model
    assert Model.open(folder).folder == folder
    assert next(model.load(dtype="bfloat16", device="cpu").parameters()).dtype.itemsize == 2


@pytest.mark.parametrize(
    "config",
    [{"model_type": "llama", "max_position_embeddings": -1}, {"model_type": "bloom"}],
    ids=["-1", "none"],
)
def test_a_context_without_a_limit(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Model.open(tmp_path).context is None


@pytest.mark.parametrize(
    "config", [{"model_type": "no_such_type"}, {"model_type": "llama", "vocab_size": "many"}]
)
def test_a_folder_without_a_usable_configuration(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    # Older transformers take any value.
    with pytest.raises(InvalidInputError, match=r"no usable configuration|has no vocab_size"):
        _ = Model.open(tmp_path).vocab_size


def test_a_model_of_the_store(store, folder):
    put_model(store, "fused", folder)
    model = Model.open("fused", store=store)
    assert model.folder == store.model("fused").path
    assert (model.digest, model.name) == (model_digest(folder), "fused")


def test_a_model_of_a_remote_store_is_copied_once(store, folder, home):
    remote = Store.open("memory://test-remote-model")
    put_model(remote, "fused", folder)
    model = Model.open("fused", store=remote)
    assert model.folder.parent == home / "models"
    assert model.digest == model_digest(folder)
    (remote.model("fused") / "config.json").delete()
    assert Model.open("fused", store=remote).folder == model.folder
    assert [path.name for path in (home / "models").iterdir()] == [model.folder.name]


def test_a_damaged_model_of_a_remote_store(folder, home):
    remote = Store.open("memory://test-damaged-model")
    put_model(remote, "fused", folder, change="config.json")
    with pytest.raises(CorruptionError, match=r"config\.json is damaged"):
        _ = Model.open("fused", store=remote).folder
    assert list((home / "models").iterdir()) == []


@pytest.mark.parametrize("file", ["../evil.json", "/evil.json", "a/b", ".hidden", ""])
def test_a_remote_model_that_names_files_elsewhere(file, home):
    remote = Store.open("memory://test-hostile-model")
    record = FileRecord.of(b"{}").model_dump()
    _write_manifest(remote.model("fused") / "manifest.json", {"files": {file: record}})
    with pytest.raises(InvalidInputError, match="Do not trust this store"):
        _ = Model.open("fused", store=remote).folder


def test_a_lora_adapter_alone(store):
    _write_manifest(store.model("lora") / "manifest.json", {"files": {}})
    with pytest.raises(NotFoundError, match="a LoRA adapter alone"):
        _ = Model.open("lora", store=store).folder


def test_a_cache_that_was_captured_from_a_folder(store, folder):
    with pytest.raises(NotFoundError) as caught:
        Model.open("tiny", store=store)
    assert "Cache 'tiny'" in str(caught.value)
    assert model_digest(folder)[:16] in str(caught.value)
    assert "Give that folder" in str(caught.value)


def test_a_cache_that_was_captured_from_a_package(store, folder, monkeypatch):
    set_model_spec(store, "tiny", "package:some-model")
    monkeypatch.setattr(
        "fusestore.models.model.local_model_folder",
        lambda spec, **_: {"package:some-model": folder}[spec],
    )
    monkeypatch.setattr("fusestore.models.model.gguf_file", lambda spec: None)
    model = Model.open("tiny", store=store)
    assert (model.folder, model.name) == (folder, "tiny")
    assert model.portable_spec == "package:some-model"


def test_a_cache_whose_model_is_another_now(store, tmp_path, monkeypatch):
    set_model_spec(store, "tiny", "someone/tiny@" + "0" * 40)
    other = save_model(tmp_path / "other", make_llama(300, seed=5), train_tokenizer(TEXTS, 300))
    asked = []

    def found(spec, revision, **_):
        asked.append((spec, revision))
        return other

    monkeypatch.setattr("fusestore.models.model.local_model_folder", found)
    with pytest.raises(IncompatibleError, match=r"captured from someone/tiny@0+ with digest"):
        _ = Model.open("tiny", store=store).folder
    # Once for the configuration alone, and once for the weights.
    assert set(asked) == {("someone/tiny", "0" * 40)}


@pytest.mark.parametrize(
    "spec", ["/etc", "../x", "package:../x", "someone/tiny", "a/b/c", "x.gguf"]
)
def test_a_store_cannot_name_a_folder_of_this_machine(spec, store):
    set_model_spec(store, "tiny", spec)
    with pytest.raises(NotFoundError, match="captured from a folder of another place"):
        Model.open("tiny", store=store)


def test_code_that_a_store_chooses_is_not_trusted(store):
    set_model_spec(store, "tiny", "someone/tiny@" + "0" * 40)
    with pytest.raises(InvalidInputError, match="is not trusted"):
        Model.open("tiny", store=store, trust_remote_code=True)


def test_the_store_is_asked_first_and_for_plain_names_only(store, folder, tmp_path, monkeypatch):
    """The model before the cache, and a folder of the same name only as ./NAME."""
    other = save_model(tmp_path / "tiny", make_llama(300, seed=5), None)
    monkeypatch.chdir(tmp_path)
    put_model(store, "tiny", folder)
    assert Model.open("tiny", store=store).folder == store.model("tiny").path
    for spec in ("./tiny", str(other), other):
        assert Model.open(spec, store=store).folder == other
    assert Model.open("tiny").folder == other


def test_a_folder_of_a_name_that_the_store_does_not_have(store, tmp_path, monkeypatch):
    other = save_model(tmp_path / "another", make_llama(300, seed=5), None)
    monkeypatch.chdir(tmp_path)
    assert Model.open("another", store=store).folder == other


def test_an_unfinished_model_is_not_meant(store):
    _write(store.model("begun") / "config.json", b"{}")
    with pytest.raises(NotFoundError, match="neither a local folder nor reachable"):
        _ = Model.open("begun", store=store).folder


def test_an_unknown_name(store, folder):
    put_model(store, "fused-one", folder)
    with pytest.raises(NotFoundError, match=r"mean 'fused-one'\? .* holds: fused-one, tiny"):
        _ = Model.open("fused-on", store=store).folder
    with pytest.raises(NotFoundError, match="hub") as caught:
        _ = Model.open("nobody/fused-on", store=store).folder
    assert "Did you mean" not in str(caught.value)


def test_a_revision_means_the_hub(store, monkeypatch):
    asked = []

    def found(spec, revision, **_):
        asked.append((spec, revision))
        raise NotFoundError(spec)

    monkeypatch.setattr("fusestore.models.model.local_model_folder", found)
    for model in (
        Model.open("tiny", store=store, revision="main"),
        Model.open("tiny@main", store=store),
    ):
        with pytest.raises(NotFoundError):
            _ = model.folder
    assert asked == [("tiny", "main")] * 2
    with pytest.raises(InvalidInputError, match="give one of them"):
        Model.open("a/b@main", revision="other")


def test_what_a_hub_model_is_called_elsewhere(folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / ("0123456789" * 4)
    snapshot.parent.mkdir()
    snapshot.symlink_to(folder)
    monkeypatch.setattr("fusestore.models.model.local_model_folder", lambda spec, **_: snapshot)
    model = Model.open("someone/tiny", revision="main")
    assert (model.name, model.portable_spec) == ("tiny", "someone/tiny@" + "0123456789" * 4)


# The tokenizer side alone


def test_target_of_a_cache_is_told_by_the_store(store, folder, monkeypatch):
    tokenizer = load_tokenizer(folder)
    monkeypatch.setattr("fusestore.models.model.local_model_folder", None)
    target = Target.open("tiny", store=store)
    assert (target.name, target.digest, target.adds_bos) == ("tiny", tokenizer.digest, True)
    assert target.vocabulary == tokenizer.vocabulary
    with pytest.raises(NotFoundError, match="Give that folder"):
        _ = target.tokenizer


def test_target_by_digest(store, folder):
    tokenizer = load_tokenizer(folder)
    for digest in (tokenizer.digest, tokenizer.digest[:16], tokenizer.digest[:8]):
        target = Target.open(digest, store=store)
        assert (target.digest, target.adds_bos) == (tokenizer.digest, None)
        assert target.vocabulary == tokenizer.vocabulary
    with pytest.raises(NotFoundError, match="Give the target's model instead of the digest"):
        _ = target.tokenizer


def test_a_digest_that_fits_several(store):
    for name in ("abcdef0123456789", "abcdef0199999999"):
        _write(store.location / "vocabularies" / name / "manifest.json", b"{}")
    with pytest.raises(IncompatibleError, match="several tokenizers"):
        Target.open("abcdef01", store=store)


def test_target_however_it_is_given(store, folder):
    put_model(store, "fused", folder)
    tokenizer = load_tokenizer(folder)
    given = [
        (tokenizer, "tiny"),
        (Model.open(folder), "tiny"),
        (str(folder), "tiny"),
        (folder, "tiny"),
        ("fused", "fused"),
        (train_tokenizer(TEXTS, 300, adds_bos=True), None),
        (str(folder / "tokenizer.json"), None),
    ]
    for each, name in given:
        target = Target.open(each, store=store)
        assert target.digest == tokenizer.digest
        assert target.adds_bos
        assert target.tokenizer.digest == tokenizer.digest
        assert name in (None, target.name)
        assert Target.open(target) is target


def test_target_that_is_not_there(store):
    with pytest.raises(NotFoundError, match=r"Did you mean 'tiny'\?"):
        Target.open("tinny", store=store)


def test_target_whose_tokenizer_is_another_now(store, tmp_path, monkeypatch):
    set_model_spec(store, "tiny", "package:some-model")
    other = save_model(tmp_path / "other", make_llama(300), train_tokenizer(TEXTS[:2], 280))
    monkeypatch.setattr("fusestore.models.model.local_model_folder", lambda spec, **_: other)
    monkeypatch.setattr("fusestore.models.model.gguf_file", lambda spec: None)
    monkeypatch.setattr(
        "fusestore.models.model.model_digest",
        lambda _: (
            CacheManifest.load(store.cache("tiny") / "manifest.json").fingerprint.model.spec_digest
        ),
    )
    with pytest.raises(IncompatibleError, match="its model now has tokenizer"):
        _ = Target.open("tiny", store=store).tokenizer


def test_a_vocabulary_of_the_store_alone_names_a_target(tmp_path, folder):
    tokenizer = load_tokenizer(folder)
    store = Store(Location.parse(tmp_path / "small.store"))
    save_vocabulary(store, tokenizer.vocabulary)
    assert Target.open(tokenizer.digest[:12], store=store).digest == tokenizer.digest


@pytest.mark.slow
def test_a_complete_cache_is_recognized_without_torch(captured, folder, home):
    code = """
import sys
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.corpus import open_corpus
from fusestore.models.model import Model
from fusestore.store.layout import Store
store, settings = Store.open(sys.argv[1]), CaptureSettings(top_k=4, device="cpu")
result = capture(store, "tiny", Model.open(sys.argv[2]), open_corpus(store, "corpus"), settings)
print(result.created, [name for name in ("torch", "transformers", "zarr") if name in sys.modules])
"""
    told = [
        subprocess.run(
            [sys.executable, "-c", code, captured.location.url, str(folder)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for _ in range(2)
    ]
    assert told[0].startswith("False ['torch', 'transformers'")
    assert told[1] == "False []"


def test_the_command_that_captured_a_folder_can_be_given_again(store, folder, monkeypatch):
    """The folder is called like its cache, and is the cache's model."""
    monkeypatch.chdir(folder.parent)
    assert Model.open("tiny", store=store).folder == folder
    assert Target.open("tiny", store=store).tokenizer.digest == load_tokenizer(folder).digest


def test_a_cache_keeps_what_opens_its_model(store, captured, folder, tmp_path, monkeypatch):
    corpus = open_corpus(store, "corpus")
    monkeypatch.setattr("fusestore.models.model.local_model_folder", lambda spec, **_: folder)
    monkeypatch.setattr("fusestore.models.model.gguf_file", lambda spec: None)
    settings = CaptureSettings(top_k=3, device="cpu")
    package = Model.open("package:some-model")
    cache = capture(store, "packaged", package, corpus, settings).artifact
    assert cache.manifest.model_spec == "package:some-model"
    assert Model.open("packaged", store=store).folder == folder
    monkeypatch.undo()
    # The model is told by its digest, however it is named.
    again = capture(store, "packaged", Model.open(folder), corpus, settings)
    assert not again.created
    assert again.artifact.manifest.model_spec == "package:some-model"
    other = Store.open(shutil.copytree(captured.location.path, tmp_path / "other.store"))
    same = capture(other, "packaged", Model.open(folder), corpus, settings).artifact
    assert (same.manifest.model_spec, same.digest) == (None, cache.digest)
