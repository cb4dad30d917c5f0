"""Which file of the package imports which, read from the sources, and the circles among files and packages."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

PUBLIC_PATHS = frozenset({"vllm", "vllm.reasoning", "vllm.tool_parsers"})
"""Paths of vLLM's that only give names of other modules: everything may import them, and they may import everything."""

Graph = dict[str, set[str]]


def files(root: Path) -> Graph:
    """module -> the modules that it imports, at its top or inside of functions; not those for type checkers alone."""
    paths = {_module(path.relative_to(root)): path for path in root.glob("vllm/**/*.py")}
    graph: Graph = {}
    for module, path in paths.items():
        imported = _imported(ast.parse(path.read_text()), paths)
        graph[module] = imported - {module} - PUBLIC_PATHS if module not in PUBLIC_PATHS else set()
    return graph


def packages(graph: Graph, root: Path) -> Graph:
    """package -> the packages that its files import. A package and one inside of it do not count as two."""
    result: Graph = {}
    for module, imported in graph.items():
        own = _package(module, root)
        for other in (_package(name, root) for name in imported):
            if not own.startswith(other) and not other.startswith(own):
                result.setdefault(own, set()).add(other)
    return result


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups in which each reaches each other."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for name in graph.get(todo.pop(), set()) - seen:
                seen.add(name)
                todo.append(name)
        reach[start] = seen
    groups = {frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in reach if a in reach[a]}
    return sorted(sorted(group) for group in groups)


def _module(path: Path) -> str:
    name = ".".join(path.with_suffix("").parts)
    return name.removesuffix(".__init__")


def _package(module: str, root: Path) -> str:
    is_package = (root / module.replace(".", "/")).is_dir()
    return module if is_package else module.rpartition(".")[0]


def _imported(tree: ast.AST, known: Mapping[str, Path]) -> set[str]:
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if name in known else node.module for name in names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        else:
            found |= _imported(node, known)
    return found & known.keys()
