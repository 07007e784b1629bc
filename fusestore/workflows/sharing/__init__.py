"""Sharing: copying missing artifacts between stores, with checks of every file."""

from __future__ import annotations

from fusestore.workflows.sharing.run import Shared, copy_artifacts, sync_stores
from fusestore.workflows.sharing.settings import CopySettings

__all__ = ["CopySettings", "Shared", "copy_artifacts", "sync_stores"]
