"""`fusestore ls`: the artifacts of a store."""

from __future__ import annotations

from .console import print_json, print_table
from .options import JsonOption, StorageOption, StoreOption, open_store


def ls(
    store: StoreOption,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the artifacts of a store with their states.

    Only manifests are read. An artifact with a damaged manifest is listed as damaged.
    """
    from fusestore.store.listing import store_listing

    listing = store_listing(open_store(store, storage_option))
    if as_json:
        print_json(listing)
        return
    print_table(*listing.table())
