"""A card as text: Markdown of `CardContent`, and the keys at its head. Pure.

Names and licenses come from manifests of strangers: whatever Markdown or HTML would read in them
is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fusestore.store.licenses import HUB_IDS
from fusestore.store.shown_table import size_text
from fusestore.workflows.publishing.card_figures import CacheFigures, CardContent, ModelUsed

_SIZES = (
    *((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")),
    *((10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B")),
    *((10**11, "10B<n<100B"), (10**12, "100B<n<1T")),
)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def escaped(text: str) -> str:
    """Text of strangers as Markdown that shows it, on one line, in a table too."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = re.sub(r"([\\`*_{}\[\]#|!~$])", r"\\\1", line)
    # A bare address would become a link.
    line = line.replace("://", ":&#47;&#47;").replace("@", "&#64;").replace("www.", "www&#46;")
    return re.sub("&(?!#[0-9]+;)", "&amp;", line).replace("<", "&lt;").replace(">", "&gt;")


def _code(text: str) -> str:
    """Text inside a code span."""
    return "".join(c for c in text if c.isprintable() and c != "`")


def card_head(content: CardContent, *, is_model: bool) -> dict[str, Any]:
    """The keys at the head of a card, as the Hub has them; what is unknown is left out."""
    head: dict[str, Any] = {}
    if content.license is not None:
        identifier = content.license.id if content.license.id in HUB_IDS else "other"
        head["license"] = identifier
        if identifier == "other":
            named = re.sub(r"[^a-z0-9.]+", "-", str(content.license).lower()).strip("-")
            head["license_name"] = named[:100] or "see-card"
            head["license_link"] = "README.md"
    if content.language:
        head["language"] = list(content.language)
    kind = "knowledge-distillation" if is_model else "distillation"
    head["tags"] = ["fusestore", kind]
    if is_model:
        roles = ("merged", "base") if any(each.merged for each in content.models) else ("base",)
        bases = [
            each.model
            for each in content.models_used
            if each.role in roles and each.model and _HUB_ID.fullmatch(each.model)
        ]
        if bases:
            head["base_model"] = list(dict.fromkeys(bases))
            merged = any(each.merged for each in content.models)
            adapter = any(each.adapter for each in content.models)
            relation = "merge" if merged else "adapter" if adapter else "finetune"
            head["base_model_relation"] = relation
        head["library_name"] = "transformers"
        head["pipeline_tag"] = "text-generation"
        return head
    head["tags"] += ["logits", "zarr"]
    head["task_categories"] = ["text-generation"]
    counts = [each.num_documents for each in content.corpora if each.num_documents is not None]
    if counts:
        largest = max(counts)
        head["size_categories"] = [
            next((name for limit, name in _SIZES if largest < limit), "n>1T")
        ]
    published = [each for each in content.corpora if each.published]
    if published:
        # The Hub shows these tables; arrays it cannot show.
        head["configs"] = [
            {"config_name": each.name, "data_files": f"corpora/{each.name}/documents.parquet"}
            for each in published
        ]
    else:
        head["viewer"] = False
    return head


def reading_lines(content: CardContent, target: str, *, model_id: str | None) -> list[str]:
    """At most five lines of Python that read what was published.

    Args:
        content: of the card.
        target: URL or folder of the published store; of a folder its name is shown.
        model_id: of a model repository, which transformers reads; else None.
    """
    if model_id is not None:
        if any(each.adapter for each in content.models):
            return [
                "from peft import AutoPeftModelForCausalLM",
                f"model = AutoPeftModelForCausalLM.from_pretrained({json.dumps(model_id)})",
            ]
        return [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(model_id)})",
            f"model = AutoModelForCausalLM.from_pretrained({json.dumps(model_id)})",
        ]
    # Where a folder lies on the writer's machine says nothing to a reader.
    place = target if "://" in target else Path(target).name
    lines = ["import fusestore as fs", f"store = fs.open_store({json.dumps(place)})"]
    corpora = [each.name for each in content.corpora if each.published]
    if content.fused:
        lines.append(f'dataset = store.open_fused("{content.fused[0].name}").dataset()')
        lines.append("print(len(dataset), {key: each.shape for key, each in dataset[0].items()})")
    elif content.caches:
        lines.append(f'cache = store.open_cache("{content.caches[0].name}")')
        lines.append("print(cache.to_polars(0, decode=True))")
    elif corpora:
        lines.append(f'corpus = store.open_corpus("{corpora[0]}")')
        lines.append("print(corpus.texts()[0])")
    elif content.models:
        lines.append(f'model = store.open_model("{content.models[0].name}").load()')
    else:
        lines.append("print([artifact.path for artifact in store.artifacts()])")
    return lines


