"""Random sources, and their fusion by the definitions, one position and dense row at a time."""

import itertools

import numpy as np

from fusestore.align.vocabulary.first_tokens import first_tokens
from fusestore.fuse.inputs import SourceInput
from fusestore.tokenizers.vocabulary import TokenKind, Vocabulary

KINDS = {"span": 1, "inside": 2, "mined": 3}

SOURCE = (b"a", b"b", b"aa", b"ab", b"ba", b"bb", b"aab", b"bba", b"<s>")
TARGET = (b"a", b"b", b"ab", b"aa", b"bab", b"abb", b"<s>")
VOCAB = len(TARGET)
SPECIAL = b"<s>"


def vocabulary(token_bytes):
    kinds: tuple[TokenKind, ...] = tuple(
        "special" if token == SPECIAL else "text" for token in token_bytes
    )
    return Vocabulary("digest", token_bytes, kinds, ())


def random_text(rng, num_documents):
    """Documents over two letters; some are empty, some hold one byte."""
    return [
        bytes(rng.choice(list(b"ab"), length).tolist())
        for length in rng.integers(0, 9, num_documents)
    ]


def random_tokens(helpers, rng, texts, token_bytes, bos):
    """A random one of the ways to spell each text."""
    documents = []
    for text in texts:
        tokens = [(token_bytes.index(SPECIAL), 0)] * bool(bos and text)
        end = 0
        while end < len(text):
            fitting = [
                token
                for token, spelled in enumerate(token_bytes)
                if spelled != SPECIAL and text.startswith(spelled, end)
            ]
            token = int(rng.choice(fitting))
            end += len(token_bytes[token])
            tokens.append((token, end))
        documents.append(tokens)
    return helpers.table(documents)


def random_alignment(rng, source_ends, target_ends):
    """`(source_pos, kind)`: span and inside by definition, some of them left out or mined."""
    position, kind = [], []
    for index, end in enumerate(target_ends):
        read = [i for i, other in enumerate(source_ends) if other <= end]
        last = index + 1 == len(target_ends) or target_ends[index + 1] > end
        pair = (-1, 0)
        if read and last:
            pair = (read[-1], 1 if source_ends[read[-1]] == end else 2)
        drawn = rng.random()
        if drawn < 0.1:
            pair = (-1, 0)
        elif drawn < 0.3 and len(source_ends):
            pair = (int(rng.integers(len(source_ends))), 3)
        position.append(pair[0])
        kind.append(pair[1])
    return np.array(position, np.int32), np.array(kind, np.uint8)


