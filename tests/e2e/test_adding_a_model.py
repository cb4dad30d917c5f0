"""docs/adding_a_model.md, followed to the letter: its code blocks, run, against transformers."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_models import test_logits_equal_transformers as check_logits
from vllm.checkpoint import config as checkpoint_config
from vllm.targets.cpu import models

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_model.md"


def code_block(title: str) -> str:
    blocks = re.findall(rf"```python title={title}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 1, title
    return blocks[0]


CASES: list[tuple[str, str, dict[str, Any]]] = ast.literal_eval(code_block("cases"))


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections 1 to 4 of the page, after what the tree has of its example was taken out."""
    for model_type, defaults in ast.literal_eval(code_block("family")).items():
        monkeypatch.delitem(checkpoint_config.FAMILIES, model_type)
        monkeypatch.delitem(models._BUILDERS, defaults["architecture"])
        monkeypatch.setitem(checkpoint_config.FAMILIES, model_type, defaults)
    module: dict[str, Any] = {}
    exec(code_block("model"), module)
    for architecture in module["ARCHITECTURES"]:
        monkeypatch.setitem(models._BUILDERS, architecture, module["build"])


@pytest.mark.usefixtures("family")
@pytest.mark.parametrize(("name", "switch", "overrides"), CASES, ids=[switch for _, switch, _ in CASES])
def test_the_page(name: str, switch: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    check_logits(name, switch, overrides, tmp_path)


def test_every_file_it_names_is_there() -> None:
    names = re.findall(r"`((?:vllm|tests|csrc|docs)/[\w./<>]*)`", PAGE.read_text())
    assert len(names) > 10
    missing = [name for name in names if not (PAGE.parents[1] / name).exists()]
    assert missing == ["vllm/targets/cpu/models/ministral.py"]