def card_body(content: CardContent, target: str, *, model_id: str | None) -> str:
    """Fusestore's part of a card, Markdown; see `reading_lines` for the arguments."""
    sections = [
        _summary(content, is_model=model_id is not None),
        "## How to read it\n\n```python\n"
        + "\n".join(reading_lines(content, target, model_id=model_id))
        + "\n```"
        + ("" if model_id is not None else "\n\n`pip install fusestore` installs the reader."),
        *_models_used(content.models_used),
        *_corpora(content),
        *_caches(content.caches),
        *_coverage(content),
        *_fused(content),
        *_forecasts(content),
        *_results(content),
        _licenses(content),
        _checksums(content, target, model_id),
        f"Written by fusestore {escaped(content.fusestore_version)}.",
    ]
    return "\n\n".join(sections)


def _summary(content: CardContent, *, is_model: bool) -> str:
    teachers = [each for each in content.models_used if each.role == "teacher"]
    names = ", ".join(escaped(_called(each)) for each in teachers)
    if is_model:
        made = "; ".join(escaped(each.how) for each in content.models)
        learned = f" It learned from the next-token distributions of {names}." if names else ""
        return f"A language model made with fusestore: {made}.{learned}"
    kinds = ", ".join(dict.fromkeys(each.artifact.partition("/")[0] for each in content.artifacts))
    of = f" The next-token distributions are those of {names}." if names else ""
    count = len(content.artifacts)
    return (
        f"A fusestore store of {count} artifact{'s' * (count != 1)} ({kinds}): next-token "
        f"distributions of language models over a text, aligned and fused for distillation.{of}"
    )


def _called(used: ModelUsed) -> str:
    if used.model is not None:
        return used.model
    return used.name if used.architecture is None else f"{used.name} ({used.architecture})"


def _models_used(used: Sequence[ModelUsed]) -> Iterable[str]:
    if not used:
        return
    rows = [
        [
            each.role,
            each.name,
            each.model or each.architecture or "a folder",
            each.revision or "",
            str(each.license or "unknown"),
            "" if each.tokenizer_length is None else f"{each.tokenizer_length:,} ids",
            each.digest[:16],
        ]
        for each in used
    ]
    heads = ["role", "name", "model", "revision", "license", "tokenizer", "digest"]
    yield _table("Models", heads, rows)


def _corpora(content: CardContent) -> Iterable[str]:
    if not content.corpora:
        return
    rows = [
        [
            each.name,
            "" if each.num_documents is None else f"{each.num_documents:,}",
            "" if each.num_bytes is None else f"{each.num_bytes:,}",
            ", ".join(f"{name} {count:,}" for name, count in each.splits.items()),
            str(each.license or "unknown"),
            "yes" if each.published else "no",
            each.digest[:16],
        ]
        for each in content.corpora
    ]
    heads = ["corpus", "documents", "bytes", "splits", "license", "published", "digest"]
    yield _table("Text", heads, rows)


def _caches(caches: Sequence[CacheFigures]) -> Iterable[str]:
    if not caches:
        return
    rows = [
        [
            each.name,
            _rule(each),
            each.profile,
            f"{each.num_rows:,} of {each.num_tokens:,}",
            f"{each.bytes_per_token:.2f}",
            ", ".join(f"{split} {bits:.4f}" for split, bits in each.bits_per_byte.items()),
            " in ".join(filter(None, [each.engine, each.dtype])),
        ]
        for each in caches
    ]
    heads = ["cache", "kept", "profile", "rows", "bytes a token", "bits per byte", "engine"]
    yield _table("Distributions", heads, rows)
    errors = [[each.name, _rounding(each), _outside(each), _audit(each)] for each in caches]
    yield _table(
        "Measured error",
        ["cache", "log-probabilities", "mass outside the entries", "second computation"],
        errors,
    )


def _rule(figures: CacheFigures) -> str:
    if figures.rule == "sampled":
        return f"{figures.top_k} draws"
    if figures.rule == "top-p":
        return f"top {figures.top_p:g} of the mass, k = {figures.top_k} at most"
    return f"k = {figures.top_k}"


def _rounding(figures: CacheFigures) -> str:
    if figures.rule == "sampled":
        return "counts of draws: unbiased, with sampling error"
    if figures.logprob_step is None:
        return "float32 as computed"
    return f"rounded to {figures.logprob_step:g} nats: at most {figures.logprob_step / 2:g} off"


def _outside(figures: CacheFigures) -> str:
    if figures.rule == "sampled":
        return "does not apply to draws"
    if figures.outside is None:
        return "unknown"
    return f"{figures.outside:.4f} in the mean of {figures.sampled_rows:,} rows"


def _audit(figures: CacheFigures) -> str:
    audit = figures.audit
    if audit is None:
        return "none: the engine is the reference" if figures.engine == "transformers" else "none"
    return (
        f"{audit.label_nats:.4f} nats from {audit.reference} in the mean of {audit.num_rows:,} "
        f"rows, {audit.shared_entries:.1%} of the entries shared"
    )


