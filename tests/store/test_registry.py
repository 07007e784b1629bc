"""A kind of artifact is one class: a toy one takes part in everything that loops over kinds."""

import json
import shutil

import pytest
from pydantic import Field

import fusestore as fs
from fusestore.errors import CorruptionError, InvalidInputError
from fusestore.storage.publish import publish
from fusestore.store.artifact_types import DocumentSchema, Input
from fusestore.store.inventory import describe, find_artifact, list_artifacts
from fusestore.store.layout import Store
from fusestore.store.manifest import Manifest, canonical_json, manifest_content
from fusestore.store.receipts import FileRecord
from fusestore.store.registry import ArtifactKind, kinds, register, unregister
from fusestore.workflows.repair import repair_store
from fusestore.workflows.sharing import copy_artifacts
from fusestore.workflows.verification import verify_store
from tests.helpers.command import Command
from tests.helpers.resealed_documents import sealed
from tools import schemas

TEXT = b"3.5 apples\n"


class NotesFingerprint(Manifest):
    """What notes depend on.

    Attributes:
        corpus_digest: of the corpus that they are about.
    """

    corpus_digest: str


class NotesManifest(Manifest):
    """Complete notes.

    Attributes:
        fingerprint: what they depend on.
        num_lines: lines of the text.
        files: every other file of the folder.
    """

    fingerprint: NotesFingerprint
    num_lines: int = Field(ge=0)
    files: dict[str, FileRecord]


class NotesKind(ArtifactKind):
    """Notes about a corpus."""

    name, folder, title = "notes", "notes", "set of notes"

    def parse(self, data, file):
        return NotesManifest.from_bytes(data, file)

    def describe(self, manifest):
        return f"{manifest['num_lines']:,} lines"

    def inputs(self, manifest):
        yield Input("corpus", manifest["fingerprint"]["corpus_digest"])

    def rebuild(self, store, artifact, findings, tools):
        manifest = NotesManifest.load(artifact.location / "manifest.json")
        assert {finding.file for finding in findings} <= {*manifest.files, "manifest.json"}
        write_notes(store, artifact.name, manifest.fingerprint)

    def schemas(self):
        return {
            "notes-fingerprint": DocumentSchema(NotesFingerprint, "notes/<notes>/fingerprint.json"),
            "notes": DocumentSchema(NotesManifest, "notes/<notes>/manifest.json"),
        }


def write_notes(store, name, fingerprint, *, finish=True):
    folder = store.location / "notes" / name
    files = {"fingerprint.json": fingerprint.to_bytes(), "text.txt": TEXT}
    for path, data in files.items():
        publish(folder / path, data)
    records = {path: FileRecord.of(data) for path, data in files.items()}
    if finish:
        manifest = NotesManifest(fingerprint=fingerprint, num_lines=1, files=records)
        publish(folder / "manifest.json", manifest.to_bytes())


@pytest.fixture
def _notes():
    register(NotesKind)
    yield
    unregister("notes")


@pytest.fixture
def command(capsys, monkeypatch):
    return Command(capsys, monkeypatch)


@pytest.fixture
def noted(store, _notes):
    """A store with notes about its corpus."""
    opened = Store.open(store)
    corpus = find_artifact(opened, "corpus/addresses")
    digest = corpus.kind.digest(corpus.manifest)
    write_notes(opened, "mine", NotesFingerprint(corpus_digest=digest))
    return opened


def test_it_is_listed_and_described(noted, command):
    (found,) = [artifact for artifact in list_artifacts(noted) if artifact.kind.name == "notes"]
    assert (found.path, found.state, describe(found)) == ("notes/mine", "complete", "1 lines")
    listed = command.succeeds("ls", "--store", noted.location, "--json").json["artifacts"]
    assert listed[-1] == {
        "artifact": "notes/mine",
        "state": "complete",
        "complete": True,
        "description": "1 lines",
    }
    assert "1 lines" in command.succeeds("ls", "--store", noted.location).out
    shown = command.succeeds("show", "notes/mine", "--store", noted.location, "--json").json
    assert shown["manifest"]["num_lines"] == 1
    assert command("show", "notes/mine", "--store", noted.location, "-d", "0").code == 2
    (noted.location / "notes/mine/manifest.json").delete()
    assert find_artifact(noted, "notes/mine").state == "unfinished"
    assert "notes/mine" in command.succeeds("ls", "--store", noted.location).out


@pytest.mark.parametrize("file", ["text.txt", "fingerprint.json"])
def test_damage_is_found_and_rebuilt(noted, command, file):
    assert verify_store(noted)["notes/mine"] == []
    path = noted.location.path / "notes/mine" / file
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + b"!")
    assert [finding.file for finding in verify_store(noted, "notes/mine")["notes/mine"]] == [file]
    told = command("verify", "notes/mine", "--store", noted.location)
    assert told.code == 1
    assert "verify notes/mine" in told.out
    assert repair_store(noted)["notes/mine"].problem is None
    assert path.read_bytes() == sound
    assert not any(verify_store(noted).values())


def test_a_damaged_manifest_is_found(noted):
    path = noted.location.path / "notes/mine/manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"num_lines": 1', b'"num_lines": 2'))
    (finding,) = verify_store(noted)["notes/mine"]
    assert finding.file == "manifest.json"
    assert find_artifact(noted, "notes/mine").state == "damaged"
    with pytest.raises(CorruptionError, match="checksum"):
        copy_artifacts(noted, Store.open(noted.location.path.parent / "other"), ["notes/mine"])


