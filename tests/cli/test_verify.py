"""`fusestore verify`: silent on a sound store, and blind to no byte."""

import random
import shutil

import pytest

from fusestore.store.layout import Store
from fusestore.workflows.repair import repair_store
from fusestore.workflows.verification import verify_store
from tests.helpers.store_files import artifact_of, one_of_each
from tests.helpers.tiny_job import write_fusion


def test_a_sound_store(command, store):
    outcome = command.succeeds("verify", "--store", store)
    assert outcome.out.count(": sound") == len(outcome.out.splitlines()) == 10
    checked = command.succeeds("verify", "--store", store, "--json").json
    assert all(each["sound"] and not each["findings"] for each in checked["artifacts"])
    assert command.succeeds("verify", "fused/mince", "--store", store, "--json").json == {
        "store": str(store),
        "quick": False,
        "artifacts": [
            {"artifact": "fused/mince", "sound": True, "findings": [], "missing_inputs": []}
        ],
    }
    command.succeeds("verify", "--store", store, "--quick")


def test_tokens_that_a_killed_capture_left_are_no_damage(store):
    """They are made anew by whoever needs them; a lost manifest of whole ones is found."""
    opened = Store.open(store)
    tokens = min((store / "corpora/addresses/tokens").iterdir())
    # All but the manifest was written, and nothing was made with them yet.
    shutil.copytree(tokens, tokens.with_name("0" * 16))
    (tokens.with_name("0" * 16) / "manifest.json").unlink()
    assert verify_store(opened, "corpus/addresses") == {"corpus/addresses": []}
    (tokens / "manifest.json").unlink()
    [finding] = verify_store(opened, "corpus/addresses")["corpus/addresses"]
    assert finding.file == f"tokens/{tokens.name}/manifest.json"
    # The last file that is written before the manifest.
    (tokens / "document_offsets/zarr.json").unlink()
    assert verify_store(opened, "corpus/addresses") == {"corpus/addresses": []}
    assert repair_store(opened, "corpus/addresses") == {}


@pytest.mark.slow
def test_a_flipped_byte_is_found_in_every_kind_of_file(store):
    """At the beginning, in the middle, and at the end of the file."""
    missed = []
    opened = Store.open(store)
    for name, path in one_of_each(store).items():
        checked = artifact_of(store, path)
        sound = path.read_bytes()
        for place in {0, len(sound) // 3, len(sound) // 2, len(sound) - 1}:
            damaged = bytearray(sound)
            damaged[place] ^= 0x10
            path.write_bytes(damaged)
            if not any(verify_store(opened, checked).values()):
                missed.append((name, place))
        path.write_bytes(sound)
    assert missed == []
    assert not any(verify_store(opened).values())


def damage_at_random(path, choice):
    """Change a byte, cut, or remove the file."""
    data = bytearray(path.read_bytes())
    match choice.choice(["change", "change", "change", "cut", "remove"]):
        case "change":
            data[choice.randrange(len(data))] ^= choice.randrange(1, 256)
        case "cut":
            data = data[: choice.randrange(len(data))]
        case "remove":
            path.unlink()
            return
    path.write_bytes(data)


def find_random_damage(store, seed, count):
    """`count` damages, spread over every kind of file: each is found, and by its name."""
    choice = random.Random(seed)  # noqa: S311 - repeatable
    opened = Store.open(store)
    files = list(one_of_each(store).values())
    missed = []
    for number in range(count):
        path = files[number % len(files)]
        inner = path.relative_to(store).parts[2:]
        checked = artifact_of(store, path)
        sound = path.read_bytes()
        damage_at_random(path, choice)
        found = verify_store(opened, checked)[checked]
        if "/".join(inner) not in {finding.file for finding in found}:
            missed.append((str(path), number, found))
        path.write_bytes(sound)
    assert missed == []
    assert not any(verify_store(opened).values())


def test_random_damage_is_found(store):
    find_random_damage(store, 1, 60)


@pytest.mark.slow
def test_a_thousand_random_damages_are_found(store):
    find_random_damage(store, 2, 1000)


def test_quick_compares_sizes(command, store):
    for path in one_of_each(store).values():
        if path.suffix == ".json":
            continue
        sound = path.read_bytes()
        path.write_bytes(sound + b"\0")
        told = command("verify", "--store", store, "--quick", "--json")
        assert told.code == 1, path
        path.write_bytes(sound)


@pytest.mark.parametrize("kind", ["corpora", "caches", "alignments", "fused", "models"])
def test_damage_ends_with_1_and_names_the_file(command, store, kind):
    path = max((store / kind).rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    outcome = command("verify", "--store", store)
    assert outcome.code == 1
    assert path.relative_to(store).as_posix().split("/", 2)[2] in outcome.out
    assert "Traceback" not in outcome.err
    told = command("verify", "--store", store, "--json")
    assert told.code == 1
    assert any(each["findings"] for each in told.json["artifacts"])


@pytest.mark.parametrize("kind", ["corpora", "caches", "alignments", "fused", "models"])
def test_a_missing_file_is_found_even_by_a_quick_look(command, store, kind):
    path = max((store / kind).rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    path.unlink()
    assert command("verify", "--store", store).code == 1
    assert command("verify", "--store", store, "--quick").code == 1


def test_an_unfinished_artifact_is_told(command, store, job, tmp_path):
    (store / "fused/mince/manifest.json").unlink()
    outcome = command("verify", "--store", store)
    assert outcome.code == 1
    assert "run the same command again" in outcome.out
    command.succeeds("run", write_fusion(tmp_path, job, str(store)))
    command.succeeds("verify", "--store", store)


def test_no_store(command, tmp_path):
    message = command.fails("verify", "--store", tmp_path / "nothing")
    assert "nothing" in message
    assert "fusestore run" in message
