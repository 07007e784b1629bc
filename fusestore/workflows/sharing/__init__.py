"""Sharing: copying missing artifacts between stores, with checks of every file."""

from __future__ import annotations

from fusestore.workflows.sharing.run import Shared, copy_artifacts, sync_stores

__all__ = ["Shared", "copy_artifacts", "sync_stores"]
