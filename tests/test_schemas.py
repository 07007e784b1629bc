"""schemas/ is what the code says, and what a store holds is what schemas/ say."""

import io
import json
import re
import tomllib
from pathlib import Path

import jsonschema
import polars as pl
import pytest

from fusestore.fuse.manifest import FusedManifest
from fusestore.fuse.resolve import find_inputs
from fusestore.fuse.shared import pack_fused
from fusestore.merge.run import merge_models
from fusestore.merge.settings import MergeSettings
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.store.manifest import Manifest
from fusestore.train.checkpoint import TrainState
from fusestore.train.manifest import TrainingManifest
from fusestore.workflows.fusion_config import load_config
from fusestore.workflows.pipeline import run_pipeline
from tests.helpers.tiny_models import TEXTS, make_llama, save_model, train_tokenizer
from tools import schemas

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "schemas"

FUSION = """
store = "store"
evaluate_split = "held_out"

[corpus]
inputs = ["texts/*.txt"]
license = "cc0-1.0"
held_out_pattern = ["5.txt"]
max_length = 64

[models.left]
model = "./left"

[models.right]
model = "./right"
top_k = 6

[capture]
top_k = 8

[fuse]
target = "left"
sources = ["left", "right"]
window_length = 32
top_k = 8

[train]
max_steps = 1
precision = "float32"

[train.runs.trained]
"""


