"""What is downloaded of a model of the hub."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.hub_server import HubServer

CODE = """
import sys
from fusestore.models.model import Model
from fusestore.errors import FusestoreError
try:
    folder = Model.open("me/x", trust_remote_code=sys.argv[1] == "trusted").folder
except FusestoreError as error:
    sys.exit(str(error))
for path in folder.rglob("*"):
    if path.is_file():
        print(path.relative_to(folder))
"""

BESIDE = {
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("merges.txt", "tokenizer.model", "chat_template.jinja", "LICENSE", "NOTICE.txt", "README.md"),
    *("additional_chat_templates/tool_use.jinja", "preprocessor_config.json"),
}
CODE_FILES = {"modeling_own.py", "code/layers.py"}
NOT_NEEDED = {
    *("logo.png", "usage.md", "consolidated.safetensors", "model.fp16.safetensors"),
    *("tf_model.h5", "training_args.bin", "onnx/config.json", "onnx/model.onnx"),
    *("original/params.json", "original/consolidated.00.pth", "checkpoint-5/model.safetensors"),
}
PARTS = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}


@pytest.fixture
def fetched(tmp_path):
    """Downloads from a hub with these files and returns the files that came, or the error."""

    def fetch(files, *, config=None, trusted=False):
        for name in files:
            path = tmp_path / "repository" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
        index = {"weight_map": {str(number): name for number, name in enumerate(sorted(PARTS))}}
        contents = {"config.json": config or {"model_type": "own"}}
        if "model.safetensors.index.json" in files:
            contents["model.safetensors.index.json"] = index
        for name, content in contents.items():
            (tmp_path / "repository" / name).write_text(json.dumps(content))
        with HubServer(tmp_path / "repository", "models/me/x") as server:
            names = {
                "HF_ENDPOINT": server.url,
                "HF_HOME": str(tmp_path / "hub"),
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            }
            done = subprocess.run(
                [sys.executable, "-c", CODE, "trusted" if trusted else "not"],
                env={**os.environ, **names},
                capture_output=True,
                text=True,
                check=False,
            )
            asked = {path.rpartition("/")[2] for path, _ in server.requests}
        return set(done.stdout.splitlines()), done.stderr.strip(), asked

    return fetch


def test_parts_and_what_belongs_to_them(fetched):
    index = {"model.safetensors.index.json"}
    torch = {"pytorch_model-00001-of-00001.bin"}
    files, error, _ = fetched(BESIDE | PARTS | index | CODE_FILES | NOT_NEEDED | torch)
    assert error == ""
    assert files == BESIDE | PARTS | index


def test_code_only_if_it_is_trusted_and_one_format(fetched):
    weights = {"model.safetensors", "pytorch_model.bin"}
    files, error, _ = fetched(BESIDE | weights | CODE_FILES | NOT_NEEDED, trusted=True)
    assert error == ""
    assert files == BESIDE | CODE_FILES | {"model.safetensors"}


def test_weights_of_torch_if_there_are_no_others(fetched):
    files, error, _ = fetched(BESIDE | NOT_NEEDED | {"pytorch_model.bin"})
    assert error == ""
    assert files == BESIDE | {"pytorch_model.bin"}


def test_another_kind_of_model_is_refused_before_its_weights_come(fetched):
    config = {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
    files, error, asked = fetched(BESIDE | {"model.safetensors"}, config=config)
    assert files == set()
    assert error.startswith("me/x is an encoder-decoder (T5ForConditionalGeneration)")
    assert "model.safetensors" not in asked
