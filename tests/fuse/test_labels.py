"""Labels and rows of a source with another tokenizer, against enumerated byte probabilities.

The source's tokens are a prefix code, so every text has one spelling, and its rows are whole. Then
nothing is approximate: what follows any byte has one probability, the sum over all continuations.
"""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.align.kinds import INSIDE, SPAN
from fusestore.align.tokens.pairing import align_table
from fusestore.align.vocabulary.first_tokens import first_tokens
from fusestore.align.vocabulary.vocabulary_map import map_vocabulary
from fusestore.cache.rows import Rows
from fusestore.fuse.fusion import prepare
from fusestore.fuse.inputs import SourceInput, load_span
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.shard import fuse_rows
from fusestore.tokenizers.vocabulary import TokenKind, Vocabulary

LETTERS = b"ab"


def prefix_code(rng, size):
    """Texts of which none begins with another, and with which every text begins."""
    code = [b""]
    while len(code) < size:
        stem = code.pop(int(rng.integers(len(code))))
        code += [stem + bytes([letter]) for letter in LETTERS]
    return tuple(code)


def vocabulary(digest, texts):
    kinds: tuple[TokenKind, ...] = ("text",) * len(texts)
    return Vocabulary(digest * 64, texts, kinds, ())


class Source:
    """The next token depends on the token before."""

    def __init__(self, rng, size):
        self.texts = prefix_code(rng, size)
        self.next = rng.dirichlet(np.ones(size), size)

    def begins(self, last, wanted):
        """Probability that the text after token `last` begins with these bytes, by enumeration."""
        if not wanted:
            return 1.0
        total = 0.0
        for token, text in enumerate(self.texts):
            if text.startswith(wanted):
                total += self.next[last, token]
            elif wanted.startswith(text):
                total += self.next[last, token] * self.begins(token, wanted[len(text) :])
        return total

    def cache(self, helpers, tokens):
        ids = tokens.token_ids
        order = np.argsort(-self.next, axis=1, kind="stable")
        rows = np.take_along_axis(self.next, order, 1)[ids]
        label = np.append(self.next[ids[:-1], ids[1:]], 1.0)
        with np.errstate(divide="ignore"):
            label = np.log(label).astype(np.float32)
            logprobs = np.log(rows).astype(np.float32)
        label[tokens.document_offsets[1:] - 1] = np.nan
        tail = np.full(len(ids), -np.inf, np.float32)
        return helpers.cache(tokens, Rows(order[ids].astype(np.int32), logprobs, tail, label))


def spelled(rng, texts, num_tokens):
    ids = rng.integers(0, len(texts), num_tokens)
    return [int(token) for token in ids], b"".join(texts[token] for token in ids)


