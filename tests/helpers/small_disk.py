"""A disk that can be full or read-only."""

import os
import subprocess

import pytest


class Disk:
    """A small filesystem of its own."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self._mount("-t", "tmpfs", "-o", "size=64m", "tmpfs")

    def leave_free(self, num_bytes):
        stat = os.statvfs(self.folder)
        used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
        self._mount("-o", f"remount,size={used + num_bytes}")

    def make_read_only(self, read_only):
        self._mount("-o", f"remount,{'ro' if read_only else 'rw'}")

    def _mount(self, *options):
        done = subprocess.run(
            ["mount", *options, str(self.folder)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"this machine does not let tests mount: {done.stderr.strip()}")