def test_it_is_copied_with_what_it_was_made_from(noted, command, tmp_path):
    other, back = tmp_path / "other", tmp_path / "back"
    command.succeeds("push", "notes/mine", "-s", noted.location, "--to", other, "--with-inputs")
    command.succeeds("pull", "notes/mine", "--from", other, "--to", back)
    paths = [artifact.path for artifact in list_artifacts(Store.open(other))]
    assert paths == ["corpus/addresses", "notes/mine"]
    assert (back / "notes/mine/text.txt").read_bytes() == TEXT
    assert verify_store(Store.open(back)) == {"notes/mine": []}


def test_it_is_managed(noted, command):
    """Lineage, sizes, renaming, removal and clearing up need nothing of the kind but its class."""
    store = fs.open_store(noted.location)
    details = store.describe("mine")
    assert [str(each) for each in details.inputs] == ["corpus/addresses"]
    assert "notes/mine" in store.describe("corpus/addresses").used_by
    assert "─ notes/mine" in command.succeeds("tree", "-s", noted.location).out
    parts = {entry.name: entry.num_bytes for entry in store.usage("notes/mine").entries}
    assert parts["text.txt"] == len(TEXT)
    with pytest.raises(InvalidInputError, match="notes/mine"):
        store.remove("corpus/addresses")
    store.rename("corpus/addresses", "places")
    store.rename("notes/mine", "yours")
    assert [str(each) for each in store.describe("yours").inputs] == ["corpus/places"]
    (noted.location / "notes/yours/manifest.json").delete()
    # Unfinished, it is made from the corpus that its fingerprint names.
    assert [str(each) for each in store.describe("yours").inputs] == ["corpus/places"]
    old = fs.GarbageSettings(older_than=0, unfinished_older_than=0)
    assert [item.path for item in store.collect_garbage(old).items] == ["notes/yours"]


@pytest.mark.usefixtures("_notes")
def test_its_documents_are_among_the_schemas():
    generated = schemas.generate()
    notes = json.loads(generated["notes.json"])
    assert notes["$comment"] == "notes/<notes>/manifest.json"
    assert notes["properties"]["num_lines"]["description"] == "lines of the text."
    assert "notes-fingerprint.json" in generated
    unregister("notes")
    assert "notes.json" not in schemas.generate()


@pytest.mark.usefixtures("_notes")
def test_a_kind_has_a_name_and_a_folder_of_its_own():
    class Taken(NotesKind):
        name, folder = "fused", "elsewhere"

    with pytest.raises(InvalidInputError, match="FusedKind has the name 'fused'"):
        register(Taken)
    Taken.name, Taken.folder = "other", "notes"
    with pytest.raises(InvalidInputError, match="the folder 'notes'"):
        register(Taken)
    names = [kind.name for kind in kinds()]
    register(NotesKind)
    assert [kind.name for kind in kinds()] == names


HOSTILE = {
    "no JSON": b"{",
    "no object": b"[]",
    "empty": b"",
    "not UTF-8": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "another checksum": canonical_json({"format_version": 1, "checksum": "0"}),
    "a newer format": sealed({"format_version": 99}),
    "other keys": sealed({"format_version": 1}),
    "other types": sealed(
        {
            "format_version": 1,
            **dict.fromkeys(["fingerprint", "plan", "counts", "files", "merge", "evaluations"], 7),
        }
    ),
    "a list for each number": sealed(
        {
            "format_version": 1,
            **{key: [] for key in ("num_documents", "num_tokens", "num_bytes", "content_digest")},
        }
    ),
}


@pytest.mark.parametrize("depth", [400, 980, 100_000])
def test_a_deep_document_is_refused_as_such(depth):
    content = b'{"format_version": 1, "a": ' + b"[" * depth + b"]" * depth + b"}"
    with pytest.raises((InvalidInputError, CorruptionError), match=r"x\.json"):
        manifest_content(content, "x.json")


REFUSED_EARLY = ("no JSON", "empty", "not UTF-8", "a newer format", "other types")
"""Those that are refused at the same places as others."""


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(content, id=name, marks=[pytest.mark.slow] * (name in REFUSED_EARLY))
        for name, content in HOSTILE.items()
    ],
)
def test_one_bad_manifest_does_not_break_the_list(store, command, content):
    opened = Store.open(store)
    whole = {artifact.path for artifact in list_artifacts(opened)}
    bad = []
    for kind in kinds():
        name = kind.names(opened)[0]
        (kind.location(opened, name) / "manifest.json").path.write_bytes(content)
        bad.append(f"{kind.name}/{name}")
    listed = command.succeeds("ls", "--store", store, "--json").json["artifacts"]
    assert {entry["artifact"] for entry in listed} == whole
    states = {entry["artifact"]: entry["state"] for entry in listed}
    assert {path for path, state in states.items() if state == "damaged"} == set(bad)
    assert "damaged" in command.succeeds("ls", "--store", store).out
    for verb in ("tree", "du", "gc"):
        command.succeeds(verb, "--store", store)
    for path in bad:
        assert any(verify_store(opened, path).values())
        assert path.partition("/")[2] in command.fails("show", path, "--store", store)


def test_a_folder_that_cannot_be_an_artifact_does_not_break_the_list(store):
    (store / "caches/what is this?").mkdir()
    (store / "caches/what is this?/manifest.json").mkdir()
    shutil.copytree(store / "caches/wide", store / "caches/-x")
    states = {artifact.path: artifact.state for artifact in list_artifacts(Store.open(store))}
    assert states["cache/wide"] == "complete"
