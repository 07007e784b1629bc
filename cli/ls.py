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
    from fusestore.store.inventory import describe, list_artifacts

    opened = open_store(store, storage_option)
    artifacts = list_artifacts(opened)
    if as_json:
        print_json(
            [
                {
                    "artifact": artifact.path,
                    "state": artifact.state,
                    "complete": artifact.state == "complete",
                    "description": describe(artifact),
                }
                for artifact in artifacts
            ]
        )
        return
    print_table(
        str(opened.location),
        ["artifact", "state", "description"],
        [[artifact.path, artifact.state, describe(artifact)] for artifact in artifacts],
    )
