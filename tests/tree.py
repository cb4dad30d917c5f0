"""The tree in `docs/tree.md`: every file of the checkout with the first sentence of its own head.

python -m tests.tree      # write it anew
"""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "tree.md"
_HEAD = """# The tree

Every file of the checkout with the first sentence of its own head. `python -m tests.tree` writes it anew.

"""
_SKIPPED = re.compile(r"(^|/)(__init__\.py|py\.typed|\.gitignore)$|^benchmarks/results/")
_COLUMN = 36
_LONGEST = 100


def tracked() -> list[str]:
    """Files that the tree names: all but package markers and results."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(path for path in listing.splitlines() if not _SKIPPED.search(path) and (ROOT / path).exists())


def written() -> str:
    """The document as it stands."""
    return DOCUMENT.read_text()


def render() -> str:
    """The document as it should stand: two spaces per level, folders after files."""
    lines: list[str] = []
    _render_folder(_nested(tracked()), Path(), 0, lines)
    return "\n".join([f"{_HEAD}```text", *lines, "```", ""])


def _nested(paths: list[str]) -> dict:
    root: dict = {}
    for path in paths:
        *folders, name = path.split("/")
        node = root
        for folder in folders:
            node = node.setdefault(folder + "/", {})
        node[name] = None
    return root


def _render_folder(node: dict, folder: Path, level: int, lines: list[str]) -> None:
    for name, child in sorted(node.items(), key=lambda item: (item[1] is not None, item[0])):
        label = "  " * level + name
        text = _about(ROOT / folder / name) if child is None else _about(ROOT / folder / name / "__init__.py")
        lines.append(f"{label:<{_COLUMN}} {text}".rstrip())
        if child is not None:
            _render_folder(child, folder / name, level + 1, lines)


def _about(path: Path) -> str:
    """The first sentence of a file's head; nothing for files that have none."""
    if not path.exists():
        return ""
    if path.suffix == ".py":
        head = ast.get_docstring(ast.parse(path.read_text())) or ""
    elif path.suffix in (".h", ".cpp", ".inc"):
        head = " ".join(line[3:] for line in _leading(path, "//"))
    elif path.suffix == ".md":
        head = path.read_text().partition("\n")[0].lstrip("# ")
    elif path.suffix == ".txt" or path.name == "run":
        head = " ".join(line.lstrip("# ") for line in _leading(path, "#") if not line.startswith("#!"))
    else:
        return ""
    sentence = re.split(r"(?<=[^.])\.(?:\s|$)", " ".join(head.split()), maxsplit=1)[0]
    return sentence if len(sentence) <= _LONGEST else re.split(r"[;:,]\s", sentence, maxsplit=1)[0]


def _leading(path: Path, mark: str) -> list[str]:
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith(mark):
            break
        lines.append(line)
    return lines


if __name__ == "__main__":
    DOCUMENT.write_text(render())
