"""Publishing to the Hub, by huggingface_hub's own client."""

import os
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import yaml

import fusestore as fs
from fusestore.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    CorruptionError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from fusestore.store.layout import Store
from fusestore.workflows.publishing import hub_repository
from fusestore.workflows.sharing import copy_artifacts
from tests.helpers.command import start
from tests.helpers.tiny_job import hashes
from tests.helpers.writable_hub import READS, WRITES, Fault

URL, NAME = "hf://datasets/me/x", "datasets/me/x"


def publish(store, hub, *artifacts, url=URL, token=WRITES, dry_run=False, **settings):
    return fs.open_store(store.location).publish(
        url,
        artifacts or None,
        fs.PublishSettings(**settings),
        storage_options=hub.options(token),
        dry_run=dry_run,
    )


def published_store(hub, url=URL):
    return Store.open(url, hub.options(READS))


def run_snippet(card, hub, capsys):
    """The five lines of a card, with the address of the Hub of the test."""
    code = card.partition("```python\n")[2].partition("```")[0]
    assert len(code.splitlines()) <= 5
    capsys.readouterr()
    code = code.replace('")\n', f'", {hub.options(READS)!r})\n', 1)
    exec(code, {})  # noqa: S102 - what the card tells people to run
    return capsys.readouterr().out


