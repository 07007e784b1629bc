"""A GGUF file becomes a folder with all its tensors, or nothing."""

import shutil

import gguf
import numpy as np
import pytest
import torch

from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.models.gguf_conversion import convert_gguf
from fusestore.models.loading import load_model, local_model_folder
from tests.helpers.gguf_files import write_gguf
from tests.helpers.tiny_models import TEXTS, make_llama, train_tokenizer

VOCAB = 300


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, VOCAB)


@pytest.fixture(scope="module")
def model():
    return make_llama(VOCAB)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user cache folder of its own."""
    monkeypatch.setenv("FUSESTORE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def kept(home):
    """Files and folders below the user cache, without the memory of digests."""
    return [path for path in home.rglob("*") if "remembered" not in path.name and path.is_file()]


def logits(model, text=(5, 70, 200, 31)):
    with torch.no_grad():
        return model(torch.tensor([text])).logits


def test_a_whole_file(home, tmp_path, model, tokenizer):
    [file] = write_gguf(tmp_path / "m.gguf", model, tokenizer)
    folder = local_model_folder(str(file))
    assert folder.parent == home / "models"
    assert folder.name.startswith("m-")
    torch.testing.assert_close(logits(load_model(folder, device="cpu")), logits(model))
    file.rename(tmp_path / "other.gguf")
    again = write_gguf(tmp_path / "m.gguf", model, tokenizer)[0]
    assert convert_gguf(again) == folder


def test_tied_weights_with_and_without_their_copy(home, tmp_path, tokenizer):
    tied = make_llama(VOCAB, tie_word_embeddings=True)
    [file] = write_gguf(tmp_path / "tied.gguf", tied, tokenizer)
    torch.testing.assert_close(logits(load_model(convert_gguf(file), device="cpu")), logits(tied))

    def twice(tensors):
        return tensors | {"output.weight": tensors["token_embd.weight"]}

    [file] = write_gguf(tmp_path / "twice.gguf", tied, tokenizer, twice)
    torch.testing.assert_close(logits(load_model(convert_gguf(file), device="cpu")), logits(tied))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: {k: v for k, v in tensors.items() if "blk.1.ffn_down" not in k},
            "1 weight of .* is missing: model.layers.1.mlp.down_proj.weight",
        ),
        (
            lambda tensors: dict(list(tensors.items())[: len(tensors) // 2]),
            "weights of .* are missing: .* more",
        ),
        (
            lambda tensors: tensors | {"blk.1.ffn_down.weight": np.zeros((8, 64), np.float32)},
            r"down_proj.weight is \[8, 64\] in the file and \[32, 64\] in the model",
        ),
        (
            lambda tensors: tensors | {"rope_factors_long.weight": np.ones(4, np.float32)},
            "tensors that it does not read: rope_factors_long.weight",
        ),
        (
            lambda tensors: tensors | {"blk.2.ffn_down.weight": np.zeros((32, 64), np.float32)},
            "tensors that it does not read: blk.2.ffn_down.weight",
        ),
    ],
    ids=["layer", "half", "shape", "unknown", "layer-too-many"],
)
def test_tensors_that_do_not_fit(home, tmp_path, model, tokenizer, change, message):
    [file] = write_gguf(tmp_path / "m.gguf", model, tokenizer, change)
    with pytest.raises(InvalidInputError, match=message) as caught:
        convert_gguf(file)
    assert str(file) in str(caught.value)
    assert kept(home) == []


def test_scaled_rotary_frequencies(home, tmp_path, tokenizer):
    """Llama 3.1 and later have them; transformers reads the file without."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    scaled = make_llama(VOCAB, head_dim=16, rope_parameters=rope)
    plain = 500_000.0 ** -(torch.arange(8) / 8)
    factors = (plain / scaled.model.rotary_emb.inv_freq).numpy()

    def with_factors(tensors, factors=factors):
        return tensors | {"rope_freqs.weight": factors}

    [file] = write_gguf(tmp_path / "m.gguf", scaled, tokenizer, with_factors)
    converted = load_model(convert_gguf(file), device="cpu")
    text = tuple(np.random.default_rng(0).integers(0, VOCAB, 100))
    torch.testing.assert_close(logits(converted, text), logits(scaled, text))
    assert converted.config.rope_parameters["factor"] == 32

    def with_others(tensors):
        return with_factors(tensors, np.full(8, 2, np.float32))

    [file] = write_gguf(tmp_path / "other.gguf", scaled, tokenizer, with_others)
    with pytest.raises(InvalidInputError, match=r"does not read: rope_freqs\.weight"):
        convert_gguf(file)


