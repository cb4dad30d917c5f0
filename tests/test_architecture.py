"""`docs/tree.md` shows the tree as it is, and the package's rules of the house hold."""

from __future__ import annotations

import re
import subprocess
import sys

from tests import tree

ROOT = tree.ROOT
MAX_LINES = 700


def test_the_documents_tree_is_the_real_one():
    assert tree.written() == tree.render(), "write it anew with: python -m tests.tree"


def test_files_stay_small():
    sources = [*ROOT.glob("vllm/**/*.py"), *ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/**/*.cpp")]
    large = {
        str(path.relative_to(ROOT)): count
        for path in sources
        if (count := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not large, f"a file this long is two files: {large}"


def test_only_envs_reads_the_environment():
    readers = [
        str(path.relative_to(ROOT))
        for path in ROOT.glob("vllm/**/*.py")
        if path.name != "envs.py" and re.search(r"os\.(environ\.get|getenv|environ\[)", path.read_text())
    ]
    assert not readers


def test_importing_the_package_is_light():
    heavy = ("torch", "transformers", "numpy", "fastapi", "zmq")
    code = f"import sys, vllm; print(*(name for name in {heavy} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == ""