def test_a_store_and_back(lineage, hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FUSESTORE_HOME", str(tmp_path))
    hub.large_bytes = 3000
    published = publish(lineage, hub)
    files = hub.files(NAME)
    assert files.pop("README.md").decode() == published.card
    assert files == {
        path: (lineage.location.path / path).read_bytes()
        for path in lineage.location.list_recursive()
    }
    # Files, manifests and card became visible at one moment.
    assert [each.oid for each in hub.commits(NAME)] == [published.commit]
    assert max(Counter(hub.uploads).values()) == 1
    assert hub.uploads
    back = Store.open(tmp_path / "back")
    copy_artifacts(published_store(hub), back, None)
    assert hashes(back.location) == hashes(lineage.location)
    assert "input_ids" in run_snippet(published.card, hub, capsys)
    # A second publication sends nothing.
    asked = len(hub.asked)
    again = publish(lineage, hub)
    assert (again.commit, again.num_files, again.card_changed) == (None, 0, False)
    assert all(each.already_there for each in again.artifacts)
    assert not [each for each in hub.asked[asked:] if each.startswith(("POST", "PUT"))]


def test_a_cache_is_read_by_the_lines_of_its_card(store, hub, capsys):
    opened = Store.open(store)
    published = publish(opened, hub, "cache/wide")
    # Without its vocabulary its ids would have no text.
    assert [each.artifact.partition("/")[0] for each in published.artifacts] == [
        "vocabulary",
        "cache",
    ]
    assert "label" in run_snippet(published.card, hub, capsys)
    found = fs.open_store(URL, hub.options(READS)).verify()
    assert list(found) == [each.artifact for each in published.artifacts]
    assert not any(found.values())


def test_a_model_becomes_a_model_repository(lineage, hub, tmp_path):
    from transformers import AutoModelForCausalLM

    url, name = "hf://me/student", "models/me/student"
    published = publish(lineage, hub, "model/fused", url=url, private=True)
    assert hub.repositories[name].private
    assert {"config.json", "model.safetensors", "tokenizer.json"} < hub.files(name).keys()
    head = yaml.safe_load(published.card.split("---")[1])
    assert head["library_name"] == "transformers"
    assert 'AutoModelForCausalLM.from_pretrained("me/student")' in published.card
    folder = tmp_path / "models/fused"
    for path, data in hub.files(name).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    AutoModelForCausalLM.from_pretrained(folder)
    # Its folder is the artifact, as the card says.
    assert not any(fs.open_store(tmp_path).verify("model/fused").values())
    with pytest.raises(InvalidInputError, match="holds one model"):
        publish(lineage, hub, "cache/wide", url=url)


def test_a_branch(lineage, hub):
    publish(lineage, hub, "corpus/addresses", url=f"{URL}@v%2F1")
    assert hub.files(NAME) == {}
    assert "corpora/addresses/manifest.json" in hub.files(NAME, "v/1")
    store = fs.open_store(f"{URL}@v%2F1", hub.options(READS))
    assert store.open_corpus("addresses").texts()


def test_a_dry_run_asks_only(lineage, hub):
    published = publish(lineage, hub, "cache/wide", dry_run=True)
    assert published.num_files > 0
    assert published.card.startswith("---\n")
    assert hub.repositories == {}
    assert not [each for each in hub.asked if each.startswith(("POST", "PUT"))]


def test_what_people_write_stays(lineage, hub):
    publish(lineage, hub, "cache/wide")
    card = hub.files(NAME)["README.md"].decode()
    edited = card.replace("# x\n", "# Our rows\n\nAsk us first.\n").replace(
        "- fusestore\n", "- fusestore\n- ours\n"
    )
    edited = edited.replace("---\n\n", "pretty_name: Rows\n---\n\n", 1) + "\n## Citation\n"
    hub.commit(NAME, {"README.md": edited.encode()})
    licenses = {"cache/wide": "apache-2.0", "cache/nucleus": "apache-2.0"}
    published = publish(lineage, hub, "cache/wide", "cache/nucleus", license=licenses)
    assert published.card_changed
    card = hub.files(NAME)["README.md"].decode()
    assert "# Our rows\n\nAsk us first.\n" in card
    assert card.endswith("\n## Citation\n")
    assert "nucleus" in card
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "apache-2.0"
    assert head["pretty_name"] == "Rows"
    assert {"fusestore", "ours"} < set(head["tags"])
    # A license that a person wrote is not replaced, one of ours is.
    hub.commit(NAME, {"README.md": card.replace("license: apache-2.0", "license: mit", 1).encode()})
    published = publish(lineage, hub, "cache/wide", license={"cache/wide": "gemma"})
    assert yaml.safe_load(published.card.split("---")[1])["license"] == "mit"


def test_an_edit_between_look_and_commit_stays(lineage, hub):
    publish(lineage, hub, "cache/wide")
    card = hub.files(NAME)["README.md"]
    edited = card.replace(b"# x\n", b"# x\n\nMine.\n")
    # When the card was read, and before it is written.
    hub.faults = [Fault("POST .*/preupload/", lambda: hub.commit(NAME, {"README.md": edited}))]
    publish(lineage, hub, "cache/wide", "cache/nucleus")
    assert hub.faults == []
    assert b"# x\n\nMine.\n" in hub.files(NAME)["README.md"]
    assert b"nucleus" in hub.files(NAME)["README.md"]


def test_a_head_that_the_hub_refuses(lineage, hub):
    publish(lineage, hub, "cache/wide")
    card = hub.files(NAME)["README.md"]
    hub.commit(NAME, {"README.md": card.replace(b"tags:\n", b"license: ours\ntags:\n", 1)})
    with pytest.raises(InvalidInputError, match=r"(?s)must be one of.*head of the card"):
        publish(lineage, hub, "cache/wide", "cache/nucleus")
    assert "caches/nucleus/manifest.json" not in hub.files(NAME)


def test_another_artifact_of_the_name_is_not_replaced(lineage, store, hub):
    publish(lineage, hub, "cache/wide")
    before = hub.files(NAME)
    shutil.rmtree(store / "caches/wide")
    (store / "caches/exact").rename(store / "caches/wide")
    with pytest.raises(AlreadyExistsError, match="is another cache/wide"):
        publish(Store.open(store), hub, "cache/wide")
    assert hub.files(NAME) == before


def test_damage_is_not_published(store, hub):
    file = next(path for path in (store / "caches/wide/logprobs/c").rglob("*") if path.is_file())
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(CorruptionError, match="was not published"):
        publish(Store.open(store), hub, "cache/wide")
    assert not any(path.endswith("manifest.json") for path in hub.files(NAME))


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("POST /api/repos/create", 500),
        ("POST .*/preupload/", 503),
        ("PUT /lfs/", 500),
        ("PUT /lfs/", "cut"),
        ("POST .*/commit/", "cut"),
        ("GET .*/tree/", 500),
    ],
)
def test_what_fails_once_is_done_again(lineage, hub, pattern, fault, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.large_bytes = 100
    if "tree" in pattern:
        publish(lineage, hub, "corpus/addresses")
    hub.faults = [Fault(pattern, fault)]
    publish(lineage, hub, "cache/wide")
    assert hub.faults == []
    assert "caches/wide/manifest.json" in hub.files(NAME)
    assert max(Counter(hub.uploads).values()) == 1


def test_an_interrupted_publication_goes_on(lineage, hub, monkeypatch):
    monkeypatch.setattr(hub_repository, "FILES_PER_COMMIT", 8)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.large_bytes = 100
    sizes = []
    for _ in range(2):
        # Each run makes one commit, and its further attempts fail.
        commit = "POST .*/commit/"
        hub.faults = [Fault(commit, 500, after=1), Fault(commit, "cut"), Fault(commit, 500)]
        with pytest.raises(StorageError, match="run the same command again"):
            publish(lineage, hub, "cache/wide", "corpus/addresses")
        sizes.append(len(hub.files(NAME)))
        assert not any(path.endswith("wide/manifest.json") for path in hub.files(NAME))
        assert not hub.faults
        with pytest.raises(NotFoundError, match="not complete"):
            fs.open_store(URL, hub.options(READS)).open_cache("wide")
    assert sizes == [8, 16]
    publish(lineage, hub, "cache/wide", "corpus/addresses")
    assert len(hub.commits(NAME)) > 3
    last = hub.commits(NAME)[-1].files.keys() - hub.commits(NAME)[-2].files.keys()
    assert {"README.md", "caches/wide/manifest.json", "corpora/addresses/manifest.json"} <= last
    assert max(Counter(hub.uploads).values()) == 1
    assert not any(fs.open_store(URL, hub.options(READS)).verify().values())


def test_who_may_not_write(lineage, hub):
    for token in (None, READS):
        with pytest.raises(AccessDeniedError, match=r"(?s)denied.*hf auth login.*HF_TOKEN") as told:
            publish(lineage, hub, "cache/wide", token=token or "hf_unknown")
        assert "hf_" not in str(told.value)
    with pytest.raises(AccessDeniedError, match="datasets/others/x was denied"):
        publish(lineage, hub, "cache/wide", url="hf://datasets/others/x")
    assert hub.repositories == {}


def test_a_hub_that_is_gone(lineage, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.stop()
    with pytest.raises(StorageError, match="could not be reached"):
        publish(lineage, hub, "cache/wide")


@pytest.mark.slow
def test_a_user_with_a_token_and_a_card(lineage, hub, tmp_path):
    """The command, and the lines of the card as they stand, in processes of their own."""
    hub.large_bytes = 3000
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": WRITES,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "FUSESTORE_HOME": str(tmp_path / "home"),
    }
    command = ["publish", "fused/mince", URL, "-s", str(lineage.location), "--with-inputs"]
    publishing = start(*command, interpreter=sys.executable, env=environment)
    out, err = publishing.communicate(timeout=300)
    assert publishing.returncode == 0, err
    assert "Published fused/mince" in out
    assert WRITES not in out + err
    code = hub.files(NAME)["README.md"].decode().partition("```python\n")[2].partition("```")[0]
    read = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"HF_TOKEN": READS},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "input_ids" in read.stdout


@pytest.mark.parametrize("url", ["hf://datasets/x", "hf://datasets/me/x/caches", "hf://me/x y"])
def test_other_addresses(lineage, hub, url):
    with pytest.raises(InvalidInputError, match="write hf://datasets/OWNER/NAME"):
        publish(lineage, hub, "cache/wide", url=url)
    with pytest.raises(NotFoundError, match="wode"):
        publish(lineage, hub, "cache/wode")
    assert hub.asked == []


def test_a_card_alone(lineage, hub):
    with pytest.raises(NotFoundError, match="not published there whole"):
        publish(lineage, hub, "cache/wide", card_only=True)
    publish(lineage, hub, "cache/wide")
    published = publish(lineage, hub, "cache/wide", card_only=True, language=["en"])
    assert yaml.safe_load(published.card.split("---")[1])["language"] == ["en"]
    assert len(hub.commits(NAME)) == 2