@pytest.fixture(scope="module")
def generated():
    return schemas.generate()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with one artifact of every kind, made by `fusestore run`'s own function."""
    root = tmp_path_factory.mktemp("schemas")
    (root / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (root / "texts" / f"{number}.txt").write_text(text, encoding="utf-8")
    for name, vocab_size, seed in (("left", 300, 0), ("right", 280, 1)):
        save_model(
            root / name, make_llama(vocab_size, seed=seed), train_tokenizer(TEXTS, vocab_size)
        )
    (root / "fusion.toml").write_text(FUSION, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("FUSESTORE_HOME", str(root / "home"))
        run_pipeline(load_config(Location.parse("fusion.toml")))
        merge_models(
            Store.open("store"),
            "merged",
            ["./left", "trained"],
            MergeSettings(),
            evaluate=("corpus", "held_out"),
        )
        made = Store.open("store")
        pack_fused(made.fused("fused"), made.fused("packed"))
        recipe = FusedManifest.load(made.fused("fused") / "manifest.json").plan.recipe
        find_inputs(made, recipe.model_copy(update={"strategy": "em"}))
    return root / "store"


def test_published_files_are_the_generated_ones(generated):
    published = {path.name: path.read_bytes() for path in PUBLISHED.glob("*.json")}
    assert published.keys() == generated.keys(), "run `make schemas` and delete what is stale"
    for name, content in generated.items():
        assert published[name] == content, f"schemas/{name} has drifted: run `make schemas`"


def test_main_writes_what_generate_gives(generated, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["schemas", str(tmp_path / "out")])
    schemas.main()
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == generated


def json_schemas(generated):
    return {
        name.removesuffix(".json"): json.loads(content)
        for name, content in generated.items()
        if name != "tables.json"
    }


LEFT_OUT = {"known_labels", "origin", "stream_order", "license", "made_from", "name", "link"}
"""Keys that a manifest lacks where they would say nothing."""


def test_every_schema_is_valid_and_closed(generated):
    for name, schema in json_schemas(generated).items():
        jsonschema.Draft202012Validator.check_schema(schema)
        for part in (schema, *schema.get("$defs", {}).values()):
            assert part["additionalProperties"] is False, f"{name}: {part['title']}"
            if name in schemas.documents():
                missing = set(part["properties"]) - set(part["required"])
                assert missing <= LEFT_OUT, f"{name}: {part['title']}"


def test_every_manifest_is_published(generated):
    """Each kind of manifest has a file of its own or lies inside one that has."""
    titles = set()
    for name, schema in json_schemas(generated).items():
        if name in schemas.documents():
            titles |= {schema["title"], *schema.get("$defs", {})}
    # Other tests define manifests of their own.
    ours = [kind for kind in Manifest.__subclasses__() if kind.__module__.startswith("fusestore.")]
    assert {kind.__name__ for kind in ours} <= titles


def file_pattern(path):
    pattern = re.sub(r"<\w+>", "[^/]+", path.replace(".", r"\."))
    return re.compile(pattern.replace("[local/]", "(local/)?"))


def test_every_manifest_of_a_store_fits_its_schema(generated, store):
    found = set()
    loaded = json_schemas(generated)
    for path in sorted(store.rglob("*.json")):
        inside = path.relative_to(store).as_posix()
        ours = path.name in ("fingerprint.json", "manifest.json")
        hugging_face = inside.startswith("models/") and not ours
        if path.name == "zarr.json" or hugging_face:
            continue
        names = [
            name
            for name, (_, file) in schemas.documents().items()
            if file_pattern(file).fullmatch(inside)
        ]
        content = json.loads(path.read_bytes())
        if len(names) > 1:
            # Trained and merged models lie side by side, and receipts of both forms.
            names = [
                name
                for name in names
                if jsonschema.Draft202012Validator(loaded[name]).is_valid(content)
            ]
        assert len(names) == 1, f"{inside} is described by {names}"
        check(content, loaded[names[0]])
        found.add(names[0])
    assert found == schemas.documents().keys() - {"train-state"}


def check(content, schema):
    """The content fits; with a key more, or without its checksum, it does not."""
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
        jsonschema.validate({**content, "surplus": 1}, schema)
    with pytest.raises(jsonschema.ValidationError, match="checksum"):
        jsonschema.validate({k: v for k, v in content.items() if k != "checksum"}, schema)
    with pytest.raises(jsonschema.ValidationError, match="maximum"):
        jsonschema.validate({**content, "format_version": 99}, schema)


def test_train_state_fits_its_schema(generated, store):
    finished = TrainingManifest.load(Location.parse(store / "models/trained/manifest.json"))
    state = TrainState(
        plan=finished.plan,
        step=1,
        num_tokens=finished.num_tokens,
        loss_curve=finished.loss_curve,
        evaluations=finished.evaluations,
    )
    check(json.loads(state.to_bytes()), json_schemas(generated)["train-state"])


def test_recipe_of_a_store_fits_its_schema(generated, store):
    plan = json.loads((store / "fused/fused/fingerprint.json").read_bytes())
    schema = json_schemas(generated)["recipe"]
    jsonschema.validate(plan["recipe"], schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**plan["recipe"], "unaligned": "guess"}, schema)


FILES = [FUSION, *(path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.toml"))]


@pytest.mark.parametrize("text", FILES)
def test_fusion_file_fits_its_schema(generated, text):
    jsonschema.validate(tomllib.loads(text), json_schemas(generated)["fusion"])


@pytest.mark.parametrize(
    "mistake",
    [
        "[capture]\ntop_kk = 3",
        "[capture]\ntop_k = 0",
        "[models.left]\nmodell = 'x'",
        "[train.runs.left]\nlm_weight = 2.0",
        "[train]\nsettings = 1",
        "[fuse]\ntarget = 'x'",
        "[fuse.datasets.one]\nsourcess = ['left']",
        "[merge.both]\nmodels = []",
        "[merge.both]\nmodels = ['trained', 'trained']\nmethod = 'mean'",
        "[corpus]\ninputs = []",
        "typo = 1",
    ],
)
def test_mistakes_in_a_fusion_file_are_refused_by_schema_and_loader(generated, mistake, tmp_path):
    """Each mistake alone, in an otherwise sound file, is found by both."""
    sound = tomllib.loads(FUSION)
    wrong = merged(sound, tomllib.loads(mistake))
    if mistake.startswith("[fuse]"):
        del wrong["fuse"]["sources"]
    schema = json_schemas(generated)["fusion"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match=r"wrong\.json"):
        load_config(Location.parse(tmp_path / "wrong.json"))


def merged(base, other):
    result = dict(base)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def test_every_table_of_a_store_has_the_published_columns(generated, store):
    published = json.loads(generated["tables.json"])
    found = set()
    for path in sorted(store.rglob("*.parquet")):
        inside = path.relative_to(store).as_posix()
        [name] = [
            name
            for name, table in published.items()
            if file_pattern(table["file"]).fullmatch(inside)
        ]
        found.add(name)
        table = pl.read_parquet(io.BytesIO(path.read_bytes()))
        columns = published[name]["columns"]
        assert table.columns == [column["name"] for column in columns]
        assert table.schema == schemas.tables()[name].schema
        for column in columns:
            assert column["meaning"]
            assert column["nullable"] or table[column["name"]].null_count() == 0, (name, column)
    stored = {name for name, table in published.items() if not table["file"].startswith("none:")}
    assert found == stored