def test_scaling_that_the_metadata_names(home, tmp_path, model, tokenizer):
    scaling: dict[str, str | float] = {
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 8.0,
    }
    [file] = write_gguf(tmp_path / "m.gguf", model, tokenizer, metadata=scaling)
    with pytest.raises(InvalidInputError, match=r"rotary frequencies \(linear, by 8\)"):
        convert_gguf(file)
    assert kept(home) == []


def test_parts_are_read_whole(home, tmp_path, model, tokenizer):
    [one] = write_gguf(tmp_path / "one.gguf", model, tokenizer)
    parts = write_gguf(tmp_path / "m.gguf", model, tokenizer, tensors_per_part=8)
    assert [part.name for part in parts] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    folder = local_model_folder(str(parts[1]))
    assert folder.name.startswith("m-")
    assert "00" not in folder.name.rpartition("-")[0]
    assert {convert_gguf(part) for part in parts} == {folder}
    names = {path.name for path in folder.iterdir()}
    single = convert_gguf(one)
    assert names == {path.name for path in single.iterdir()}
    for name in names:
        assert (folder / name).read_bytes() == (single / name).read_bytes()
    assert list((home / "gguf").iterdir()) == []


def test_half_of_a_file_in_parts(home, tmp_path, model, tokenizer):
    parts = write_gguf(tmp_path / "m.gguf", model, tokenizer, tensors_per_part=8)
    parts[1].rename(tmp_path / "elsewhere.gguf")
    for part in (parts[0], parts[2]):
        with pytest.raises(NotFoundError, match=r"m-00002-of-00003.gguf is not in its folder"):
            convert_gguf(part)
    with pytest.raises(InvalidInputError, match=r"part 2 of 3, but its name says part 1 of 1"):
        convert_gguf(tmp_path / "elsewhere.gguf")
    shutil.copyfile(parts[0], parts[1])
    with pytest.raises(InvalidInputError, match=r"part 1 of 3, but its name says part 2 of 3"):
        convert_gguf(parts[0])
    assert kept(home) == []


def test_files_that_are_no_model(home, tmp_path, model, tokenizer):
    [file] = write_gguf(tmp_path / "m.gguf", model, tokenizer)
    data = file.read_bytes()
    cases = [
        (data[:-20_000], "may be cut off"),
        (data[:300], "may be cut off"),
        (data[:10], "may be cut off"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ]
    for damaged, message in cases:
        file.write_bytes(damaged)
        with pytest.raises(InvalidInputError, match=message):
            convert_gguf(file)
    [file] = write_gguf(tmp_path / "a.gguf", model, tokenizer, kind="adapter")
    with pytest.raises(InvalidInputError, match="of type 'adapter', not a model"):
        convert_gguf(file)
    [file] = write_gguf(tmp_path / "s.gguf", model, tokenizer, architecture="no-such-thing")
    with pytest.raises(InvalidInputError, match=r"architecture 'no-such-thing'.* not supported"):
        convert_gguf(file)
    assert kept(home) == []


def test_a_conversion_that_ends_early_leaves_nothing(home, tmp_path, model, tokenizer, monkeypatch):
    [file] = write_gguf(tmp_path / "m.gguf", model, tokenizer)

    def broken(*_):
        raise InvalidInputError("No space left.")

    monkeypatch.setattr("fusestore.models.gguf_conversion.save_model", broken)
    with pytest.raises(InvalidInputError, match="No space left"):
        convert_gguf(file)
    assert kept(home) == []


def test_what_lies_beside_the_file_is_not_read(home, tmp_path, model, tokenizer):
    [file] = write_gguf(tmp_path / "m.gguf", model, tokenizer)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    torch.testing.assert_close(logits(load_model(convert_gguf(file), device="cpu")), logits(model))


def test_quantized_parts_are_joined_as_they_are(home, tmp_path, model, tokenizer):
    """The blocks of a quantized tensor are copied, not made again."""
    kind = gguf.GGMLQuantizationType.Q8_0
    [one] = write_gguf(tmp_path / "one.gguf", model, tokenizer, quantization=kind)
    parts = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantization=kind, tensors_per_part=5)
    assert len(parts) == 5
    read = [load_model(convert_gguf(path), device="cpu") for path in (one, parts[0])]
    torch.testing.assert_close(logits(read[1]), logits(read[0]), rtol=0, atol=0)
    torch.testing.assert_close(logits(read[0]), logits(model), rtol=0.1, atol=0.1)
