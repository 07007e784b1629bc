"""A reporter that keeps the lines it is given."""

from fusestore.progress import SilentReporter


class Lines(SilentReporter):
    """Keeps what a run says, in `said`."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def line(self, text: str) -> None:
        self.said.append(text)

    @property
    def built(self) -> list[str]:
        """A pipeline's stages that were not already there, in order."""
        return self._stages(": done")

    @property
    def found(self) -> list[str]:
        """A pipeline's stages that were already there, in order."""
        return self._stages(": already there")

    def _stages(self, ending: str) -> list[str]:
        return [line.removesuffix(ending) for line in self.said if line.endswith(ending)]
