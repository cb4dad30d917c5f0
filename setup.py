"""Builds vllm._cpu, the native core of the `cpu` target. Everything else is in pyproject.toml.

Kernels are compiled once an instruction set, each file with its own flags; which of them run is decided at load.
Objects are compiled in parallel, and again only when what they were made of is newer.
"""

import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

CORE = Path("csrc")


def read_flags(path):
    """The variables of a file of Make's `NAME := words`, each a list of words."""
    flags = {}
    for line in path.read_text().splitlines():
        name, assigned, words = line.partition(" := ")
        if assigned:
            flags[name] = [
                flag for word in words.split() for flag in (flags[word[2:-1]] if word.startswith("$(") else [word])
            ]
    return flags


FLAGS = read_flags(CORE / "flags.mk")
ISAS = [name.removeprefix("ISA_") for name in FLAGS if name.startswith("ISA_")]
COMMON = [*FLAGS["LANGUAGE"], *FLAGS["WARNINGS"], "-O3", "-g0", "-fvisibility=hidden"]


def flags_for(source):
    path = Path(source)
    return FLAGS[f"ISA_{path.stem}"] if path.parent.name == "isa" else []


def inputs_of(target):
    """The files that an object was made of, as the compiler noted them; none if it did not."""
    note = target.with_suffix(".d")
    if not note.exists():
        return []
    words = note.read_text().replace("\\\n", " ").split()
    return [Path(word) for word in words if not word.endswith(":")]


def is_up_to_date(target):
    inputs = [*inputs_of(target), CORE / "flags.mk", Path(__file__)]
    if len(inputs) == 2 or not target.exists() or not all(path.exists() for path in inputs):
        return False
    return target.stat().st_mtime >= max(path.stat().st_mtime for path in inputs)


class BuildCore(build_ext):
    def build_extensions(self):
        compiler = self.compiler

        def compile_one(source, output_dir, include_dirs):
            (target,) = compiler.object_filenames([source], output_dir=output_dir)
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            if self.force or not is_up_to_date(Path(target)):
                includes = [f"-I{path}" for path in [*compiler.include_dirs, *include_dirs]]
                command = [*compiler.compiler_so, *COMMON, *flags_for(source), *includes]
                command = [part for part in command if part not in ("-g", "-O2", "-Wstrict-prototypes")]
                subprocess.run([*command, "-MMD", "-c", source, "-o", target], check=True)
            return target

        def compile_all(sources, output_dir=None, include_dirs=None, **_):
            with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
                return list(threads.map(lambda source: compile_one(source, output_dir, include_dirs or []), sources))

        compiler.compile = compile_all
        super().build_extensions()


if platform.machine() not in ("x86_64", "AMD64"):
    ISAS = ["portable"]

headers = [path for path in CORE.rglob("*") if path.suffix in (".h", ".inc", ".mk")]
kernels = [CORE / "kernels" / "isa" / f"{isa}.cpp" for isa in ISAS]
sources = [*sorted((CORE / "bindings").glob("*.cpp")), *sorted((CORE / "runtime").rglob("*.cpp")), *kernels]
# The slowest first.
sources.sort(key=lambda path: path.parent.name != "isa")

setup(
    ext_modules=[
        Pybind11Extension(
            "vllm._cpu",
            [str(path) for path in sources],
            include_dirs=[str(CORE)],
            depends=[str(path) for path in headers],
            cxx_std=20,
        )
    ],
    cmdclass={"build_ext": BuildCore},
)
