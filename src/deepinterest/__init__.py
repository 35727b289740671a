"""deepinterest: click-through-rate models over user behaviour.

One shape legend for the whole project:

    B  rows of a batch: candidates to score          T  steps of one history
    G  histories of a batch (groups of rows)         K  negatives a positive
    N  events of all histories of a batch            D  item width: its embeddings side by side
    M  (candidate, event) pairs of a batch           H  hidden width
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepinterest.serving.model import load

# Before polars is imported: its allocator returns to the machine what has been free for 0.1 s, and keeps no more.
os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:100,muzzy_decay_ms:0")
# Before torch is imported: its threads sleep while they wait for work. By default they spin for some milliseconds, on
# the core that our own threads or another process want. Processes started from this one inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "load":  # only then torch is imported
        from deepinterest.serving.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
