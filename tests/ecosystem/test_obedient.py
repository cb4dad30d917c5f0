"""What `make test-clients` rests on: the model that does as it is told, what counts as right, and the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ecosystem import checks
from tests.ecosystem.__main__ import BEGIN, DOCUMENT, END, Result, table
from tests.ecosystem.environments import CLIENTS
from tests.ecosystem.obedient import ordered

TOOLS = '<|im_start|>tools\n{"type": "function", "function": {"name": "look", "parameters": {}}}\n<|im_end|>\n'
CALL = '<tool_call>\n{"name": "look", "arguments": {"a": 1}}\n</tool_call>'


def _turn(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (_turn("user", "Hello"), None),
        (_turn("user", "SAY one two\nAnd this is a reminder."), "one two"),
        (_turn("user", "SAY one") + _turn("assistant", "one") + _turn("user", "SAY two"), "two"),
        (_turn("user", r"SAY a\nb"), "a\nb"),
        (_turn("user", "THINK of it SAY one"), "<think>\nof it\n</think>\n\none"),
        (TOOLS + _turn("user", 'CALL look {"a": 1} please'), CALL),
        (TOOLS + _turn("user", 'THINK why CALL look {"a": 1}'), f"<think>\nwhy\n</think>\n\n{CALL}"),
        (TOOLS + _turn("user", 'CALL jump {"a": 1}'), "There is no tool jump."),
        (TOOLS + _turn("user", "CALL look {}") + _turn("tool", "it is\n warm"), "The tool said: it is warm"),
        (TOOLS + _turn("user", "SAY one") + _turn("tool", "SAY two") + _turn("user", "three"), None),
    ],
)
def test_orders(prompt: str, text: str | None) -> None:
    assert ordered(prompt + "<|im_start|>assistant\n") == text


def test_what_counts_as_right() -> None:
    said = [f"The tool said: {city}: 21 degrees" for city in checks.CITIES]
    calls = [{"city": city} for city in checks.CITIES]
    right = {"answer_of_x": "Oslo is cold", "stream": ["Oslo is", " cold"], "object_by_tool": {"city": "Rome"},
             "tools": {"texts": said, "calls": calls}, "tools_x": {"texts": said}, "count": True}  # fmt: skip
    wrong = {"answer_of_x": "Oslo", "stream": ["Oslo is cold"], "object_by_tool": {"city": "Bonn"},
             "tools": {"texts": said, "calls": calls[:1]}, "tools_x": {"texts": said[::-1]}, "count": 3}  # fmt: skip
    assert not [name for name, value in right.items() if checks.fault(name, value)]
    assert not [name for name, value in wrong.items() if not checks.fault(name, value)]


def test_table() -> None:
    client = CLIENTS[0]
    results = [Result(client, "1.0", ["answer"]), Result(client, "2.0", ["answer"], {"tools_streamed": "it gave 3"})]
    assert "| 1.0 | answer | all of it |" in table(results)
    assert "| 2.0 | answer, tools streamed | **tools streamed fails** |" in table(results)


def test_the_document_has_every_client() -> None:
    shown = DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]
    assert [client.name for client in CLIENTS if f"| {client.name} | " not in shown] == []
    drivers = {path.name for path in (Path(__file__).parent / "clients").iterdir() if path.suffix in (".py", ".mjs")}
    assert drivers - {"asked.py", "command.py"} == {client.driver for client in CLIENTS}
