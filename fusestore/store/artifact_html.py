"""What a notebook shows of a store and of one artifact: what `ls` and `show` print."""

from __future__ import annotations

from collections.abc import Iterable

from fusestore.errors import FusestoreError
from fusestore.store.details import artifact_details
from fusestore.store.inventory import read_artifact
from fusestore.store.layout import Store
from fusestore.store.listing import store_listing
from fusestore.store.shown_html import tables_html
from fusestore.store.shown_table import ShownTable

_ROWS_PREVIEWED = 5


def store_html(store: Store) -> str:
    """The artifacts of a store; one with a damaged manifest says so in its row."""
    title = f"Store {store.location}"
    try:
        table = store_listing(store).table()
    except FusestoreError as error:
        return tables_html([ShownTable(title, [], [])], [str(error)])
    notes = [] if table.rows else ["It is empty."]
    return tables_html([table._replace(title=title)], notes)


def artifact_html(store: Store, kind: str, name: str, *, notes: Iterable[str] = ()) -> str:
    """One artifact: its facts, a few of its rows, and its settings, folded.

    Manifests of the store and one listing are read, and of a cache a few rows.

    Args:
        store: the store.
        kind: name of its kind.
        name: of the artifact.
        notes: paragraphs after its facts.

    Returns:
        HTML, whatever state the artifact is in: damage is a paragraph of it.
    """
    path = f"{kind}/{name}"
    told = list(notes)
    try:
        artifact = read_artifact(store, kind, name)
        details = artifact_details(store, path)
    except FusestoreError as error:
        return tables_html([ShownTable(path, [], [])], [str(error), *told])
    tables = [details.facts()._replace(title=f"{artifact.kind.title.capitalize()} {name}")]
    try:
        view = artifact.kind.preview(store, artifact, _ROWS_PREVIEWED)
    except FusestoreError as error:
        told.append(f"Its rows cannot be shown: {error}")
    else:
        if view is not None:
            tables += view.tables
            told.append(view.note)
    return tables_html(tables, told, folded=[details.settings_table()])