def greedy(text, texts):
    """Target tokens of a text, the longest first."""
    tokens, end = [], 0
    while end < len(text):
        fitting = [t for t, spelling in enumerate(texts) if text.startswith(spelling, end)]
        token = max(fitting, key=lambda t: len(texts[t]))
        end += len(texts[token])
        tokens.append((token, end))
    return tokens


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(2, 9),
    longer=st.lists(st.text("ab", min_size=2, max_size=4), max_size=3, unique=True),
)
def test_rows_and_labels_are_the_enumerated_probabilities(helpers, seed, size, longer):
    rng = np.random.default_rng(seed)
    source = Source(rng, size)
    target_texts = (b"a", b"b", *(text.encode() for text in longer))
    documents = [spelled(rng, source.texts, int(rng.integers(2, 7))) for _ in range(2)]
    tokens = helpers.table(
        [
            list(zip(ids, np.cumsum([len(source.texts[i]) for i in ids]).tolist(), strict=True))
            for ids, _ in documents
        ]
    )
    target = helpers.table([greedy(text, target_texts) for _, text in documents])
    from_vocabulary, to_vocabulary = vocabulary("s", source.texts), vocabulary("t", target_texts)
    position, kind = align_table(tokens, target, from_vocabulary, to_vocabulary)
    offsets = target.document_offsets
    aligned = [
        (position[start:stop], kind[start:stop]) for start, stop in itertools.pairwise(offsets)
    ]
    made = SourceInput(
        "s",
        source.cache(helpers, tokens),
        "digest",
        "corpus",
        target_id=map_vocabulary(from_vocabulary, to_vocabulary, "prefix").target_id,
        alignment=helpers.alignment(aligned),
        spelling=from_vocabulary.spelling,
        first_tokens=first_tokens(from_vocabulary.spelling, to_vocabulary),
    )
    span = load_span(made, np.arange(2), target)
    recipe = Recipe.parse(
        {
            "corpus": "c",
            "split": "s",
            "target": "t",
            "strategy": "single",
            "top_k": len(target_texts),
            "sources": [{"cache": "s"}],
            "keep_label": False,
        }
    )
    fusion = prepare(
        recipe,
        [made],
        target_tokens=target,
        tokens_digest="t",
        documents=np.arange(2),
        vocab_size=len(target_texts),
        corpus_digest="corpus",
    )
    rows, _ = fuse_rows(fusion, 0, target.num_tokens)
    held, _ = fuse_rows(
        prepare(
            recipe.model_copy(update={"keep_label": True}),
            [made],
            target_tokens=target,
            tokens_digest="t",
            documents=np.arange(2),
            vocab_size=len(target_texts),
            corpus_digest="corpus",
        ),
        0,
        target.num_tokens,
    )
    for document, (ids, text) in enumerate(documents):
        ends = target.document(document)[1]
        source_ends = tokens.document(document)[1]
        for place, end in enumerate(ends.tolist()):
            flat = int(offsets[document]) + place
            read = int(np.searchsorted(source_ends, end, side="right")) - 1
            if read < 0:
                assert kind[flat] == 0
                continue
            since = text[source_ends[read] : end]
            assert kind[flat] == (INSIDE if since else SPAN)
            assert position[flat] == read
            last = ids[read]
            whole = source.begins(last, since)
            np.testing.assert_allclose(rows.known[flat], 1.0, atol=1e-6)

            # Rows, byte by byte: the tokens that begin with a letter together have its mass.
            # (An entry that ends with the bytes since cannot occur in a prefix code.)
            dense = helpers.dense(
                rows.ids[flat : flat + 1],
                rows.logprobs[flat : flat + 1],
                rows.tail[flat : flat + 1],
                len(target_texts),
            )[0]
            for letter in LETTERS:
                after = source.begins(last, since + bytes([letter])) / whole
                begun = [t for t, b in enumerate(target_texts) if b[0] == letter]
                np.testing.assert_allclose(dense[begun].sum(), after, atol=2e-6)
            if place + 1 == len(ends):
                assert not span.labels.found[flat]
                continue
            label = text[end : ends[place + 1]]
            covered = source_ends[-1] >= ends[place + 1]
            assert span.labels.found[flat] == covered
            expected = source.begins(last, since + label) / whole
            np.testing.assert_allclose(np.exp(span.labels.logprob[flat]), expected, rtol=1e-5)
            # A row that holds its label has the label's exact probability, and mass 1.
            label_id = rows.next_ids[flat]
            [at] = np.flatnonzero((held.ids[flat] == label_id) & np.isfinite(held.logprobs[flat]))
            np.testing.assert_allclose(np.exp(held.logprobs[flat, at]), expected, rtol=1e-5)
            mass = np.exp(held.logprobs[flat].astype(float)).sum() + np.exp(float(held.tail[flat]))
            np.testing.assert_allclose(mass, 1.0, atol=1e-5)
        # The product over a document is what the source gives it, whatever the target's tokens.
        labels = slice(int(offsets[document]), int(offsets[document + 1]))
        start = next((e for e in ends.tolist() if e >= source_ends[0]), None)
        if start in source_ends.tolist():
            own = source.begins(ids[int(np.searchsorted(source_ends, start))], text[start:])
            total = span.labels.logprob[labels][ends >= start].sum()
            np.testing.assert_allclose(total, np.log(own), rtol=1e-4, atol=1e-4)
