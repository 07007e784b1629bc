"""Publishing: artifacts with a card that says what they are, on the Hub or beside a store."""

from __future__ import annotations

from fusestore.workflows.publishing.run import Published, publish_artifacts
from fusestore.workflows.publishing.settings import PublishSettings

__all__ = ["PublishSettings", "Published", "publish_artifacts"]