def random_source(helpers, rng, name, texts, target, identity):
    width = int(rng.integers(1, 5))
    vocab_size = VOCAB if identity else len(SOURCE)
    tokens = (
        target
        if identity
        else random_tokens(helpers, rng, texts, SOURCE, bos=bool(rng.integers(2)))
    )
    last = tokens.document_offsets[1:][np.diff(tokens.document_offsets) > 0] - 1
    rows = helpers.random_rows(rng, tokens.num_tokens, width, vocab_size, last)
    skipped = frozenset(np.flatnonzero(rng.random(len(texts)) < 0.15).tolist())
    for document in skipped:
        first, stop = tokens.document_offsets[document : document + 2]
        rows.label_logprob[first:stop] = np.nan
    cache = helpers.cache(tokens, rows, skipped)
    if identity:
        return SourceInput(name, cache, "cache", "corpus")
    aligned = [
        random_alignment(rng, tokens.document(document)[1], target.document(document)[1])
        for document in range(len(texts))
    ]
    spelling = vocabulary(SOURCE).spelling
    return SourceInput(
        name,
        cache,
        "cache",
        "corpus",
        target_id=rng.integers(-1, VOCAB, len(SOURCE)).astype(np.int32),
        alignment=helpers.alignment(aligned),
        spelling=spelling,
        first_tokens=first_tokens(spelling, vocabulary(TARGET)),
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
        self.texts = [
            b"".join(TARGET[i] for i in target.document(d)[0] if TARGET[i] != SPECIAL)
            for d in range(target.num_documents)
        ]
        self.stream = [
            (int(document), position)
            for document in documents
            for position in range(len(target.document(int(document))[0]))
        ]

    def pair(self, source, document, position):
        """(flat source row, kind, bytes read since) that may supervise, or None."""
        found = self.any_pair(source, document, position)
        return found if found and found[1] in [KINDS[k] for k in self.recipe.kinds] else None

    def any_pair(self, source, document, position):
        """The aligned row, whether the recipe accepts it or not."""
        if document in source.cache.skipped or not len(source.cache.tokens.document(document)[0]):
            return None
        own, kind = position, 1
        if source.alignment is not None:
            own, kind = (int(part[position]) for part in source.alignment.documents[document])
        if kind == 0:
            return None
        since = b""
        if kind == KINDS["inside"]:
            read = source.cache.tokens.document(document)[1][own]
            since = self.texts[document][read : self.target.document(document)[1][position]]
        return int(source.cache.tokens.document_offsets[document]) + own, kind, since

    def distribution(self, source, pair):
        """Dense [VOCAB + 1] projected distribution of a pair."""
        return self.projected(source, pair)[0]

    def projected(self, source, pair):
        """The distribution, and its mass that has no target token."""
        row, _, since = pair
        rows = source.cache.rows
        target_id = np.arange(VOCAB) if source.target_id is None else source.target_id
        one = slice(row, row + 1)
        plain = (rows.ids[one], rows.logprobs[one], rows.tail[one])
        dense = self.project(*plain, target_id, VOCAB)[0]
        if not since:
            unmapped = self.project(*plain[:2], np.full(1, -np.inf), target_id, VOCAB)[0][-1]
            mass = np.exp(rows.logprobs[row].astype(np.float64)).sum()
            whole = mass + np.exp(np.float64(rows.tail[row]))
            return dense, unmapped * mass / whole if mass else 0.0
        masses = np.exp(rows.logprobs[row].astype(np.float64))
        tail = np.exp(np.float64(rows.tail[row]))
        agreeing = [
            (SOURCE[token].removeprefix(since), mass)
            for token, mass in zip(rows.ids[row], masses, strict=True)
            if mass > 0 and SOURCE[token] != SPECIAL and SOURCE[token].startswith(since)
        ]
        total = sum(mass for _, mass in agreeing)
        if total == 0:
            return np.eye(VOCAB + 1)[VOCAB], 0.0
        share = tail / (tail + masses.sum())
        dense, lost = np.zeros(VOCAB + 1), 0.0
        dense[VOCAB] = share
        for rest, mass in agreeing:
            begun = [t for t, b in enumerate(TARGET) if b != SPECIAL and rest.startswith(b)]
            landed = max(begun, key=lambda t: len(TARGET[t]), default=VOCAB)
            dense[landed] += mass / total * (1 - share)
            lost += mass / total * (1 - share) * (landed == VOCAB)
        return dense, lost

    def label(self, source, document, position):
        """Probability of the next target token's bytes, or None where it is not exact."""
        ids, ends = self.target.document(document)
        pair = self.any_pair(source, document, position)
        if pair is None or position + 1 == len(ids):
            return None
        rows = source.cache.rows
        row, kind, since = pair
        if source.alignment is None:
            return np.exp(np.float64(rows.label_logprob[row]))
        if kind == KINDS["mined"]:
            return None
        stop = source.cache.tokens.document_offsets[document + 1]
        read = source.cache.tokens.end_offsets
        text = self.texts[document]

        def mass(row, prefix):
            own = source.cache.tokens.token_ids[row + 1]
            return np.exp(np.float64(rows.label_logprob[row])) + sum(
                np.exp(np.float64(logprob))
                for token, logprob in zip(rows.ids[row], rows.logprobs[row], strict=True)
                if token != own and SOURCE[token] != SPECIAL and SOURCE[token].startswith(prefix)
            )

        probability = 1 / mass(row, since) if since else 1.0
        while read[row] < ends[position + 1]:
            if row + 1 == stop:
                return None
            if read[row + 1] > ends[position + 1]:
                probability *= mass(row, text[read[row] : ends[position + 1]])
                break
            probability *= np.exp(np.float64(rows.label_logprob[row]))
            row += 1
        return min(probability, 1.0)

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
                exact = self.label(source, document, position)
                if pair and exact is not None:
                    amount += -np.log(exact)
                    count += 1
                elif pair:
                    row = self.distribution(source, pair)
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
                exact = self.label(source, document, position)
                if by_bytes and exact is not None:
                    nats, size = -np.log(exact), ends[position + 1] - ends[position]
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
        if self.recipe.packing in (None, "stream"):
            return self.stream[index // length * length :][:length]
        if self.recipe.packing == "whole":
            window = []
            for _, group in itertools.groupby(self.stream, key=lambda entry: entry[0]):
                whole = list(group)
                if len(window) + len(whole) > length:
                    if self.stream[index] in window:
                        break
                    window = []
                window += whole
            return window
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
            labels = [self.label(self.sources[i], document, position) for i in used]
            for i in used:
                dense += weights[i] / sum(weights) * self.distribution(self.sources[i], pairs[i])
            dense = self.without_least(dense)
            if self.keep_label and None not in labels:
                shares = [weights[i] / sum(weights) for i in used]
                p = sum(share * label for share, label in zip(shares, labels, strict=True))
                dense = self.held(dense, self.target.document(document)[0][position + 1], p)
            return dense, max(pairs[i][1] for i in used), used[0] if len(used) == 1 else -1
        nothing, one_hot = np.eye(VOCAB + 1)[VOCAB], np.eye(VOCAB + 1)
        ids, _ = self.target.document(document)
        policy = self.recipe.unaligned
        if policy == "label" and position + 1 < len(ids):
            return one_hot[ids[position + 1]], 4, -1
        if policy == "target" and document not in target_cache.cache.skipped:
            dense = self.distribution(target_cache, self.any_pair(target_cache, document, position))
            dense = self.without_least(dense)
            p = self.label(target_cache, document, position)
            if self.keep_label and p is not None:
                dense = self.held(dense, ids[position + 1], p)
            return dense, 5, -1
        if policy == "fusellm":
            return one_hot[ids[position]], 6, -1
        return nothing, 0, -1

    @property
    def keep_label(self):
        return self.recipe.keep_label is not False

    def without_least(self, dense):
        """The row in which every token is as probable as an entry must be, or the first."""
        if self.recipe.min_probability is None:
            return dense
        result = dense.copy()
        for token in set(range(VOCAB)) - {int(np.argmax(dense[:VOCAB]))}:
            if dense[token] < self.recipe.min_probability:
                result[VOCAB] += dense[token]
                result[token] = 0.0
        return result

    def held(self, dense, label, p):
        """The row of `top_k` entries that holds its label: the others fall to the tail first."""
        order = sorted((t for t in range(VOCAB) if t != label), key=lambda t: (-dense[t], t))
        result = np.zeros(VOCAB + 1)
        others = order[: self.recipe.top_k - 1] if p < 1 else []
        result[others] = dense[others]
        mass = result.sum()
        if mass + p > 1:
            result *= (1 - p) / mass
        result[label] = p
        result[VOCAB] = 1 - result.sum()
        return result
