"""Whatever is wrong is named with what to do about it, and the store stays as it was."""

import json
import shutil

import pytest
import torch

from fusestore.corpus.corpus import open_corpus
from fusestore.storage.location import Location
from fusestore.store.manifest import canonical_json, digest_bytes
from tests.helpers.moto_credentials import set_free_requests
from tests.helpers.stage_commands import stages
from tests.helpers.tiny_job import NUM_DOCUMENTS, hashes, save_llama, write_fusion


@pytest.fixture
def unchanged(store):
    """Checks at the end that the store's files are those of the beginning."""
    before = hashes(Location.parse(store))
    yield store
    assert hashes(Location.parse(store)) == before


def corpus_command(job, store, inputs, *options):
    return ["corpus", str(inputs), "--store", str(store), "-t", f"{job}/small", *options]


@pytest.mark.parametrize("model", ["./no-such-folder", "no-such-model", "package:no-such-package"])
def test_no_such_model(command, unchanged, model):
    message = command.fails(
        "capture", model, "--store", unchanged, "--name", "new", "--corpus", "addresses"
    )
    assert model.removeprefix("package:") in message
    assert any(word in message for word in ("does not exist", "Check the name", "pip install"))


def test_a_folder_without_a_model(command, unchanged, tmp_path):
    (tmp_path / "empty").mkdir()
    message = command.fails("train", tmp_path / "empty", "--store", unchanged, "--fused", "mince")
    assert "empty" in message
    assert "config.json" in message


def test_no_such_text(command, unchanged, job):
    message = command.fails(*corpus_command(job, unchanged, "nowhere/*.txt", "--name", "new"))
    assert "nowhere" in message


def test_no_such_settings_file(command, tmp_path):
    assert "absent.toml does not exist" in command.fails("run", tmp_path / "absent.toml")


def test_text_column_absent(command, unchanged, job):
    inputs = job / "texts.jsonl"
    message = command.fails(
        *corpus_command(job, unchanged, inputs, "--text-column", "body", "--name", "new")
    )
    assert "body" in message
    assert "text" in message
    assert "texts.jsonl" in message


@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_empty_corpus(command, unchanged, job, tmp_path, content):
    (tmp_path / "blank.txt").write_text(content)
    message = command.fails(
        *corpus_command(job, unchanged, tmp_path / "blank.txt", "--name", "new")
    )
    assert "new" in message or "blank.txt" in message
    assert "empty" in message or "white space" in message


def test_bytes_that_are_not_utf_8(command, unchanged, job, tmp_path):
    (tmp_path / "latin.txt").write_bytes("Señor".encode("latin-1"))
    message = command.fails(
        *corpus_command(job, unchanged, tmp_path / "latin.txt", "--name", "new")
    )
    assert "latin.txt" in message
    assert "UTF-8" in message


def test_k_above_the_vocabulary(command, unchanged, job):
    message = command.fails(
        *["capture", f"{job}/small", "--name", "new", "--corpus", "addresses"],
        *["--store", unchanged, "--top-k", "2001"],
    )
    assert "2001" in message
    assert "2000" in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--profile", "tiny"], ["--profile", "'compact', 'lossless', 'fast'"]),
        (["--logprob-step", "0"], ["profile compact needs", "lossless"]),
        (["--profile", "lossless", "--logprob-step", "0.1"], ["lossless", "use profile compact"]),
    ],
)
def test_a_profile_that_cannot_be(command, unchanged, job, options, said):
    outcome = command(
        *["capture", f"{job}/small", "--name", "new", "--corpus", "addresses"],
        *["--store", unchanged, *options],
    )
    assert outcome.code == 2
    for part in said:
        assert part in " ".join(outcome.err.split())


