"""Licenses of models and texts, as artifacts record them.

A license says nothing about the numbers of an artifact, so it is in manifests, beside the content
that a digest identifies, and never in a fingerprint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from fusestore.store.manifest import Frozen

_HUB_IDS = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m
bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0
cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr
llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by
ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl
zlib
"""

HUB_IDS = frozenset(_HUB_IDS.split())
"""Identifiers of licenses in a card of the Hub."""

_SPELLINGS = (
    (r"apache[ -](software )?(license,? )?(version )?2(\.0)?\b", "apache-2.0"),
    (r"(the )?mit( license)?\b", "mit"),
    (r"gemma( terms of use)?\b", "gemma"),
    (r"(meta )?llama (?P<version>3\.[123]|[34]) community license", "llama"),
    (r"bsd[ -]3[ -]clause\b", "bsd-3-clause"),
    (r"bsd[ -]2[ -]clause\b", "bsd-2-clause"),
    (r"cc0\b", "cc0-1.0"),
    (r"gnu affero general public license.*version 3", "agpl-3.0"),
    (r"gnu general public license.*version 3", "gpl-3.0"),
    (r"gnu general public license.*version 2", "gpl-2.0"),
)
"""How people write licenses that have an identifier, in lower case from the beginning."""

_MAX_NAME = 200
_MAX_LINK = 500

StatedIn = Literal["user", "card", "gguf", "package", "file", "inputs"]


def _is_none(value: object) -> bool:
    return value is None


class License(Frozen):
    """The license of a model or a text.

    Attributes:
        id: its identifier on the Hub, such as apache-2.0; `other` if it has none there.
        name: what it was called where it was found; left out if that is the identifier.
        link: URL or file of its text; left out if none was named.
        stated_in: where it was found: `user`, who named it; `card`, the model's README.md; `gguf`,
            metadata of a GGUF file; `package`, metadata of a Python package; `file`, the text of
            a license in the model's folder; `inputs`, of what the model was made from.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.+-]{0,63}$")
    name: str | None = Field(default=None, max_length=_MAX_NAME, exclude_if=_is_none)
    link: str | None = Field(default=None, max_length=_MAX_LINK, exclude_if=_is_none)
    stated_in: StatedIn

    @classmethod
    def of(
        cls,
        text: object,
        stated_in: StatedIn,
        *,
        name: object = None,
        link: object = None,
    ) -> License | None:
        """The license that a text names; None if it names none, or says that it is unknown.

        Args:
            text: an identifier of the Hub or of SPDX, or the name of a license.
            stated_in: where the text is from.
            name: what the license is called, if that is stated beside it.
            link: where its text is.
        """
        shown = _line(text, _MAX_NAME)
        if shown is None or shown.lower() in ("unknown", "none"):
            return None
        identifier = license_id(shown)
        called = _line(name, _MAX_NAME)
        if called is None and shown.lower() != identifier:
            called = shown
        return cls(id=identifier, name=called, link=_line(link, _MAX_LINK), stated_in=stated_in)

    def __str__(self) -> str:
        """The identifier, with the name if that says more."""
        if self.name is None:
            return self.id
        return self.name if self.id == "other" else f"{self.id} ({self.name})"


class LicensedInput(Frozen):
    """One model or text that something was made from, with its license.

    Attributes:
        role: `teacher`, a model with distributions; `base`, the model that training started from;
            `merged`, one of the models of a merge.
        name: of its cache, or of the model.
        digest: of the cache's content, or of the model's folder.
        model_spec: opens the model on any machine, `package:NAME` or `HUB_ID@COMMIT`; null if it
            was a folder.
        license: null if it is unknown.
    """

    role: Literal["teacher", "base", "merged"]
    name: str
    digest: str
    model_spec: str | None
    license: License | None


def worth_keeping(inputs: Iterable[LicensedInput]) -> tuple[LicensedInput, ...]:
    """The inputs, each once; none if neither a license nor a model's name is known of any."""
    found = tuple(dict.fromkeys(inputs))
    return found if any(each.license or each.model_spec for each in found) else ()


def joint_license(licenses: Iterable[License | None]) -> License | None:
    """The license of something made from all of these; None if one is unknown or there is none.

    Several licenses apply side by side, so together they are `other`, with all their names.
    """
    listed = list(licenses)
    known = [each for each in listed if each is not None]
    if not known or len(known) < len(listed):
        return None
    if len({(each.id, each.name) for each in known}) == 1:
        return known[0].model_copy(update={"stated_in": "inputs"})
    if len({each.id for each in known}) == 1 and known[0].id != "other":
        return License(id=known[0].id, stated_in="inputs")
    names = ", ".join(dict.fromkeys(str(each) for each in known))
    return License(id="other", name=names[:_MAX_NAME], stated_in="inputs")


def license_id(text: str) -> str:
    """The Hub's identifier of a license by its identifier there, SPDX identifier or name."""
    lowered = " ".join(text.lower().split())
    plain = re.sub(r"-(only|or-later)$", "", lowered)
    for candidate in (lowered, plain):
        if candidate in HUB_IDS:
            return candidate
    for pattern, identifier in _SPELLINGS:
        match = re.match(pattern, lowered)
        if match is not None:
            version = match.groupdict().get("version")
            return identifier if version is None else f"{identifier}{version}"
    return "other"


def _line(value: Any, limit: int) -> str | None:  # noqa: ANN401 - from metadata of strangers
    """Text on one line without control characters; None for anything else, and for no text."""
    if not isinstance(value, str):
        return None
    text = " ".join("".join(c if c.isprintable() else " " for c in value).split())
    return text[:limit] or None
