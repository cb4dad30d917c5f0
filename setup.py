"""Builds vllm._cpu, the native core of the `cpu` target. Everything else is in pyproject.toml.

Kernels are compiled once an instruction set, each file with its own flags; which of them run is decided at load.
Objects are compiled in parallel, and again only when a source or header is newer.
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


class BuildCore(build_ext):
    def build_extensions(self):
        compiler = self.compiler
        newest_header = max(path.stat().st_mtime for path in headers)

        def compile_one(source, output_dir, include_dirs, arguments):
            (target,) = compiler.object_filenames([source], output_dir=output_dir)
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            newest = max(newest_header, Path(source).stat().st_mtime, Path(__file__).stat().st_mtime)
            if self.force or not Path(target).exists() or Path(target).stat().st_mtime < newest:
                includes = [f"-I{path}" for path in [*compiler.include_dirs, *include_dirs]]
                command = [*compiler.compiler_so, *COMMON, *flags_for(source), *includes, "-c", source, "-o", target]
                subprocess.run(
                    [part for part in command if part not in ("-g", "-O2", "-Wstrict-prototypes")], check=True
                )
            return target

        def compile_all(sources, output_dir=None, include_dirs=None, extra_postargs=None, **_):
            with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
                return list(
                    threads.map(
                        lambda source: compile_one(source, output_dir, include_dirs or [], extra_postargs), sources
                    )
                )

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
