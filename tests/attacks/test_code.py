"""Reading a store runs no code of it, and no question about that is asked on a terminal.

Faults 3, 17 and 20 of the trial, and their kind.
"""

import ast
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import fusestore
from fusestore.errors import InvalidInputError
from fusestore.models.model import Model
from fusestore.models.stored_files import check_stored_files
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.train.student.base_files import copy_base_files
from tests.helpers.command import PROGRAM
from tests.helpers.fork_server import python
from tests.helpers.slow_rest import first

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Path({marker!r}).write_text("code ran")

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""

AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}


def change(file, **values):
    content = json.loads(file.read_bytes()) if file.exists() else {}
    file.write_text(json.dumps({**content, **values}))


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


@pytest.fixture
def evil(store, marker):
    """A model of the store with code of its own, which transformers does not know."""
    folder = store / "models/fused"
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    change(
        folder / "config.json",
        auto_map=AUTO_MAP, model_type="own_llama", architectures=["OwnForCausalLM"],
    )  # fmt: skip
    return folder


# Fault 3: compare and train asked "run the custom code? [y/N]" on the terminal.

COMMANDS = {
    "compare": ["compare", "--evaluate", "addresses/held_out"],
    "train": ["train", "fused", "--name", "new", "--fused", "mince", "--max-steps", "1"],
    "train_path": ["train", "{evil}", "--name", "new", "--fused", "mince", "--max-steps", "1"],
    "capture": ["capture", "fused", "--name", "new", "--corpus", "addresses"],
    "merge": ["merge", "fused", "merged", "--name", "new"],
    "estimate": ["estimate", "fused", "--corpus", "addresses"],
    "fit": ["fit", "fused"],
    "align": ["align", "wide", "--target", "fused"],
}


@pytest.mark.parametrize("name", first(2, COMMANDS))
def test_no_command_runs_code_of_a_model(command, store, evil, marker, monkeypatch, name):
    def asked(*_):
        raise AssertionError("asked on a terminal")

    monkeypatch.setattr("builtins.input", asked)
    arguments = [each.format(evil=evil) for each in COMMANDS[name]]
    outcome = command(*arguments, *(["--store", store]))
    assert "defect" not in outcome.err
    assert not marker.exists()
    if name in ("train", "capture", "merge", "estimate"):
        assert outcome.code == 1
        assert "--trust-remote-code" in " ".join(outcome.err.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compare", "train", "train_path"])
@pytest.mark.parametrize("terminal", [True, False])
def test_an_answer_that_waits_on_standard_input_is_not_read(store, evil, marker, name, terminal):
    """`yes |`, and a user who has typed y on a terminal."""
    arguments = [each.format(evil=evil) for each in COMMANDS[name]]
    main, other = os.openpty() if terminal else os.pipe()[::-1]
    os.write(main, b"y\n" * 8)
    process = subprocess.run(
        [python(), "-c", PROGRAM, *arguments, "--store", store],
        stdin=other, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    os.close(main), os.close(other)
    assert b"[y/N]" not in process.stdout + process.stderr
    assert not marker.exists()


def test_every_call_says_whether_code_may_run():
    """Where transformers is not told, it asks on standard input."""
    missing = []
    for folder in (Path(fusestore.__file__).parent, Path("cli")):
        for file in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_bytes())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    named = {keyword.arg for keyword in node.keywords}
                    quantizer = ast.unparse(node.func.value) == "AutoHfQuantizer"
                    if (
                        not quantizer
                        and node.func.attr in ("from_pretrained", "from_config")
                        and "trust_remote_code" not in named
                    ):
                        missing.append(f"{file}:{node.lineno}")
    assert missing == []


# Models inside a store: no code, no pickles, no kernels of others.


@pytest.mark.parametrize(
    ("file", "values"),
    first(
        2,
        [
            ("config.json", {"attn_implementation": "kernels-community/flash-attn"}),
            ("config.json", {"auto_map": AUTO_MAP}),
            ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}),
            ("generation_config.json", {"nested": [{"auto_map": {"x": "y--own.Z"}}]}),
            ("processor_config.json", {"auto_map": {"AutoProcessor": "own.P"}}),
            ("config.json", {"text_config": {"_attn_implementation": "a/b:c"}}),
            ("config.json", {"experts_implementation": {"": "a/b"}}),
        ],
    ),
)
def test_a_model_of_a_store_names_no_code(store, file, values):
    change(store / "models/fused" / file, **values)
    with pytest.raises(InvalidInputError, match=rf"{file} (names|has)"):
        _ = Model.open("fused", store=Store.open(store)).folder
    if "auto_map" in json.dumps(values):
        _ = Model.open("fused", store=Store.open(store), trust_remote_code=True).folder
    else:
        with pytest.raises(InvalidInputError, match="kernels"):
            _ = Model.open("fused", store=Store.open(store), trust_remote_code=True).folder


