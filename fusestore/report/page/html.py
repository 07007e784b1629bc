"""The page as one file of HTML that loads nothing.

Names, texts and tokens are data from strangers. What stands in the page is escaped here; the script
reads JSON and sets texts, never markup. The page's policy allows no other script and no request.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from fusestore.align.report.columns import shown_text
from fusestore.fuse.choices import KIND_NAMES
from fusestore.report.page import charts
from fusestore.report.page.content import StoreReport
from fusestore.report.page.lineage_diagram import lineage_diagram
from fusestore.report.page.token_rows import DocumentRows, shown_token, token_places
from fusestore.store.shown_table import ShownTable, counted, decimal, percent, size_text

_KIND_TEXTS = (
    "no row may supervise this position",
    "span: source and target token end at the same byte",
    "inside: the position lies inside a source token; its row is conditioned on the bytes since",
    "mined: paired by edit distance alone",
)

_UNALIGNED_TEXTS = {
    "none": "no distribution",
    "label": "unaligned: the next token itself",
    "target": "unaligned: the target's own row",
    "fusellm": "unaligned: the token itself",
}


def render(
    report: StoreReport,
    documents: Sequence[DocumentRows] = (),
    token_bytes: Sequence[bytes] = (),
    vocab_size: int = 0,
) -> str:
    """The page.

    Args:
        report: what it shows.
        documents: those of the token viewer, in the order of `report.viewer`.
        token_bytes: of each id of the target.
        vocab_size: ids of the target, at least as many as `token_bytes`.

    Raises:
        MissingDependencyError: the package that draws charts is not installed.
    """
    charts.check_charts()
    script = _file("page.js")
    data, packed = _viewer_data(report, documents, token_bytes, vocab_size)
    sections = list(_sections(report))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    num_bytes = sum(each.num_bytes for each in report.artifacts) + report.other_bytes
    return Template(_file("page.html")).substitute(
        title=escape(f"Store {report.store}"),
        summary=f"{counted(len(report.artifacts), 'artifact')}, {size_text(num_bytes)}",
        navigation="".join(
            f'<a href="#{_anchor(title)}">{escape(title)}</a>' for title, _ in sections
        ),
        sections="\n".join(
            f'<section aria-labelledby="{_anchor(title)}"><h2 id="{_anchor(title)}">'
            f"{escape(title)}</h2>\n{body}\n</section>"
            for title, body in sections
        ),
        data=script_json(data),
        documents="\n".join(
            f'<script type="text/plain" id="document-{rows.document}">{text}</script>'
            for rows, text in zip(documents, packed, strict=True)
        ),
        script=script,
        script_hash=f"'sha256-{digest}'",
        style=_file("page.css"),
    )


def script_json(value: Any) -> str:  # noqa: ANN401 - any JSON
    """A value as JSON that may stand in a script element: it has no `<`, `>` and `&`."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _file(name: str) -> str:
    return (resources.files("fusestore.report.page") / name).read_text(encoding="utf-8")


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _viewer_data(
    report: StoreReport,
    documents: Sequence[DocumentRows],
    token_bytes: Sequence[bytes],
    vocab_size: int,
) -> tuple[dict[str, Any], list[str]]:
    if report.viewer is None or not documents:
        return {"viewer": None}, ["" for _ in documents]
    occurring, places = token_places(documents, vocab_size)
    wide = len(occurring) > 2**16
    texts = [
        shown_token(token_bytes[token]) if 0 <= token < len(token_bytes) else ""
        for token in occurring
    ]
    fused_kinds = [_UNALIGNED_TEXTS.get(name, f"kind {name}") for name in KIND_NAMES]
    viewer = {
        "sources": report.viewer.sources,
        "documents": [each.model_dump() for each in report.viewer.documents],
        "entries": documents[0].ids.shape[2],
        "texts": texts,
        "wide": wide,
        "kinds": _KIND_TEXTS,
        "fusedKinds": fused_kinds,
    }
    return {"viewer": viewer}, [rows.pack(places, wide) for rows in documents]


