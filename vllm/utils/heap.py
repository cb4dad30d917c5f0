"""The garbage collector, for processes that run long."""

from __future__ import annotations

import gc


def freeze_heap() -> None:
    """What a start has made stays as long as the process: let collections leave it out.

    Each of them would walk all of it, a tenth of a second and more in which nothing else runs. Where this was called
    before, by an earlier engine's start, what has become garbage since goes.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
