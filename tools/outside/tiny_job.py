"""A whole fusion of two tiny models in a new folder, from texts to a trained model.

    python tiny_job.py FOLDER

Imports nothing but fusestore and what it depends on: `tools.check_release` runs it in environments
that hold only those.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import fusestore as fs

WORDS = ("congress", "nation", "people", "peace", "freedom", "budget", "future", "children")
TEXTS = [
    " ".join(WORDS[(i * j + j * j) % len(WORDS)] for j in range(1, 60)) + "." for i in range(12)
]


def make_model(folder: Path, vocab_size: int, seed: int) -> None:
    """A Llama of random weights and its byte-level BPE."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS, trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<s>").save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=bpe.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def main(folder: Path) -> None:
    """Make everything, and check what must hold."""
    (folder / "texts").mkdir(parents=True)
    for number, text in enumerate(TEXTS):
        (folder / "texts" / f"{number}.txt").write_text(text, encoding="utf-8")
    make_model(folder / "large", 330, seed=1)
    make_model(folder / "small", 280, seed=2)
    names = [str(folder / name) for name in ("large", "small")]
    store = fs.open_store(str(folder / "my.store"))
    corpus = store.build_corpus(
        "texts",
        [str(folder / "texts/*.txt")],
        fs.CorpusSettings(held_out_pattern=("1*.txt",), max_length=128),
        tokenizers=names,
    )
    settings = fs.CaptureSettings(top_k=8)
    large = store.capture("large", names[0], corpus, settings)
    store.capture("small", names[1], corpus, settings)
    store.align(large, target="small")
    recipe = fs.Recipe(sources=["large", "small"], target="small", window_length=64)
    store.forecast(recipe)
    fused = store.fuse("fused", recipe)
    training = fs.TrainSettings(max_steps=4, batch_size=2, precision="float32")
    store.train("trained", names[1], fused, training, evaluate=("texts", "held_out"))
    findings = store.verify()
    assert len(findings) >= 6
    assert not any(findings.values()), findings
    batch = fs.data.collate([fused.dataset()[0]])
    assert batch["input_ids"].shape[1] <= 64


if __name__ == "__main__":
    main(Path(sys.argv[1]))
