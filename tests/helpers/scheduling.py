"""Which process runs which tests, also when one of them dies."""

from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]
from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

SAME_TOKENIZERS = ("tests/align/", "tests/corpus/", "tests/tokenizers/")
"""Folders whose tests share real tokenizers: each takes seconds to make, in each process."""


class FilesTogether(LoadFileScheduling):
    """A process gets whole files, and all that use the same tokenizers.

    A test that ends its process is one failure, and the others run: xdist 3.8 hands out again all
    that the process had done, runs the deadly test again, and waits forever at the end
    (pytest-dev/pytest-xdist#1327, #1371, #1378).
    """

    def _split_scope(self, nodeid: str) -> str:
        return "tokenizers" if nodeid.startswith(SAME_TOKENIZERS) else super()._split_scope(nodeid)

    def remove_node(self, node: WorkerController) -> str | None:
        """Return the test that ended a process, if one did, and put back those after it."""
        workload = self.assigned_work.pop(node)
        pending = [
            (scope, test)
            for scope, tests in workload.items()
            for test, is_done in tests.items()
            if not is_done
        ]
        if not pending:
            return None
        (scope, deadly), *others = pending
        workload[scope][deadly] = True
        self.workqueue.update({scope: workload[scope] for scope, _ in others})
        for each in self.nodes:
            self._reschedule(each)
        return deadly

    def _reschedule(self, node: WorkerController) -> None:
        super()._reschedule(node)
        # A process runs a test when it knows the next one, or that there is none.
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)
