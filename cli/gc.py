"""`fusestore gc`: clear up a store."""

from __future__ import annotations

from fusestore.store.shown_table import counted
from fusestore.workflows.managing.garbage import GarbageSettings

from .console import output, print_json, print_table
from .options import DryRunOption, JsonOption, StorageOption, StoreOption, open_store
from .settings_options import settings_options


@settings_options(GarbageSettings)
def gc(
    store: StoreOption,
    settings: GarbageSettings,
    dry_run: DryRunOption = False,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what nothing in the store can use.

    These are temporary files of processes that have ended, leases of complete artifacts, tokens of
    an earlier corpus, and vocabularies, maps and fits that no artifact was made from.
    """
    from fusestore.store.shown_table import size_text
    from fusestore.workflows.managing.garbage import collect_garbage

    found = collect_garbage(open_store(store, storage_option), settings, dry_run=dry_run)
    if as_json:
        print_json(found)
        return
    if not found.items:
        output.print(f"Nothing to clear up in {found.store}")
        return
    rows = [
        [item.path, size_text(item.num_bytes), f"{item.num_files:,}", item.reason]
        for item in found.items
    ]
    print_table(found.store, ["path", "size", "files", "reason"], rows)
    output.print(
        f"{'Would free' if dry_run else 'Freed'} {size_text(found.num_bytes)} "
        f"({found.num_bytes:,} bytes) in {counted(found.num_files, 'file')}"
    )
