"""Sharing: copying artifacts between stores, only what is missing, checked on the way."""

from __future__ import annotations

from fusestore.workflows.sharing.run import Shared, copy_artifacts, sync_stores

__all__ = ["Shared", "copy_artifacts", "sync_stores"]
