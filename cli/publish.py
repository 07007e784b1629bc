"""`fusestore publish`: artifacts and a card, on the Hub or in other storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fusestore.store.shown_table import counted
from fusestore.workflows.publishing.settings import PublishSettings

from .console import ConsoleReporter, output, print_json
from .options import (
    DryRunOption,
    JsonOption,
    StorageOption,
    StoreOption,
    open_store,
    storage_options,
)
from .settings_options import settings_options

if TYPE_CHECKING:
    from fusestore.workflows.publishing.run import Published


@settings_options(PublishSettings)
def publish(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="KIND/NAME ... TARGET",
            help="Artifacts, as `fusestore ls` lists them, and last the target: "
            "hf://datasets/OWNER/NAME, which becomes a store; hf://OWNER/NAME for one model; "
            "s3://bucket/prefix or any other store. @BRANCH may follow a NAME of the Hub.",
        ),
    ],
    store: StoreOption,
    settings: PublishSettings,
    everything: Annotated[
        bool, typer.Option("--all", help="Publish every complete artifact; name the target alone.")
    ] = False,
    storage_option: StorageOption = None,
    to_storage_option: Annotated[
        list[str] | None,
        typer.Option(
            "--to-storage-option",
            metavar="KEY=VALUE ...",
            help="Option of the target's storage, such as endpoint_url=URL. Of the Hub, the token "
            "is that of `hf auth login` or HF_TOKEN unless it is given here.",
        ),
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Publish artifacts with a card, on the Hub or in other storage.

    The card, README.md, is written from the manifests: models with revisions and licenses, text,
    sizes, measured errors, coverage, results, checksums, and how to read it. What people wrote in
    it stays. Only missing files are sent, and manifests and card come last, so the same command
    continues an interrupted one.
    """
    *names, target = arguments
    if bool(names) == everything:
        raise typer.BadParameter(
            "name the artifacts to publish and then the target, or give --all and the target alone",
            param_hint="KIND/NAME ... TARGET",
        )
    if "://" not in target and "/" in target and not target.startswith((".", "/", "~")):
        raise typer.BadParameter(
            f"the last argument is the target, and {target!r} is the form of an artifact; write "
            f"hf://datasets/OWNER/NAME, a URL, or ./{target} for a folder",
            param_hint="KIND/NAME ... TARGET",
        )
    from fusestore.storage.location import Location
    from fusestore.workflows.publishing.run import publish_artifacts

    opened = open_store(store, storage_option)
    options = storage_options(to_storage_option, "--to-storage-option")
    published = publish_artifacts(
        opened,
        None if everything else names,
        Location.parse(target, options),
        settings,
        ConsoleReporter(),
        dry_run=dry_run,
    )
    if as_json:
        print_json(published)
        return
    _print(published)


def _print(published: Published) -> None:
    verb = "Would publish" if published.dry_run else "Published"
    for each in published.artifacts:
        if each.already_there:
            output.print(f"Already there: {each.artifact}", markup=False)
        else:
            output.print(
                f"{verb} {each.artifact}: {counted(each.num_files, 'file')}, "
                f"{each.num_bytes:,} bytes",
                markup=False,
            )
    if published.dry_run:
        output.print(
            f"In all {counted(published.num_files, 'file')}, {published.num_bytes:,} bytes to "
            f"{published.target}; nothing was written. Its card would be:\n",
            markup=False,
        )
        output.print(published.card, markup=False, highlight=False, soft_wrap=True)
        return
    card = "written" if published.card_changed else "as it was"
    at = f", commit {published.commit[:12]}" if published.commit else ""
    output.print(f"{published.target}: the card is {card}{at}", markup=False)
