"""For tests of your own: a model server that speaks the protocols of engines, with faults.

`ProtocolServer` answers as vLLM and SGLang do, from rows of a model that you give it, on this
machine's loopback. `transformers_rows` makes such rows from a model of transformers.
"""

from fusestore.testing.faults import CONTENT_FAULTS, SILENT_FAULTS, TRANSPORT_FAULTS
from fusestore.testing.protocol_server import ProtocolServer, transformers_rows

__all__ = [
    "CONTENT_FAULTS",
    "SILENT_FAULTS",
    "TRANSPORT_FAULTS",
    "ProtocolServer",
    "transformers_rows",
]
