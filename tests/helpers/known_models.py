"""Configurations of well-known models, by the fields that decide their size, and what is known."""

from functools import cache
from typing import Any, NamedTuple

from transformers import AutoConfig

from fusestore.models.model_shape import ModelShape, config_shape


class Known(NamedTuple):
    """Attributes: the configuration, the number of parameters, and numbers cached for a token."""

    config: dict[str, Any]
    parameters: int
    kv_size: int


FP8 = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}

KNOWN = {
    "Llama-3.1-70B": Known(
        {
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": False,
        },
        70_553_706_496,
        80 * 2 * 8 * 128,
    ),
    # Without the layer that predicts further tokens, which no class of transformers has.
    "DeepSeek-V3": Known(
        {
            "model_type": "deepseek_v3",
            "vocab_size": 129280,
            "hidden_size": 7168,
            "intermediate_size": 18432,
            "moe_intermediate_size": 2048,
            "num_hidden_layers": 61,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "n_shared_experts": 1,
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 3,
            "kv_lora_rank": 512,
            "q_lora_rank": 1536,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "tie_word_embeddings": False,
            "quantization_config": FP8,
        },
        671_026_404_352,
        61 * (512 + 64),
    ),
    "gpt-oss-120b": Known(
        {
            "model_type": "gpt_oss",
            "vocab_size": 201088,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 36,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "tie_word_embeddings": False,
            "quantization_config": {"quant_method": "mxfp4"},
        },
        116_829_156_672,
        36 * 2 * 8 * 64,
    ),
    "Qwen3-30B-A3B": Known(
        {
            "model_type": "qwen3_moe",
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "tie_word_embeddings": False,
        },
        30_532_122_624,
        48 * 2 * 4 * 128,
    ),
}


@cache
def known_shape(name: str) -> ModelShape:
    """The shape of one of them."""
    settings = dict(KNOWN[name].config)
    return config_shape(AutoConfig.for_model(settings.pop("model_type"), **settings), name)
