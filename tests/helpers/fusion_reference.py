"""Random sources, and their fusion by the definitions, one position and dense row at a time."""

import numpy as np

from fusestore.fuse.inputs import SourceInput

VOCAB = 7


KINDS = {"span": 1, "mined": 2}


def random_text(rng, num_documents):
    """Byte lengths of documents; some are empty, some hold one byte."""
    return rng.integers(0, 9, num_documents)


def random_tokens(helpers, rng, lengths, vocab_size, bos):
    documents = []
    for length in lengths:
        cuts = np.flatnonzero(rng.random(max(0, length - 1)) < 0.6) + 1
        ends = (
            [0] * (bool(bos and length > 0)) + [*cuts.tolist()] + [int(length)] * bool(length > 0)
        )
        documents.append([(int(rng.integers(vocab_size)), end) for end in ends])
    return helpers.table(documents)


def random_source(helpers, rng, name, lengths, target, identity):
    width, vocab_size = int(rng.integers(1, 5)), VOCAB if identity else 9
    tokens = (
        target
        if identity
        else random_tokens(helpers, rng, lengths, vocab_size, bos=bool(rng.integers(2)))
    )
    last = tokens.document_offsets[1:][np.diff(tokens.document_offsets) > 0] - 1
    rows = helpers.random_rows(rng, tokens.num_tokens, width, vocab_size, last)
    skipped = frozenset(np.flatnonzero(rng.random(len(lengths)) < 0.15).tolist())
    for document in skipped:
        first, stop = tokens.document_offsets[document : document + 2]
        rows.label_logprob[first:stop] = np.nan
    aligned = []
    for document in range(len(lengths)):
        own, goal = len(tokens.document(document)[0]), len(target.document(document)[0])
        kind = rng.integers(0, 3, goal) if own else np.zeros(goal, int)
        position = np.where(kind > 0, rng.integers(0, max(own, 1), goal), -1)
        aligned.append((position.astype(np.int32), kind.astype(np.uint8)))
    return SourceInput(
        name,
        helpers.cache(tokens, rows, skipped),
        "cache",
        "corpus",
        target_id=None if identity else rng.integers(-1, VOCAB, 9).astype(np.int32),
        alignment=None if identity else helpers.alignment(aligned),
    )


def packllm(scores):
    """exp(−score), relative to the best: a document of impossible tokens scores a million."""
    present = [min(score, 1e300) for score in scores if not np.isnan(score)]
    return [np.exp(min(present, default=0) - min(score, 1e300)) for score in scores]


