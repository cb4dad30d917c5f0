"""docs/neuronx.md names, for each rule and each known defect, the test that holds it; those tests exist."""

from __future__ import annotations

import re

import pytest

from tests.tree import ROOT

DOCUMENT = ROOT / "docs" / "neuronx.md"
_ROW = re.compile(r"^\| (R\d+|V\d+|D\d+|F\d+b?|N\d+) \| (.+?) \| (.+?) \|$", re.MULTILINE)
ROWS = {match[1]: (match[2], match[3]) for match in _ROW.finditer(DOCUMENT.read_text())}
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_every_rule_and_defect_has_its_row():
    rules = {f"R{i}" for i in range(1, 21)}
    versions = {f"V{i}" for i in range(1, 12)}
    defects = {f"D{i}" for i in range(1, 39)}
    fork = {f"F{i}" for i in range(1, 21)} | {"F10b"}
    library = {f"N{i}" for i in range(1, 12)}
    assert set(ROWS) == rules | versions | defects | fork | library


@pytest.mark.parametrize("number", sorted(ROWS))
def test_a_row_names_tests_that_exist_or_says_why_there_is_nothing_to_test(number):
    _, held = ROWS[number]
    named = _TEST.findall(held)
    assert named or held.startswith("Not here:"), f"{number} names no test"
    for path, name in named:
        text = (ROOT / path).read_text() if (ROOT / path).is_file() else ""
        assert re.search(rf"^((async )?def {name}\(|    {name},$)", text, re.MULTILINE), f"{path} has no {name}"