class Evil:
    def __reduce__(self):
        return (os.system, ("touch {marker}",))


@pytest.mark.parametrize(
    "name", first(2, ["pytorch_model.bin", "deep/y.pkl", "x.PT", "model.ckpt", "optimizer.pth"])
)
def test_a_model_of_a_store_holds_no_pickles(command, store, marker, name):
    """Fault 17: they ended as a defect of fusestore."""
    file = store / "models/fused" / name
    file.parent.mkdir(exist_ok=True)
    torch.save(Evil(), file)
    if name == "pytorch_model.bin":
        (store / "models/fused/model.safetensors").unlink()
    message = command.fails("train", "fused", "--name", "n", "--fused", "mince", "-s", store)
    assert f"{file.name}, a file of pickles" in message
    assert "save_pretrained" in message
    with pytest.raises(InvalidInputError, match="pickles"):
        _ = Model.open("fused", store=Store.open(store), trust_remote_code=True).folder
    assert not marker.exists()


def test_weights_by_another_name_are_safetensors_too(store):
    folder = store / "models/fused"
    shutil.move(folder / "model.safetensors", folder / "weights.data")
    change(folder / "config.json", transformers_weights="weights.data")
    with pytest.raises(InvalidInputError, match="safetensors"):
        _ = Model.open("fused", store=Store.open(store)).folder


def test_the_models_of_the_kept_store_are_accepted(store):
    for name in ("fused", "merged"):
        location = Store.open(store).model(name)
        check_stored_files(location, name, trust_remote_code=False)


def test_a_model_made_without_code_names_none(tmp_path):
    """Its base names code, but transformers knew it: else the new model would be refused."""
    base, folder = tmp_path / "base", tmp_path / "new"
    base.mkdir(), folder.mkdir()
    change(base / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.T", None]}, x=1)
    (base / "own.py").write_text("")
    change(folder / "config.json", auto_map=AUTO_MAP, model_type="llama")
    copy_base_files(base, folder, with_code=False)
    assert json.loads((folder / "config.json").read_bytes()) == {"model_type": "llama"}
    assert json.loads((folder / "tokenizer_config.json").read_bytes()) == {"x": 1}
    assert not (folder / "own.py").exists()
    check_stored_files(Location.parse(folder), "new", trust_remote_code=False)


# Fault 20: a fusion.toml that sets trust was obeyed without a word.

TOML = """
store = "{store}"
plugins = ["json"]

[corpus]
name = "addresses"
inputs = ["{texts}"]

[models.small]
model = "{model}"
trust_remote_code = true

[fuse]
sources = ["small"]
target = "small"
strategy = "uniform"
"""


def test_a_file_that_has_code_run_is_told(command, store, tmp_path):
    (tmp_path / "texts.txt").write_text("a text\n")
    (tmp_path / "nothing").mkdir()
    file = tmp_path / "fusion.toml"
    file.write_text(
        TOML.format(store=store, texts=tmp_path / "texts.txt", model=tmp_path / "nothing")
    )
    for arguments in (["--dry-run"], ["--dry-run", "--json"], []):
        outcome = command("run", file, *arguments)
        told = " ".join(outcome.err.split())
        assert f"model small: Python code of {tmp_path}/nothing runs" in told
        assert "trust_remote_code = true" in told
        assert "plugin json was imported" in told