class Reference:
    """Answers one question at a time, from the definitions in design.md section 4."""

    def __init__(self, helpers, recipe, sources, target, documents):
        self.recipe, self.sources, self.target = recipe, sources, target
        self.documents = documents
        self.project = helpers.project_dense
        self.stream = [
            (int(document), position)
            for document in documents
            for position in range(len(target.document(int(document))[0]))
        ]

    def pair(self, source, document, position):
        """(flat source row, kind name) that may supervise, or None."""
        if document in source.cache.skipped or not len(source.cache.tokens.document(document)[0]):
            return None
        if source.alignment is None:
            own, kind = position, 1
        else:
            own, kind = (int(part[position]) for part in source.alignment.documents[document])
        if kind not in [KINDS[name] for name in self.recipe.kinds]:
            return None
        return int(source.cache.tokens.document_offsets[document]) + own, kind

    def distribution(self, source, row):
        """Dense [VOCAB + 1] projected distribution."""
        rows = source.cache.rows
        return self.project(
            rows.ids[row : row + 1],
            rows.logprobs[row : row + 1],
            rows.tail[row : row + 1],
            np.arange(VOCAB) if source.target_id is None else source.target_id,
            VOCAB,
        )[0]

    def spent(self, source, document, low, high):
        """(nats, bytes, tokens) on the byte range, token by token."""
        first, stop = source.cache.tokens.document_offsets[document : document + 2]
        ends = source.cache.tokens.end_offsets[first:stop]
        nats = num_bytes = num_tokens = 0.0
        for index in range(1, len(ends)):
            before, end = int(ends[index - 1]), int(ends[index])
            share = max(0, min(high, end) - max(low, before)) / (end - before)
            nats += share * -float(source.cache.rows.label_logprob[first + index - 1])
            num_bytes += share * (end - before)
            num_tokens += share
        return nats, num_bytes, num_tokens

    def terms(self, source, document, positions):
        """(amount, count) whose ratio is the score over these target positions."""
        ids, ends = self.target.document(document)
        amount = count = 0.0
        for position in positions:
            if position + 1 == len(ids):
                continue
            if self.recipe.score == "aligned_ce":
                pair = self.pair(source, document, position)
                if pair:
                    row = self.distribution(source, pair[0])
                    label, others = ids[position + 1], VOCAB - (row[:-1] > 0).sum()
                    share = row[-1] / others if others else 0.0
                    p = row[label] if row[label] > 0 else share
                    amount += -np.log(p) if p > 0 else 1e6
                    count += 1
            else:
                nats, size, tokens = self.spent(
                    source, document, int(ends[position]), int(ends[position + 1])
                )
                by_bytes = self.recipe.score == "bits_per_byte"
                amount += nats / np.log(2.0) if by_bytes else nats
                count += size if by_bytes else tokens
        return amount, count

    def document_score(self, source, document):
        if document in source.cache.skipped or not len(source.cache.tokens.document(document)[0]):
            return np.nan
        if self.recipe.score == "aligned_ce":
            size = len(self.target.document(document)[0])
            amount, count = self.terms(source, document, range(size))
        else:
            nats, num_bytes, tokens = self.spent(source, document, 0, 10**6)
            by_bytes = self.recipe.score == "bits_per_byte"
            amount, count = (nats / np.log(2.0), num_bytes) if by_bytes else (nats, tokens)
        return amount / count if count else np.inf

    def score(self, source, index):
        document, _ = self.stream[index]
        whole = self.document_score(source, document)
        if self.recipe.granularity == "document":
            return whole
        unit = self.window(index)
        if self.recipe.granularity == "token":
            unit = [self.stream[index]]
        amount = count = 0.0
        wholes = []
        for document in sorted({document for document, _ in unit}):
            score = self.document_score(source, document)
            if np.isnan(score):
                continue
            positions = [position for other, position in unit if other == document]
            more, number = self.terms(source, document, positions)
            amount, count = amount + more, count + number
            wholes += [score] * len(positions)
        if not wholes:
            return np.nan
        return amount / count if count else np.mean(wholes)

    def window(self, index):
        """The stream's entries in the same window."""
        document, position = self.stream[index]
        length = self.recipe.window_length
        if self.recipe.packing == "stream":
            return self.stream[index // length * length :][:length]
        number = position // length
        return [(d, p) for d, p in self.stream if d == document and p // length == number]

    def weights(self, scores):
        here = [not np.isnan(score) for score in scores]
        if self.recipe.strategy == "mince":
            best = min(
                (score for score, takes in zip(scores, here, strict=True) if takes), default=0
            )
            won = [takes and score == best for score, takes in zip(scores, here, strict=True)]
            return [float(w and not any(won[:i])) for i, w in enumerate(won)]
        raw = {
            "avgce": [np.exp(np.exp(-score)) for score in scores],
            "packllm": packllm(scores),
            "weighted": [source.weight for source in self.recipe.sources],
            "uniform": [1.0] * len(scores),
            "single": [1.0] * len(scores),
        }[self.recipe.strategy]
        raw = [weight if takes else 0.0 for weight, takes in zip(raw, here, strict=True)]
        return [weight / sum(raw) if sum(raw) else 0.0 for weight in raw]

    def row(self, index, target_cache):
        """(dense [VOCAB + 1], kind, source) of one position."""
        document, position = self.stream[index]
        weights = self.weights([self.score(source, index) for source in self.sources])
        pairs = [self.pair(source, document, position) for source in self.sources]
        weights = [w if pair else 0.0 for w, pair in zip(weights, pairs, strict=True)]
        if sum(weights) > 0:
            dense, used = np.zeros(VOCAB + 1), np.flatnonzero(weights)
            for i in used:
                dense += weights[i] / sum(weights) * self.distribution(self.sources[i], pairs[i][0])
            return dense, max(pairs[i][1] for i in used), used[0] if len(used) == 1 else -1
        nothing, one_hot = np.eye(VOCAB + 1)[VOCAB], np.eye(VOCAB + 1)
        ids, _ = self.target.document(document)
        policy = self.recipe.unaligned
        if policy == "label" and position + 1 < len(ids):
            return one_hot[ids[position + 1]], 3, -1
        if policy == "target" and document not in target_cache.cache.skipped:
            row = int(self.target.document_offsets[document]) + position
            return self.distribution(target_cache, row), 4, -1
        if policy == "fusellm":
            return one_hot[ids[position]], 5, -1
        return nothing, 0, -1
