"""The JSON files of an artifact's part: its index and its programs, read with nothing believed.

    index.json              see `packing.lay_out`; beside it `kv` (what the KV cache looks like) and `hidden_width`
    programs/<name>.json    see `plan.plan`

What they may hold follows from the configuration: the names of the programs and how much each takes at once. All else,
each buffer, weight and number, is checked by the native core when it builds a program.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm.artifacts.manifest import DamagedArtifact, read_json
from vllm.targets.cpu.ops import Malformed
from vllm.targets.cpu.plan import ProgramSpec

Index = dict[str, Any]
"""What `packing.pack` returns, and beside it `kv` and `hidden_width`."""
Specs = Mapping[str, ProgramSpec]
"""Programs by name."""

_KV = ("num_layers", "num_kv_heads", "head_dim", "vocab_size")
_MAX_EXTENT = 2**24
"""As the native core's: most layers, heads, dimensions and tokens of a vocabulary."""


@contextmanager
def damage_of(artifact: Path) -> Iterator[None]:
    """What is malformed within the block is damage of the artifact."""
    try:
        yield
    except Malformed as error:
        raise DamagedArtifact(f"{artifact} cannot be run: {error}") from error


def read_part(directory: Path, shapes: Mapping[str, tuple[int, int]]) -> tuple[Index, Specs]:
    """Index and programs of a part that is to hold those `shapes`: most tokens and samples of a step, by program.

    Raises DamagedArtifact for files that cannot be read, Malformed for others than those.
    """
    index = read_json(directory / "index.json")
    _check_index(index)
    specs = {name: read_json(directory / "programs" / f"{name}.json") for name in shapes}
    for name, shape in shapes.items():
        _check_shape(name, specs[name], shape)
    return index, specs


def _check_index(index: Any) -> None:
    if not isinstance(index, dict) or not isinstance(index.get("weights"), dict):
        raise Malformed("index.json is not an object that has weights")
    kv = index.get("kv")
    if not isinstance(kv, dict) or set(kv) != set(_KV):
        raise Malformed(f"index.json's kv does not have exactly {', '.join(_KV)}")
    extents = {**kv, "hidden_width": index.get("hidden_width")}
    for name, value in extents.items():
        if type(value) is not int or not 0 <= value <= _MAX_EXTENT:
            raise Malformed(f"index.json: {name} is {value!r:.40}; it must be a whole number up to {_MAX_EXTENT}")


def _check_shape(name: str, spec: Any, shape: tuple[int, int]) -> None:
    if not isinstance(spec, dict):
        raise Malformed(f"program {name} is not an object")
    found = spec.get("max_tokens"), spec.get("max_samples")
    if found != shape:
        raise Malformed(f"program {name} is for {found!r:.60} tokens and samples at once, not {shape}")
