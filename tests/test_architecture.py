"""`docs/architecture.md` shows the tree as it is, and the package's rules of the house hold."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
MAX_LINES = 700


def _listed() -> set[str]:
    """Paths of the tree in the document: two spaces a level, a name, then what it is."""
    block = re.search(r"## The tree\n.*?```text\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    if block is None:
        raise AssertionError("no tree in docs/architecture.md")
    paths, parents = set(), []
    for line in block.group(1).splitlines():
        name = line.split()[0]
        level = (len(line) - len(line.lstrip())) // 2
        parents[level:] = [name.rstrip("/")]
        if not name.endswith("/"):
            paths.add("/".join(parents))
    return paths


def _tracked() -> set[str]:
    """Files of the checkout that the document must name: all but package markers, results and dot files."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    skipped = re.compile(r"(^|/)(__init__\.py|py\.typed)$|^\.git|^benchmarks/results/")
    return {path for path in listing.splitlines() if not skipped.search(path) and (ROOT / path).exists()}


def test_the_documents_tree_is_the_real_one():
    listed, tracked = _listed(), _tracked()
    assert not listed - tracked, f"in the document but not in the tree: {sorted(listed - tracked)}"
    assert not tracked - listed, f"in the tree but not in the document: {sorted(tracked - listed)}"


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
