"""Without a trainer's package, its adapter says what to install."""

import sys

import pytest

from fusestore import integrations
from fusestore.errors import MissingDependencyError


@pytest.mark.parametrize(
    ("adapter", "module", "package"),
    [("FusionModule", "lightning_module", "lightning"), ("FusionSFTTrainer", "trl_trainer", "trl")],
)
def test_what_to_install(monkeypatch, adapter, module, package):
    monkeypatch.delitem(sys.modules, f"fusestore.integrations.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=f"{adapter} needs.*pip install {package}"):
        getattr(integrations, adapter)
    with pytest.raises(AttributeError, match="FusionTrainr"):
        _ = integrations.FusionTrainr