def _coverage(content: CardContent) -> Iterable[str]:
    if not content.alignments:
        return
    kinds = list(dict.fromkeys(kind for each in content.alignments for kind in each.coverage))
    rows = [
        [
            each.name,
            each.source,
            each.method,
            f"{each.num_tokens:,}",
            *(f"{each.coverage.get(kind, 0.0):.2%}" for kind in kinds),
        ]
        for each in content.alignments
    ]
    heads = ["alignment", "source", "method", "target tokens", *kinds]
    yield _table("Alignment coverage", heads, rows)


def _fused(content: CardContent) -> Iterable[str]:
    if not content.fused:
        return
    rows = [
        [
            each.name,
            each.strategy,
            each.split,
            f"{each.num_tokens:,}",
            f"{each.num_windows:,} of {each.window_length:,}",
            f"k = {each.top_k}",
            f"{each.bytes_per_token:.2f}",
            ", ".join(f"{name} {share:.2%}" for name, share in each.kinds.items()),
        ]
        for each in content.fused
    ]
    heads = ["dataset", "strategy", "split", "target tokens", "windows", "kept", "bytes a token"]
    yield _table("Fused datasets", [*heads, "distributions"], rows)
    sources = [
        [
            fused.name,
            each.cache,
            "" if each.bits_per_byte is None else f"{each.bits_per_byte:.4f}",
            f"{each.positions_span:.2%}",
            f"{each.positions_inside:.2%}",
            f"{each.positions_mined:.2%}",
            f"{each.documents_won:.2%}",
        ]
        for fused in content.fused
        for each in fused.sources
    ]
    heads = ["dataset", "source", "bits per byte", "span", "inside", "mined", "documents won"]
    yield _table("Sources", heads, sources)


def _forecasts(content: CardContent) -> Iterable[str]:
    for each in content.forecasts:
        rows = [[name, _bits(bits)] for name, bits in {**each.sources, **each.mixtures}.items()]
        title = f"Forecast of {each.fused}"
        text = (
            f"{escaped(each.verdict)}\n\nBits per byte over the positions common to all sources, "
            f"on {each.num_tokens:,} target tokens of split {escaped(each.split)}:\n\n"
        )
        yield _table(title, ["source or mixture", "bits per byte"], rows, text)


def _results(content: CardContent) -> Iterable[str]:
    if not content.models:
        return
    rows = [
        [
            each.name,
            each.how,
            "" if each.num_tokens is None else f"{each.num_tokens:,}",
            _bits(each.bits_per_byte_before),
            _bits(each.bits_per_byte),
        ]
        for each in content.models
    ]
    heads = ["model", "made by", "tokens trained", "bits per byte before", "after"]
    yield _table("Results on held-out text", heads, rows)


def _bits(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def _licenses(content: CardContent) -> str:
    lines = ["## License", ""]
    if content.unknown_licenses:
        names = ", ".join(escaped(name) for name in content.unknown_licenses)
        lines.append(
            f"**The license of {names} is unknown.** Find it out before you use or share this."
        )
    elif content.license is not None:
        lines.append(f"{escaped(str(content.license))}, of the models and texts it was made from.")
    else:
        lines.append("No license is recorded.")
    linked = [
        f"- {escaped(_called(each))}: {escaped(str(each.license))}"
        + (f", {escaped(each.license.link)}" if each.license.link else "")
        for each in content.models_used
        if each.license is not None
    ]
    linked += [
        f"- corpus {escaped(each.name)}: {escaped(str(each.license))}"
        for each in content.corpora
        if each.license is not None
    ]
    lines += ["", *linked] if linked else []
    lines += ["", "Check that each license lets you train on the model's outputs."]
    return "\n".join(lines)


def _checksums(content: CardContent, target: str, model_id: str | None) -> str:
    rows = [
        [
            each.artifact,
            each.description,
            size_text(each.num_bytes),
            ", ".join(each.made_from),
            each.manifest_digest,
        ]
        for each in content.artifacts
    ]
    heads = ["artifact", "content", "size", "made from", "checksum of the manifest"]
    if model_id is None:
        text = (
            "A manifest has the SHA-256 of every file, or of the receipts that have it. "
            f"`fusestore verify -s {_code(target)}` checks all of them. `fusestore pull --expect "
            "KIND/NAME=CHECKSUM` takes nothing else; get them by another way. It is the key "
            "`checksum` of `manifest.json`, a SHA-256 of its content without that key; `sha256sum` "
            "of the file gives another number.\n\n"
        )
    else:
        name = content.artifacts[0].artifact.partition("/")[2]
        text = (
            "`manifest.json` has the SHA-256 of every file, and its own content's as the key "
            "`checksum`. To check them: `hf download "
            f"{model_id} --local-dir my.store/models/{name}`, then `fusestore verify "
            f"model/{name} -s my.store`.\n\n"
        )
    return _table("Artifacts and checksums", heads, rows, text)


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], text: str = "") -> str:
    lines = [
        f"| {' | '.join(heads)} |",
        f"|{' --- |' * len(heads)}",
        *(f"| {' | '.join(escaped(cell) for cell in row)} |" for row in rows),
    ]
    return f"## {escaped(title)}\n\n{text}" + "\n".join(lines)