def edit_manifest(path, **changes):
    """Write a manifest with other values and a checksum that fits them."""
    content = {**json.loads(path.read_bytes()), **changes}
    content.pop("checksum", None)
    content["checksum"] = digest_bytes(canonical_json(content))
    path.write_bytes(canonical_json(content))


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("corpora/addresses/manifest.json", "small"),
        ("caches/wide/manifest.json", "align"),
        pytest.param("caches/wide/fingerprint.json", "wide", marks=pytest.mark.slow),
        pytest.param("alignments/wide--small/manifest.json", "fuse", marks=pytest.mark.slow),
        pytest.param("fused/mince/manifest.json", "fused", marks=pytest.mark.slow),
        pytest.param("models/fused/manifest.json", "fused", marks=pytest.mark.slow),
    ],
)
def test_a_store_of_a_newer_format(command, store, job, tmp_path, file, stage):
    edit_manifest(store / file, format_version=2)
    before = hashes(Location.parse(store))
    fusion = write_fusion(tmp_path, job, str(store))
    for arguments in (stages(job, store)[stage], ["run", fusion]):
        message = command.fails(*arguments)
        assert file in message
        assert "format 2" in message
        assert "pip install -U fusestore" in message
    assert command("verify", "--store", store).code == 1
    assert hashes(Location.parse(store)) == before


def test_tokenizer_and_model_width_that_disagree(command, unchanged, job, tmp_path):
    model = tmp_path / "narrow"
    shutil.copytree(job / "small", model)
    save_llama(model, vocab_size=1000, hidden_size=16, seed=3)
    message = command.fails(
        "capture", model, "--name", "new", "--corpus", "addresses", "--store", unchanged
    )
    assert "2,000" in message
    assert "1,000" in message
    message = command.fails("train", model, "--name", "new", "--fused", "mince", "-s", unchanged)
    assert "narrow" in message
    assert "1000" in message


