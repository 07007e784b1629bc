"""Models and tokenizers small enough to make in a test, and texts for them."""

# ruff: noqa: S106 - the tokens of a tokenizer are not passwords

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

TEXTS = (
    "The state of the Union is strong, and the Union shall stand.",
    "We the people of these States ask little and give much.",
    "Peace abroad. Liberty at home. A fair wage for a day's work.",
    "Fellow citizens of the Senate and of the House: the treasury is sound, the harvest was "
    "plentiful, and no nation threatens our commerce.",
    "Naïve café — ½ of it.",
    "So be it.",
)

SCRIPTS = 4 * (
    "The quick brown fox jumps over the lazy dog and does not look back.",
    "Fellow citizens of the Senate and of the House of Representatives:",
    "Größe, naïveté, 東京 and 🦊 stand in this line so that the pieces know them.",
)
"""Lines for a tokenizer that also knows a few characters of other scripts."""

SHAPE = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""What a tiny model of any family looks like, in the names of `PreTrainedConfig`."""


def make_model(family: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of a family of transformers (`gpt2`, `gemma2`, …), ready to be evaluated.

    Args:
        family: the `model_type` of its configuration.
        seed: of its weights.
        changes: keys of its configuration that are not as in `SHAPE`.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**SHAPE, **changes})
    return AutoModelForCausalLM.from_config(config).eval()


def make_llama(
    vocab_size: int, *, context: int = 128, seed: int = 0, **changes: Any
) -> LlamaForCausalLM:
    """A random Llama with its own output embeddings, sharp enough to have opinions."""
    settings = {
        "vocab_size": vocab_size,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return cast("LlamaForCausalLM", make_model("llama", seed=seed, **{**settings, **changes}))


def longrope(switch: int = 16) -> PreTrainedModel:
    """A Phi-3 whose frequencies are others in documents of more than `switch` tokens."""
    parameters = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": 4 * [1.0],
        "long_factor": 4 * [4.0],
        "original_max_position_embeddings": switch,
    }
    return make_model(
        "phi3",
        initializer_range=0.2,
        max_position_embeddings=8 * switch,
        original_max_position_embeddings=switch,
        rope_parameters=parameters,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
    )


def save_model(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None
) -> Path:
    """Write a Hugging Face folder; without a tokenizer when it is None."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def train_tokenizer(
    texts: Sequence[str], vocab_size: int, *, adds_bos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `vocab_size` ids, `<s>` and `</s>` among them."""
    backend = tokenizers.Tokenizer(models.BPE())
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


def train_byte_fallback(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Sentencepiece-style BPE with `▁`, byte fallback and a BOS of its own."""
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    content = json.loads(backend.to_str())
    # The trainer knows byte tokens only as special ones; to a model they are ordinary.
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 3]
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def train_word_piece(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """WordPiece with BERT's normalizer: lower case, no accents, control characters deleted."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]"
    )


def train_unigram(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Unigram with Metaspace, NFKC and no byte fallback: text outside its alphabet is unknown."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
