"""A strict stand-in for NxD Inference, in versions 0.4.0, 0.7.0 and 0.9.0, that computes on a CPU.

`site/` holds real packages under the library's names. They have its constructors, `forward` signature and behaviours,
and run a tiny Llama whose KV cache is read by row and written by line, as the compiled graphs do: rows out of order,
lines left out of a decode, padding in the wrong place or a bucket chosen wrongly give another text.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SITE = Path(__file__).parent / "site"
VERSIONS = ("0.4.0", "0.7.0", "0.9.0")
_PACKAGES = ("neuronx_distributed_inference", "torch_neuronx")


def write_metadata(directory: Path, version: str) -> Path:
    """What pip would have left beside the package: the place its version is read from."""
    info = directory / f"neuronx_distributed_inference-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: neuronx-distributed-inference\nVersion: {version}\n")
    return directory


@contextmanager
def installed(version: str, directory: Path) -> Iterator[None]:
    """Importable as that version inside the block; afterwards nothing of it is left in this process."""
    paths = [str(SITE), str(write_metadata(directory, version))]
    sys.path[:0] = paths
    _forget()
    try:
        yield
    finally:
        for path in paths:
            sys.path.remove(path)
        _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in _PACKAGES]:
        del sys.modules[name]
    importlib.invalidate_caches()