@pytest.fixture
def second_corpus(command, store, job, tmp_path):
    """The store with a second corpus, `other`, and a cache `elsewhere` over it."""
    lines = (job / "texts.jsonl").read_text().splitlines()[: NUM_DOCUMENTS // 2]
    (tmp_path / "fewer.jsonl").write_text("\n".join(lines) + "\n")
    fewer = corpus_command(job, store, tmp_path / "fewer.jsonl", "--name", "other")
    command.succeeds(*fewer, "--split-column", "split")
    command.succeeds(
        *["capture", f"{job}/small", "--name", "elsewhere", "--corpus", "other"],
        *["--top-k", "8", "--store", store],
    )
    return store


def test_caches_of_different_corpora(command, second_corpus, job):
    store = second_corpus
    before = hashes(Location.parse(store))
    message = command.fails(
        *["align", "wide", "--target", f"{job}/small", "--corpus", "other", "--store", store]
    )
    assert "wide" in message
    assert "addresses" in message
    assert "other" in message
    assert "Capture" in message
    message = command.fails(
        *["fuse", "--source", "small", "--source", "elsewhere", "--target", f"{job}/small"],
        *["--name", "new", "--corpus", "addresses", "--top-k", "8", "--store", store],
    )
    assert "elsewhere" in message
    assert "corpus" in message
    assert hashes(Location.parse(store)) == before


def test_a_source_that_is_missing(command, unchanged, job, tmp_path):
    fuse = ["fuse", "--target", f"{job}/small", "--corpus", "addresses", "--store", unchanged]
    message = command.fails(*fuse, "--name", "new", "--source", "small", "--source", "absent")
    assert "absent" in message
    assert "fusestore capture" in message
    (unchanged / "alignments/wide--small").rename(tmp_path / "elsewhere")
    message = command.fails(*fuse, "--name", "new", "--source", "wide")
    (tmp_path / "elsewhere").rename(unchanged / "alignments/wide--small")
    assert "wide" in message
    assert "fusestore align" in message
    message = command.fails("train", f"{job}/small", "--fused", "absent", "--store", unchanged)
    assert "absent" in message
    assert "fusestore fuse" in message


def test_a_bucket_that_does_not_exist(command, s3_url, job, tmp_path):
    fusion = write_fusion(tmp_path, job, "s3://no-such-bucket-here/store")
    for arguments in (
        ["run", fusion],
        ["ls", "--store", "s3://no-such-bucket-here/store"],
        ["verify", "--store", "s3://no-such-bucket-here/store"],
    ):
        message = command.fails(*arguments)
        assert "no-such-bucket-here" in message


def test_wrong_credentials(command, s3_url, s3_endpoint, job, tmp_path):
    fusion = write_fusion(tmp_path, job, f"{s3_url}/store")
    wrong = ["--storage-option", "key=AKIAWRONG", "--storage-option", "secret=wrong"]
    set_free_requests(s3_endpoint, "0")
    try:
        for arguments in (["run", fusion], ["ls", "--store", f"{s3_url}/store"]):
            message = command.fails(*arguments, *wrong)
            assert s3_url in message
            assert "AWS_" in message
            assert "wrong" not in message
    finally:
        set_free_requests(s3_endpoint, "inf")
    assert hashes(Location.parse(s3_url)) == {}


@pytest.fixture
def sick_model(job, tmp_path):
    """`small`, but the token `▁citizens` makes everything after it NaN."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "sick"
    shutil.copytree(job / "small", folder)
    tokens = json.loads((folder / "tokenizer.json").read_bytes())["model"]["vocab"]
    weights = load_file(folder / "model.safetensors")
    # Tied weights: one NaN in the row spoils that token's logit in every row; so untie first.
    config = json.loads((folder / "config.json").read_bytes())
    config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.embed_tokens.weight"][tokens["▁citizens"]] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_logits_that_are_not_finite(command, sick_model, store):
    before = hashes(Location.parse(store))
    capture = ["capture", sick_model, "--name", "sick", "--corpus", "addresses", "--store", store]
    message = command.fails(*capture)
    assert "not finite" in message
    assert "texts.jsonl" in message
    assert "--on-nan skip" in message
    after = hashes(Location.parse(store))
    assert {name: after[name] for name in before} == before
    # Begun, and no more: no rows, no manifest.
    begun = [name for name in after if name.startswith("caches/sick/")]
    assert "caches/sick/fingerprint.json" in begun
    assert not any("logprobs/c/" in name or "manifest" in name for name in begun)
    shutil.rmtree(store / "caches/sick")
    outcome = command.succeeds(*capture, "--on-nan", "skip", "--json")
    skipped = outcome.json["skipped_documents"]
    texts = open_corpus(store, "addresses").texts()
    expected = [index for index, text in enumerate(texts) if " citizens" in text]
    assert 0 < len(skipped) < len(texts)
    assert set(skipped) <= set(expected)
    assert "not finite" in outcome.err


@pytest.mark.parametrize(
    ("right", "wrong", "where"),
    [
        ("evaluate_split", "evalute_split", "fusion.toml"),
        ("split_column", "split_colum", "[corpus]"),
        ("top_k = 8\nrows_per_shard = 1024\nrows", "top_k = 8\nrow_per_shard = 1024\nrows", "rows"),
        ("sources", "source", "[fuse]"),
        ("learning_rate", "learning_rat", "[train"),
        ("objective", "objektive", "[train.runs"),
        ("[fuse]", "[fusee]", "fuse"),
    ],
)
def test_a_misspelt_key_is_told_with_the_right_one(
    command, unchanged, job, tmp_path, right, wrong, where
):
    message = command.fails("run", write_fusion(tmp_path, job, str(unchanged), (right, wrong)))
    assert "Did you mean" in message
    assert where in message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('target = "small"', 'target = "smal"', "smal"),
        ("max_steps = 4", 'max_steps = "four"', "max_steps"),
        ("top_k = 8", "top_k = 0", "top_k"),
        ("[capture]", "[capture", "not valid TOML"),
        ('name = "mince"', 'name = "../escape"', "../escape"),
        ('strategy = "mince"', 'strategy = "minc"', "Did you mean 'mince'"),
        ('name = "mince"', 'name = "mince"\nkinds = []', "kinds"),
        ('strategy = "mince"', 'strategy = "single"', "takes one source"),
        ('name = "mince"', 'name = "mince"\ncorpus = "other"', "[corpus] name"),
        ('target = "small"', "", "Add the model whose tokens are supervised"),
    ],
)
def test_a_value_that_does_not_fit_is_named(command, unchanged, job, tmp_path, old, new, expected):
    fusion = write_fusion(tmp_path, job, str(unchanged), (old, new))
    assert expected in command.fails("run", fusion)
