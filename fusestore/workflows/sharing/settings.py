"""`CopySettings`: how artifacts are copied; the options of `fusestore push`, `pull` and `sync`."""

from __future__ import annotations

from pydantic import Field

from fusestore.store.copy import FILES_AT_ONCE
from fusestore.store.listed import Listed, listed
from fusestore.store.manifest import Frozen


class CopySettings(Frozen):
    """How artifacts are copied from one store to another."""

    inputs: bool = Field(
        default=False,
        description="Also copy the artifacts that these were made from.",
        json_schema_extra={"names": ["--with-inputs"]},
    )
    jobs: int = Field(
        default=FILES_AT_ONCE,
        ge=1,
        description="Number of files copied at the same time.",
        json_schema_extra={"short": "-j"},
    )
    check: bool = Field(
        default=False,
        description="Also read files that were copied before; replace damaged ones.",
    )
    expect: Listed[str, str] = Field(
        default=listed(),
        description="Key `checksum` of the artifact's manifest, from its author; anything else is "
        "refused. KIND/NAME=DIGEST if several artifacts are copied, each once.",
        json_schema_extra={"metavar": "DIGEST"},
    )
