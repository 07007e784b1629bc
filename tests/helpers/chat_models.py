"""Tokenizers with chat templates of the usual kinds, small models of them, and conversations."""

import json

from fusestore.tokenizers.tokenizer import Tokenizer, chat_encoder
from tests.helpers.tiny_models import TEXTS, train_byte_fallback, train_tokenizer

CHATML = """\
{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}
{%- for m in messages %}
{{- '<|im_start|>' + m['role'] + '\n' + (m['content'] or '') }}
{%- for call in m['tool_calls'] or [] %}{{ '\n<call>' + call['function']['name'] }}{% endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
"""A default system prompt, a line feed after each header, text after the last turn."""

HEADERS = """\
{{- bos_token }}
{%- for m in messages %}
{{- '<|header|>' + m['role'] + '<|end_header|>\n\n' + m['content'] | trim + '<|end|>' }}
{%- endfor %}"""
"""BOS, contents that are trimmed, a turn that ends by its marker."""

INSTRUCTIONS = """\
{{- bos_token }}
{%- for m in messages %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}
{%- elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}
{%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}
{%- endif %}
{%- endfor %}"""
"""A space before an answer, which is merged with it; no system turns; EOS ends a turn."""

PREFIXED = """\
{{- bos_token }}
{%- set system = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}
{%- for m in messages if m['role'] != 'system' %}
{{- '<|turn|>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}
{{- (system if loop.first else '') + m['content'] | trim + '<|close|>\n' }}
{%- endfor %}"""
"""The system's text before the first turn of the user, and a role by another name."""

TEMPLATES = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"]),
    "headers": (HEADERS, ["<|header|>", "<|end_header|>", "<|end|>"]),
    "instructions": (INSTRUCTIONS, []),
    "prefixed": (PREFIXED, ["<|turn|>", "<|close|>"]),
}
"""Templates, with their markers, by name."""

QUESTIONS = tuple(f"What does line {number} say?" for number in range(len(TEXTS)))


def conversation(number: int) -> list[dict[str, str]]:
    """Two exchanges, of other texts for every number."""
    first, second = number % len(TEXTS), (number + 2) % len(TEXTS)
    return [
        {"role": "user", "content": QUESTIONS[first]},
        {"role": "assistant", "content": TEXTS[first]},
        {"role": "user", "content": f"And line {second}, in answer {number}?"},
        {"role": "assistant", "content": TEXTS[second]},
    ]


def chat_tokenizer(name: str, vocab_size: int = 330, *, pieces: bool = False):
    """A Hugging Face tokenizer with one of `TEMPLATES`; `pieces` for one with byte fallback."""
    template, markers = TEMPLATES[name]
    texts = [*TEXTS, *QUESTIONS, *(f"[INST] {text}" for text in QUESTIONS)]
    train = train_byte_fallback if pieces else train_tokenizer
    tokenizer = train(texts, vocab_size + 100 * pieces)
    tokenizer.add_special_tokens({"additional_special_tokens": markers})
    tokenizer.chat_template = template
    return tokenizer


def encoder_and_tokenizer(name: str, **options):
    """The encoder of `chat_tokenizer`, and that tokenizer."""
    hugging_face = chat_tokenizer(name, **options)
    return chat_encoder(Tokenizer(hugging_face, name), {}), hugging_face


def write_conversations(path, count: int, **others):
    """JSON lines of `conversation`, with the same other fields in each."""
    rows = [{"messages": conversation(number), **others} for number in range(count)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path
