"""`vllm collect-env`: what a bug report needs to say of this machine. Nothing secret: keys and tokens are not shown."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from vllm import envs
from vllm.sizes import GIB
from vllm.version import __version__

_PACKAGES = (
    "fastapi",
    "gguf",
    "httptools",
    "jinja2",
    "msgspec",
    "neuronx-distributed-inference",
    "neuronx-cc",
    "numpy",
    "pydantic",
    "pyzmq",
    "safetensors",
    "tokenizers",
    "torch",
    "torch-neuronx",
    "transformers",
    "uvicorn",
    "uvloop",
)
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "sve", "bf16")


def main(argv: list[str]) -> int:
    argparse.ArgumentParser(prog="vllm collect-env", description=__doc__).parse_args(argv)
    for name, value in report():
        print(f"{name:<32} {value}")
    return 0


def report() -> Iterator[tuple[str, str]]:
    memory = psutil.virtual_memory()
    yield "vllm", __version__
    yield "python", sys.version.split()[0]
    yield "system", platform.platform()
    yield "processor", _cpu_name()
    yield "processors", f"{psutil.cpu_count(logical=False)} cores, {psutil.cpu_count()} logical, {_num_usable()} usable"
    yield "instruction sets", " ".join(_cpu_flags()) or "none known"
    yield "memory", f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} GiB available"
    yield "neuron devices", ", ".join(sorted(path.name for path in Path("/dev").glob("neuron*"))) or "none"
    for package in _PACKAGES:
        yield package, _version_of(package)
    yield from _set_variables()


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_info() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.is_file() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _cpu_name() -> str:
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    info = _cpu_info()
    known = set((info.get("flags") or info.get("Features") or "").split())
    return [flag for flag in _FLAGS if flag in known]


def _num_usable() -> int:
    process = psutil.Process()
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1


def _set_variables() -> Iterator[tuple[str, str]]:
    """The variables of `envs` that differ from their defaults."""
    for name, variable in envs.VARIABLES.items():
        value = getattr(envs, name)
        if value != variable.default:
            yield name, "(set)" if any(word in name for word in _SECRET) else str(value)