def _sections(report: StoreReport) -> Iterator[tuple[str, str]]:
    """Titles and bodies, in the order of the page."""
    parts: tuple[tuple[str, bool, Callable[[StoreReport], str]], ...] = (
        ("Token viewer", report.viewer is not None, _viewer),
        ("Lineage", bool(report.artifacts), _lineage),
        ("Sources", bool(report.sources), _sources),
        ("Alignments", bool(report.alignments), _alignments),
        ("Forecast", report.forecast is not None, _forecast),
        ("Training", bool(report.curves), _training),
        ("Storage", bool(report.artifacts), _storage),
    )
    for title, there, body in parts:
        notes = "".join(
            f'<p class="soft">Not here: {escape(each.reason)}</p>'
            for each in report.absent
            if each.part == title
        )
        if there or notes:
            yield title, (body(report) if there else "") + notes


def _viewer(report: StoreReport) -> str:
    viewer = report.viewer
    if viewer is None:
        raise ValueError("there is no viewer")
    options = "".join(
        f'<option value="{each.document}">{each.document} '
        f"({counted(each.num_tokens, 'token')})</option>"
        for each in viewer.documents
    )
    choices = "".join(
        f'<label><input type="radio" name="color" value="{name}"'
        f"{' checked' if name == 'winner' else ''}> {name}</label>"
        for name in ("winner", "surprise", "disagreement", "nothing")
    )
    shown = sum(each.num_tokens for each in viewer.documents)
    of_split = f"{counted(viewer.documents_of_split, 'document')} of split {escape(viewer.split)}"
    return Template(_file("viewer.html")).substitute(
        fused=escape(viewer.fused),
        strategy=escape(viewer.strategy),
        shown=f"{len(viewer.documents):,} of {of_split}, {shown:,} of {viewer.tokens_of_split:,}",
        options=options,
        choices=choices,
    )


def _lineage(report: StoreReport) -> str:
    hidden = {"vocabulary", "map", "fit"}
    drawn = [each for each in report.artifacts if each.kind not in hidden]
    left_out = len(report.artifacts) - len(drawn)
    note = f" {left_out:,} vocabularies, maps and fits are not drawn." if left_out else ""
    rows = [
        [each.artifact, ", ".join(each.inputs) or "-", each.description]
        for each in report.artifacts
    ]
    table = _table(ShownTable("", ["artifact", "made from", "what it is"], rows))
    return (
        f'<figure><div class="wide" tabindex="0" role="group" aria-label="Lineage, scrollable">'
        f'<div role="img" aria-label="Diagram of what was made from what; a table follows">'
        f"{lineage_diagram(drawn)}</div></div><figcaption>Arrows run from inputs to what was made "
        f"of them. Dashed: unfinished or damaged.{note}</figcaption></figure>"
        f"{_details('As a table', table)}"
    )


def _sources(report: StoreReport) -> str:
    rows = [
        [
            each.cache,
            each.model,
            f"{each.num_rows:,}",
            str(each.top_k),
            ", ".join(f"{score.split} {score.bits_per_byte:.4f}" for score in each.scores) or "-",
            percent(None if each.tail is None else each.tail.mean),
            "-" if each.effective_k is None else f"{each.effective_k.median:.1f}",
        ]
        for each in report.sources
    ]
    columns = ["source", "model", "rows", "k", "bits per byte", "mean tail", "median effective k"]
    figures = []
    if any(each.scores for each in report.sources):
        figures.append(
            _figure(
                charts.score_chart(report.sources),
                "Bits per byte of each source by split",
                "Bits per byte of the text, over each source's own tokens; lower is better.",
            )
        )
    tails = {each.cache: each.tail for each in report.sources if each.tail is not None}
    widths = {
        each.cache: each.effective_k for each in report.sources if each.effective_k is not None
    }
    sampled = max((each.sampled_rows for each in report.sources), default=0)
    if tails:
        figures.append(
            _figure(
                charts.histogram_chart(tails, "mass of the tail"),
                "Share of rows by the mass of their tail",
                f"Mass outside the kept entries, of at most {sampled:,} rows of each source.",
            )
        )
        figures.append(
            _figure(
                charts.histogram_chart(widths, "effective k", log=True),
                "Share of rows by their effective k",
                "exp(entropy), the tail as one entry: how many equally likely tokens a row is "
                "worth, at least.",
            )
        )
    return f'{_table(ShownTable("", columns, rows))}<div class="charts">{"".join(figures)}</div>'


