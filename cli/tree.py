"""`fusestore tree`: what was made from what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .console import output, print_json
from .options import JsonOption, StorageOption, StoreOption, open_store

if TYPE_CHECKING:
    from fusestore.workflows.managing.tree import Tree, TreeEntry


def tree(
    store: StoreOption,
    artifact: Annotated[
        str | None, typer.Argument(metavar="KIND/NAME", help="Show only its lineage.")
    ] = None,
    all_inputs: Annotated[
        bool, typer.Option("--all", "-a", help="Also name vocabularies, maps and other inputs.")
    ] = False,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what each artifact was made from and what uses it.

    Each artifact stands once, below one of its inputs. Further inputs that are not above it follow
    the word "and". Missing inputs are named. Only manifests are read.
    """
    from fusestore.workflows.managing.tree import store_tree

    found = store_tree(open_store(store, storage_option), artifact)
    if as_json:
        print_json(found)
        return
    output.print(found.store)
    for line in _lines(found, all_inputs):
        output.print(line)


def _lines(tree: Tree, all_inputs: bool) -> list[str]:
    entries = tree.artifacts
    above = {entry.artifact: entry.below for entry in entries}
    lines = []
    # Whether further entries follow below the same parent, by depth.
    open_at: list[bool] = []
    for number, entry in enumerate(entries):
        later = entries[number + 1 :]
        follows = next((each.depth for each in later if each.depth <= entry.depth), -1)
        del open_at[entry.depth :]
        open_at.append(follows == entry.depth)
        bars = "".join("│  " if more else "   " for more in open_at[1:-1])
        branch = ("├─ " if open_at[-1] else "└─ ") if entry.depth else ""
        lines.append(f"{bars}{branch}{entry.artifact}{_notes(entry, above, all_inputs)}")
    return lines


def _notes(entry: TreeEntry, above: dict[str, str | None], all_inputs: bool) -> str:
    """The state unless it is complete, other inputs, and missing ones."""
    from fusestore.store.registry import kind_named

    ancestors = set()
    parent = entry.below
    while parent is not None:
        ancestors.add(parent)
        parent = above[parent]
    others = [
        str(each)
        for each in entry.inputs
        if each.present
        and str(each) not in ancestors
        and (all_inputs or not kind_named(each.kind).made_on_demand)
    ]
    missing = [str(each) for each in entry.inputs if not each.present]
    notes = "" if entry.state == "complete" else f" [{entry.state}]"
    if others:
        notes += f" and {', '.join(others)}"
    return (
        f"{notes}; missing: {', '.join(each.removesuffix(' (missing)') for each in missing)}"
        if missing
        else notes
    )
