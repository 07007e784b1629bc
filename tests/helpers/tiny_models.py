"""Tokenizers and Llamas small enough to make in a test, and texts for them."""

# ruff: noqa: S106 - the tokens of a tokenizer are not passwords

from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXTS = (
    "The state of the Union is strong, and the Union shall stand.",
    "We the people of these States ask little and give much.",
    "Peace abroad. Liberty at home. A fair wage for a day's work.",
    "Fellow citizens of the Senate and of the House: the treasury is sound, the harvest was "
    "plentiful, and no nation threatens our commerce.",
    "Naïve café — ½ of it.",
    "So be it.",
)


def train_tokenizer(
    texts: Sequence[str], vocab_size: int, *, adds_bos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `vocab_size` ids, `<s>` and `</s>` among them."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def make_llama(vocab_size: int, *, context: int = 128, seed: int = 0) -> LlamaForCausalLM:
    """A random Llama with its own output embeddings, sharp enough to have opinions."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


def save_model(
    folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast | None
) -> Path:
    """Write a Hugging Face folder; without a tokenizer when it is None."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder
