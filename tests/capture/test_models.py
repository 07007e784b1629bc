"""Finding and loading models: what is not there is said at once, and what to do about it."""

import sys

import pytest
import torch

from fusestore.errors import (
    InvalidInputError,
    MissingDependencyError,
    NotFoundError,
)
from fusestore.models.gguf_conversion import convert_gguf
from fusestore.models.loading import (
    load_model,
    local_model_folder,
    model_digest,
    pick_device,
)
from tests.helpers.tiny_models import make_llama, save_model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny", make_llama(50), None)


def test_folder_is_itself(model_path, monkeypatch):
    assert local_model_folder(str(model_path)) == model_path
    monkeypatch.chdir(model_path.parent)
    assert local_model_folder("tiny") == model_path
    assert local_model_folder("./tiny") == model_path


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("./nowhere", "Model folder ./nowhere does not exist"),
        ("/no/such/folder", "does not exist"),
        ("a/b/c", "Model folder a/b/c does not exist"),
        ("nowhere.gguf", "Model file nowhere.gguf does not exist"),
        ("package:no-such-model", "pip install no-such-model"),
        ("nobody/no-such-model", "neither a local folder nor reachable on the hub"),
        ("not a name!", "neither a local folder nor reachable on the hub"),
    ],
)
def test_what_is_not_there(spec, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError, match=match):
        local_model_folder(spec)


def test_folder_without_config(tmp_path):
    with pytest.raises(NotFoundError, match=r"no config\.json .*save_pretrained"):
        local_model_folder(str(tmp_path))


def test_gguf_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSESTORE_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(MissingDependencyError, match=r"pip install 'fusestore\[gguf\]'"):
        convert_gguf(tmp_path / "model.gguf")
    assert not list((tmp_path / "home").iterdir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_model_is_loaded_in_the_dtype_asked_for(model_path, dtype):
    model = load_model(model_path, dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert not model.training


def test_unknown_dtype(model_path):
    with pytest.raises(InvalidInputError, match="'int4'; choose one of float32, bfloat16"):
        load_model(model_path, dtype="int4")


def test_folder_that_holds_no_causal_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no_such_type"}')
    with pytest.raises(InvalidInputError, match="No causal language model loads from"):
        load_model(tmp_path, device="cpu")


def test_folder_without_weights(model_path, tmp_path):
    (tmp_path / "config.json").write_bytes((model_path / "config.json").read_bytes())
    with pytest.raises(NotFoundError, match="There are no weights in"):
        load_model(tmp_path, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_that_is_not_there(model_path):
    for device in ("cuda", "cuda:1"):
        with pytest.raises(InvalidInputError, match=f"'{device}' was asked for"):
            pick_device(device)
    with pytest.raises(InvalidInputError, match="CUDA is not available"):
        load_model(model_path, device="cuda")


def test_device_by_name():
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in ("cpu", "cuda", "mps")


def test_digest_is_of_configuration_and_weights(model_path, tmp_path):
    copy = save_model(tmp_path / "copy", make_llama(50), None)
    assert model_digest(copy) == model_digest(model_path)
    (copy / "README.md").write_text("a note")
    assert model_digest(copy) == model_digest(model_path)
    other = save_model(tmp_path / "other", make_llama(50, seed=1), None)
    assert model_digest(other) != model_digest(model_path)
    (copy / "config.json").write_bytes((copy / "config.json").read_bytes() + b"\n")
    assert model_digest(copy) != model_digest(model_path)


def test_damaged_gguf(tmp_path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(range(60)))
    with pytest.raises(InvalidInputError, match=r"damaged\.gguf could not be read"):
        local_model_folder(str(damaged))
