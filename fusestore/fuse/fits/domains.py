"""Where a document comes from: the domain that mixture weights may depend on."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from fusestore.fuse.fits.manifest import FitManifest, Fitted

_ROW = re.compile(r"#\d+$")


def domain_of(source: str) -> str:
    """The domain of a document by its source in the corpus.

    The first folder of its path; for a row of a table without a folder, the table; else "", the
    domain of all other files.
    """
    file = _ROW.sub("", source)
    folder, slash, _ = file.partition("/")
    if slash:
        return folder
    return file if file != source else ""


def fitted_to(manifest: FitManifest, domains: Sequence[str]) -> Fitted:
    """The fit with the corpus's domains, `domains` of every document, if it weighs by domain."""
    if manifest.fingerprint.by != "domain":
        return Fitted(manifest)
    number = {name: index for index, name in enumerate(manifest.domains, start=1)}
    return Fitted(manifest, np.array([number.get(name, 0) for name in domains], np.int32))
