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
COMMON = [
    "-std=c++20",
    "-Wall",
    "-Wextra",
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
]
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
ISA_FLAGS = {
    "avx512_bf16": [*AVX512, "-mavx512bf16", "-mavx512vnni"],
    "avx512": AVX512,
    "avx2": AVX2,
    "portable": ["-Wno-psabi"],
}


def flags_for(source):
    path = Path(source)
    return ISA_FLAGS[path.stem] if path.parent.name == "isa" else []


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
    ISA_FLAGS = {"portable": ISA_FLAGS["portable"]}

headers = [path for path in CORE.rglob("*") if path.suffix in (".h", ".inc")]
kernels = [CORE / "kernels" / "isa" / f"{isa}.cpp" for isa in ISA_FLAGS]
sources = [CORE / "bindings.cpp", *sorted((CORE / "runtime").glob("*.cpp")), *kernels]
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
