"""What CONTRIBUTING.md says of the tree is so: its lists of files, its commands, and what a checkout is set up with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from setuptools import Distribution

from tests.tree import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
EXAMPLES = {
    "A model": r"qwen3_moe|Qwen3Moe",
    "A sampling parameter": r"\bmin_p\b",
    "An endpoint": r"Detokenize(Request|Response)|/detokenize",
    "A target": r"\btargets\.null\b|NullTarget",
    "An op": r"rope_kv|RopeKv",
    "A format": r"q4_min|kQ4Min",
}
"""Pattern of the names of each section's example, by heading."""
LISTS_OF_NAMES = {"A sampling parameter": {"vllm/targets/neuronx/model_entries.py"}}
"""Files that list foreign names, the example's among them: entries of transformers' configs."""


@pytest.fixture(scope="module")
def product_files() -> dict[str, str]:
    """Text of every product file, by path."""
    paths = [
        *ROOT.glob("vllm/**/*.py"),
        *(path for form in ("h", "cpp", "inc") for path in ROOT.glob(f"csrc/**/*.{form}")),
    ]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}
    return {name: text for name, text in texts.items() if not name.startswith("csrc/tests/")}


def _section(heading: str) -> str:
    _, found, rest = PAGE.partition(f"\n## {heading}\n")
    assert found, f"CONTRIBUTING.md has no section {heading!r}"
    return rest.partition("\n## ")[0]


def test_every_file_it_names_is_there():
    names = set(re.findall(r"`((?:\w+/[\w./]*|[\w.-]+\.(?:md|toml|yaml)))`", PAGE))
    assert len(names) > 30
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


def test_every_addition_has_an_example():
    headings = re.findall(r"^## (.*)$", PAGE, flags=re.MULTILINE)
    assert headings == list(EXAMPLES)


@pytest.mark.parametrize("heading", EXAMPLES)
def test_its_lists_of_files_are_whole(heading: str, product_files: dict[str, str]):
    """The example of each section occurs in the product files that the section lists, and in no other."""
    listed = re.findall(r"^\d+\. `([^`]+)`", _section(heading), flags=re.MULTILINE)
    touched = {name for name, text in product_files.items() if re.search(EXAMPLES[heading], text)}
    assert touched - LISTS_OF_NAMES.get(heading, set()) == set(listed)


def test_its_commands_are_targets_of_make():
    commands = set(re.findall(r"(?:^|`)make ([a-z-]+)", PAGE, flags=re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
    assert "smoke" in commands
    assert commands <= targets


def test_commits_run_the_commands_of_make_lint():
    _, _, recipe = MAKEFILE.partition("\nlint:")
    commands = re.match(r".*\n((?:\t.*\n)+)", recipe)
    assert commands is not None
    wanted = [line.strip().replace("$(BIN)", ".venv/bin") for line in commands[1].splitlines()]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"] for hook in repository["hooks"]] == wanted
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in repository["hooks"])


def test_a_wheel_tells_type_checkers_that_the_package_is_typed(monkeypatch: pytest.MonkeyPatch):
    """PEP 561: `py.typed` is among the data files that setuptools puts into a wheel."""
    monkeypatch.chdir(ROOT)
    distribution = Distribution()
    distribution.parse_config_files()
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    build.manifest_files = {}  # of a source distribution, which is not made here
    packaged = {Path(path).name for path in build.find_data_files("vllm", "vllm")}
    assert "py.typed" in packaged