def _alignments(report: StoreReport) -> str:
    kinds = charts.KINDS
    coverage = ShownTable(
        "",
        ["alignment", "method", "target tokens", *kinds],
        [
            [
                *(each.alignment, each.method, f"{each.num_tokens:,}"),
                *(percent(each.coverage.get(kind), 2) for kind in kinds),
            ]
            for each in report.alignments
        ],
    )
    figure = _figure(
        charts.coverage_chart(report.alignments),
        "Share of target tokens by alignment kind",
        "span: both tokens end at the same byte. inside: the target token ends inside a source "
        "token. mined: by edit distance alone. none: no row may supervise it.",
    )
    failing = "".join(
        _table(
            ShownTable(
                f"{each.alignment}: {title}",
                ["token", "times", "of"],
                [
                    [token.token, f"{token.times:,}", f"{token.total:,}"]
                    for token in each.unmatched
                    if token.side == side
                ],
            ),
            code=True,
        )
        for each in report.alignments
        for side, title in (
            ("target", "target tokens that most often have no source row"),
            ("source", "source tokens whose rows most often supervise nothing"),
        )
        if any(token.side == side for token in each.unmatched)
    )
    return f'{_table(coverage)}<div class="charts">{figure}<div>{failing}</div></div>'


def _forecast(report: StoreReport) -> str:
    forecast = report.forecast
    if forecast is None:
        raise ValueError("there is no forecast")
    measured = f"{forecast.num_positions:,}"
    if report.forecast_tokens is not None and report.forecast_tokens > forecast.num_positions:
        measured += f" of {report.forecast_tokens:,}"
    tables = "".join(_table(table) for table in forecast.tables())
    left_out = (
        "" if forecast.left_out is None else f"<p>Not measured: {escape(forecast.left_out)}</p>"
    )
    figure = _figure(
        charts.forecast_chart(forecast),
        "Bits per byte of sources and of mixtures",
        "Lower is better. A mixture that sees the label is a ceiling, not a choice.",
    )
    return (
        f'<p>{escape(str(forecast.verdict))}</p><p class="soft">Over {measured} target tokens of '
        f"split {escape(forecast.recipe.split)}.</p>{left_out}{figure}"
        f"{_details('All figures', tables)}"
    )


def _training(report: StoreReport) -> str:
    figure = _figure(
        charts.curves_chart(report.curves),
        "Held-out bits per byte by training tokens",
        "Held-out bits per byte by training tokens; lower is better.",
    )
    sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in report.savings)
    rows = [
        [curve.title, f"{tokens:,}", decimal(bits)]
        for curve in report.curves
        for tokens, bits in curve.points
    ]
    table = _table(ShownTable("", ["run", "tokens", "bits per byte"], rows))
    return f"{sentences}{figure}{_details('As a table', table)}"


def _storage(report: StoreReport) -> str:
    by_size = sorted(report.artifacts, key=lambda each: -each.num_bytes)
    rows = [
        [
            each.artifact,
            each.state,
            size_text(each.num_bytes),
            "-" if each.bytes_per_token is None else f"{each.bytes_per_token:.2f}",
        ]
        for each in by_size
    ]
    if report.other_bytes:
        rows.append(["files of no artifact", "", size_text(report.other_bytes), "-"])
    table = _table(ShownTable("", ["artifact", "state", "size", "bytes a token"], rows))
    figure = _figure(charts.storage_chart(by_size), "Bytes of each artifact", "Bytes by artifact.")
    return f'<div class="charts">{figure}<div>{table}</div></div>'


def _figure(svg: str, label: str, caption: str) -> str:
    return (
        f'<figure><div role="img" aria-label="{escape(label)}">{svg}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _table(table: ShownTable, *, code: bool = False) -> str:
    """A table; with `code`, its first column holds tokens."""
    title = f"<h3>{escape(table.title)}</h3>" if table.title else ""
    label = escape(table.title or ", ".join(table.columns))
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body = "".join(f"<tr>{''.join(_cells(row, code))}</tr>" for row in table.rows)
    return (
        f'{title}<div class="wide" tabindex="0" role="group" aria-label="{label}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cells(row: Iterable[str], code: bool) -> Iterator[str]:
    for number, cell in enumerate(row):
        # What a terminal would hide, or act on, is made visible.
        text = escape(cell if cell.isprintable() else shown_text(cell.encode()))
        yield f"<td>{f'<code>{text}</code>' if code and number == 0 else text}</td>"
