"""`docs/tree.md` shows the tree as it is, and the package's rules of the house hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

from tests import import_graph, tree
from vllm.settings.target import TARGETS

ROOT = tree.ROOT
MAX_LINES = 600


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


IN_TARGETS = ("vllm/targets/cpu/", "vllm/targets/neuronx/", "vllm/targets/null.py", "vllm/settings/target.py")
JSON_WORDS = ("vllm/entrypoints/chat_output/parsers/",)


def test_generic_code_names_no_target():
    """Code outside the targets and their registry asks a `Target` or its profile what it can do."""
    named = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in ROOT.glob("vllm/**/*.py")
        if not str(path.relative_to(ROOT)).startswith((*IN_TARGETS, *JSON_WORDS))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in TARGETS
    ]
    assert not named


def test_only_the_accelerator_and_the_plan_read_its_config():
    """What other targets and the runner need to know of programs is in `ProgramConfig`, in no target's words."""
    generic = ("vllm/targets/cpu", "vllm/targets/null.py", "vllm/runner/model_runner.py", "vllm/core", "vllm/engine")
    readers = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in ROOT.glob("vllm/**/*.py")
        if str(path.relative_to(ROOT)).startswith(generic)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "neuron_config"
    ]
    assert not readers


def test_importing_the_package_is_light():
    heavy = ("torch", "transformers", "numpy", "fastapi", "zmq")
    code = f"import sys, vllm; print(*(name for name in {heavy} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == ""


def test_neither_files_nor_packages_import_in_circles():
    graph = import_graph.files(ROOT)
    assert import_graph.circles(graph) == []
    assert import_graph.circles(import_graph.packages(graph, ROOT)) == []


def test_a_circle_is_found():
    assert import_graph.circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
