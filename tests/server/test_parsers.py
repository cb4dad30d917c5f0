"""Parsers say the same whatever the pieces were, lose nothing, and take time in proportion to the text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.entrypoints.chat_output.parsers import (
    REASONING_PARSERS,
    TOOL_PARSERS,
    CallArguments,
    CallStart,
    ChainedParser,
    Content,
    NamedCallParser,
    OutputParser,
    Part,
    Reasoning,
    RequiredCallsParser,
    ToolCall,
)
from vllm.entrypoints.chat_output.parsers.json_text import JsonScanner
from vllm.entrypoints.chat_output.parsers.literals import LiteralReader, NotALiteral
from vllm.entrypoints.chat_output.parsers.more_tools import Qwen3CoderParser
from vllm.entrypoints.chat_output.parsers.value_types import SchemaTypes

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": [1, "}</tool"]}}\n</tool_call>'

CODER = """Sure.
<tool_call>
<function=f>
<parameter=a>
1
</parameter>
<parameter=b>
x
y
</parameter>
</function>
</tool_call>"""

TYPED = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {
    "i": {"type": "integer"}, "b": {"type": "boolean"}, "l": {"type": "array"}, "s": {"type": "string"},
    "n": {"type": "number"}, "m": {"type": ["string", "integer", "array"]}}}}}]  # fmt: skip

MADE = ToolCall("f", '{"x": [1, "}</tool"]}')


def joined(parts: list[Part]) -> list[Part]:
    """Neighbours of the same kind as one, calls as whole ones."""
    result: list[Part] = []
    for part in parts:
        last = result[-1] if result else None
        if isinstance(part, CallStart):
            result.append(ToolCall(part.name, ""))
        elif isinstance(part, CallArguments):
            assert isinstance(last, ToolCall), "arguments without a call"
            result[-1] = ToolCall(last.name, last.arguments + part.text)
        elif isinstance(part, (Content, Reasoning)) and type(last) is type(part):
            result[-1] = type(part)(last.text + part.text)  # type: ignore[union-attr]
        else:
            result.append(part)
    return result


def parse(parser: OutputParser, pieces: list[str]) -> list[Part]:
    return joined([part for piece in pieces for part in parser.feed(piece)] + parser.finish())


def scanned(text: str) -> tuple[str, bool, bool]:
    """What was written of a text, whether it closed, and whether it broke off."""
    scanner, position, pieces = JsonScanner(), 0, []
    while position < len(text) and not (scanner.done or scanner.broken):
        piece, position = scanner.take(text, position)
        pieces.append(piece)
    return "".join(pieces), scanner.done, scanner.broken


def is_object_or_begins_one(text: str) -> bool:
    written, _, broken = scanned(text)
    return text.startswith("{") and written == text and not broken


def make(name: str) -> OutputParser:
    """Those of `qwen3_coder` know a tool `f`; others know no tools."""
    if "+" in name:
        reasoning, tools = name.split("+")
        return ChainedParser(REASONING_PARSERS[reasoning](), TOOL_PARSERS[tools]())
    named = {
        "granite_tools": TOOL_PARSERS["granite"],
        "named": lambda: NamedCallParser("f"),
        "required": RequiredCallsParser,
    }
    parser = {**named, **TOOL_PARSERS, **REASONING_PARSERS}[name]()
    if isinstance(parser, Qwen3CoderParser):
        parser.set_tools(TYPED)
    return parser


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("qwen3", "<think>why</think>because", [Reasoning("why"), Content("because")]),
        ("qwen3", "\n<think>\nwhy\n</think>\n\nso </think> it", [Reasoning("\nwhy\n"), Content("\n\nso </think> it")]),
        ("qwen3", "no thought", [Content("no thought")]),
        ("qwen3", "<think>cut off </thi", [Reasoning("cut off </thi")]),
        ("qwen3", "<thi", [Content("<thi")]),
        ("qwen3", " \n a", [Content(" \n a")]),
        ("qwen3", "</think>", [Content("</think>")]),
        ("deepseek_r1", "why</think>because", [Reasoning("why"), Content("because")]),
        ("deepseek_r1", "<think>why</think>because", [Reasoning("why"), Content("because")]),
        ("deepseek_r1", "still thinking", [Reasoning("still thinking")]),
        ("granite", "Here is my thought process: a Here is my response: b", [Reasoning(" a "), Content(" b")]),
        ("hermes", "Hello", [Content("Hello")]),
        ("hermes", CALL, [MADE]),
        ("hermes", f"Let me see.\n{CALL}\n{CALL}\n", [Content("Let me see."), MADE, MADE, Content("\n")]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}}', [ToolCall("f", "{}")]),
        ("hermes", "<tool_call>nonsense</tool_call> x", [Content("<tool_call>nonsense</tool_call> x")]),
        ("hermes", "a </tool_call> b <tool", [Content("a </tool_call> b <tool")]),
        ("hermes", '<tool_call>{"name": 5}</tool_call>', [Content('<tool_call>{"name": 5}</tool_call>')]),
        ("llama3_json", '{"name": "f", "parameters": {"a": 1}}', [ToolCall("f", '{"a": 1}')]),
        ("llama3_json", '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "arguments": {"b": 2}}',
         [ToolCall("f", "{}"), ToolCall("g", '{"b": 2}')]),
        ("llama3_json", '{"no": "call"}', [Content('{"no": "call"}')]),
        ("llama3_json", " plain {", [Content(" plain {")]),
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": "\u2603"}}]', [ToolCall("f", '{"a": "\u2603"}')]),
        ("mistral", "[TOOL", [Content("[TOOL")]),
        ("mistral", "[TOOL_CALLS] []", [Content("[TOOL_CALLS] []")]),
        ("pythonic", "[f(a=1, b='x\\n', c=[1.5, True, None], d={'k': -2}), g.h()]",
         [ToolCall("f", '{"a": 1, "b": "x\\n", "c": [1.5, true, null], "d": {"k": -2}}'), ToolCall("g.h", "{}")]),
        ("pythonic", "[1, 2]", [Content("[1, 2]")]),
        ("pythonic", "[]", [Content("[]")]),
        ("pythonic", "[f(a=__import__('os').abort())]", [Content("[f(a=__import__('os').abort())]")]),
        ("pythonic", "[f(1)]", [Content("[f(1)]")]),
        ("pythonic", "[f(a=1)] and", [ToolCall("f", '{"a": 1}'), Content(" and")]),
        ("pythonic", "[f(a=1, b='c", [ToolCall("f", '{"a": 1')]),
        ("pythonic", "[f(a=1), g(2)]", [ToolCall("f", '{"a": 1}'), Content(", g(2)]")]),
        ("pythonic", "[f(a=1e999, b=-1E999, c=[+.5, 007, 1., 1.50e+3])]",
         [ToolCall("f", '{"a": 1e999, "b": -1E999, "c": [0.5, 7, 1.0, 1.50e+3]}')]),
        ("pythonic", "[f(a=nan)]", [Content("[f(a=nan)]")]),
        ("pythonic", "[f(a=-inf)]", [Content("[f(a=-inf)]")]),
        ("pythonic", "[f(a=\u0661)]", [Content("[f(a=\u0661)]")]),
        ("pythonic", "[f(a='\\ud83d\\ude00 \\ud800')]", [ToolCall("f", '{"a": "\U0001f600 \ufffd"}')]),
        ("pythonic", "[f(a={1: 2})]", [Content("[f(a={1: 2})]")]),
        ("pythonic", " text", [Content(" text")]),
        ("llama4_pythonic", '<|python_start|>[f(a="x")]<|python_end|>', [ToolCall("f", '{"a": "x"}')]),
        ("llama4_pythonic", "[f()]", [ToolCall("f", "{}")]),
        ("granite_tools", "<|tool_call|>x", [Content("<|tool_call|>x")]),
        ("granite_tools", '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]', [ToolCall("f", '{"a": 1}')]),
        ("granite_tools", '<tool_call>[{"name": "f", "arguments": {}}]', [ToolCall("f", "{}")]),
        ("granite_tools", "[1]", [Content("[1]")]),
        ("qwen3_coder", CODER, [Content("Sure."), ToolCall("f", '{"a": "1", "b": "x\\ny"}')]),
        ("qwen3_coder", "<tool_call><function=f></function></tool_call>", [ToolCall("f", "{}")]),
        ("qwen3_coder", "<tool_call>x</tool_call>", [Content("<tool_call>x</tool_call>")]),
        ("required", '[{"name": "f", "parameters": {"a": "]}"}}, {"name": "g", "parameters": {}}]',
         [ToolCall("f", '{"a": "]}"}'), ToolCall("g", "{}")]),
        ("required", '[{"name": "f", "parameters": {"a', [ToolCall("f", '{"a')]),
        ("required", '[{"name": "f", "para', []),  # A18
        ("required", "[{ ", []),
        ("required", '[{"name": "f", "parameters": {}}, {"name": "g', [ToolCall("f", "{}")]),
        ("hermes", 'Ok. <tool_call>{"name": "get', [Content("Ok.")]),
        ("hermes", "<tool_call>", []),
        ("hermes", '<tool_call>{"name": "f"}', [Content('<tool_call>{"name": "f"}')]),
        ("llama3_json", '{"name": "f", "param', []),
        ("llama3_json", '{"title": "f", "param', [Content('{"title": "f", "param')]),
        ("llama3_json", '<|python_tag|>{"na', []),
        ("mistral", '[TOOL_CALLS] [{"name": "f"', []),
        ("granite_tools", '<|tool_call|>[{"name": "f", "arguments": {}}, {"na', [ToolCall("f", "{}")]),
        ("granite_tools", '[{"name": "f', []),
        ("granite_tools", '[{"id": 1, "x": "f', [Content('[{"id": 1, "x": "f')]),
        ("pythonic", "[f(a='lon", []),
        ("pythonic", "[f", [Content("[f")]),
        ("pythonic", "[f(a=1), g(b=", [ToolCall("f", '{"a": 1}')]),
        ("llama4_pythonic", "<|python_start|>[f", []),
        ("qwen3_coder", "<tool_call>\n<function=ge", []),
        ("qwen3_coder", "Ok.\n<function=", [Content("Ok.")]),
        ("qwen3_coder", "Ok.\n<function=g", [Content("Ok.\n<function=g")]),
        ("mistral", 'Let me check. [TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}]',  # A17
         [Content("Let me check."), ToolCall("f", '{"x": 1}')]),
        ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"x": "[TOOL_CALLS]"}}] so [TOOL_CALLS] [{"name": "g", '
         '"arguments": {}}]', [ToolCall("f", '{"x": "[TOOL_CALLS]"}'), Content(" so"), ToolCall("g", "{}")]),
        ("granite_tools", 'So:\n<|tool_call|>[{"name": "f", "arguments": {}}]', [Content("So:"), ToolCall("f", "{}")]),
        ("granite_tools", 'So: [{"name": "f", "arguments": {}}]', [Content('So: [{"name": "f", "arguments": {}}]')]),
        ("llama4_pythonic", 'So <|python_start|>[f(a="x")]<|python_end|>',
         [Content("So"), ToolCall("f", '{"a": "x"}')]),
        ("llama3_json", 'So <|python_tag|>{"name": "f", "parameters": {}}', [Content("So"), ToolCall("f", "{}")]),
        ("llama3_json", 'So:\n\n {"name": "f", "parameters": {}}\nand', [Content("So:"), ToolCall("f", "{}"),
         Content("\nand")]),
        ("llama3_json", 'So:\n{"a": 1}\n{"type": "function", "name": "f", "parameters": {}}', [Content('So:\n{"a": 1}'),
         ToolCall("f", "{}")]),
        ("llama3_json", 'So {"name": "f", "parameters": {}}', [Content('So {"name": "f", "parameters": {}}')]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}}\n<tool_call>{"name": "g", "arguments": {}}</tool_call>',
         [ToolCall("f", "{}"), ToolCall("g", "{}")]),
        ("hermes", "<tool_call><tool_call>x", [Content("<tool_call><tool_call>x")]),
        ("qwen3_coder", "Ok.\n<function=f>\n<parameter=i>\n5\n</parameter>\n</function>\n</tool_call>",  # A16
         [Content("Ok."), ToolCall("f", '{"i": 5}')]),
        ("qwen3_coder", "<function=f></function>\n<function=f><parameter=i>1</parameter></function> x </tool_call>",
         [ToolCall("f", "{}"), ToolCall("f", '{"i": 1}'), Content(" x")]),
        ("qwen3_coder", "<function=g></function>", [Content("<function=g></function>")]),
        ("qwen3_coder", "<function=f><parameter=i>1</parameter></tool_call>.",
         [ToolCall("f", '{"i": 1}'), Content(".")]),
        ("qwen3_coder", "<tool_call><function=f></function>\n<function=g><parameter=a>1</function></tool_call>",
         [ToolCall("f", "{}"), ToolCall("g", '{"a": "1"}')]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "x', [ToolCall("f", '{"a": "x')]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": x}}</tool_call>',
         [ToolCall("f", '{"a": '), Content("x}}")]),
        ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', [ToolCall("f", '{"a": 1}')]),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [ToolCall("f", '{"a": 1}')]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "1\n2"}, "id": 3}</tool_call>.',
         [ToolCall("f", '{"a": "1\\n2"}'), Content(".")]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"</tool_call>": "<tool_call></tool_call>"}}</tool_call>.',
         [ToolCall("f", '{"</tool_call>": "<tool_call></tool_call>"}'), Content(".")]),
        ("hermes", '<tool_call>{"name": "</tool_call>", "arguments": {}}</tool_call>',
         [ToolCall("</tool_call>", "{}")]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1</tool_call>.',
         [ToolCall("f", '{"a": 1'), Content(".")]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "\\</tool_call>.',
         [ToolCall("f", '{"a": "\\'), Content(".")]),
        ("hermes", '<tool_call>{"arguments": {"a": 1e999, "b": "\\ud800"}, "name": "\\ud800"}</tool_call>',
         [ToolCall("\ufffd", '{"a": 1e999, "b": "\\ud800"}')]),
        ("hermes", '<tool_call>{"arguments": "{\\"a\\": NaN}", "name": "f"}</tool_call>',
         [Content('<tool_call>{"arguments": "{\\"a\\": NaN}", "name": "f"}</tool_call>')]),
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {}}, 5]', [ToolCall("f", "{}"), Content(", 5]")]),
        ("named", '{"a": 1}', [ToolCall("f", '{"a": 1}')]),
        ("qwen3+hermes", f"<think>{CALL}</think>{CALL}", [Reasoning(CALL), MADE]),
    ],
)  # fmt: skip
def test_forms(name: str, text: str, expected: list[Part]) -> None:
    assert parse(make(name), [text]) == expected
    assert parse(make(name), list(text)) == expected
    assert parse(make(name), ["", *(text[i : i + 3] for i in range(0, len(text), 3)), ""]) == expected


LONG = '{"name": "f", "KEY": {"a": "one two three", "b": [1, 2], "c": 3}}'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "<tool_call>" + LONG.replace("KEY", "arguments") + "</tool_call>"),
        ("llama3_json", LONG.replace("KEY", "parameters")),
        ("mistral", "[TOOL_CALLS] [" + LONG.replace("KEY", "arguments") + "]"),
        ("granite_tools", "<|tool_call|>[" + LONG.replace("KEY", "arguments") + "]"),
        ("required", "[" + LONG.replace("KEY", "parameters") + "]"),
        ("named", '{"a": "one two three", "b": [1, 2], "c": 3}'),
        ("pythonic", "[f(a='one two three', b=[1, 2], c=3)]"),
        ("llama4_pythonic", "<|python_start|>[f(a='one two three', b=[1, 2], c=3)]<|python_end|>"),
        ("qwen3_coder", "<tool_call><function=f><parameter=a>one two three</parameter><parameter=b>[1, 2]</parameter>"
         "<parameter=c>3</parameter></function></tool_call>"),
    ],
)  # fmt: skip
def test_calls_are_given_while_they_are_written(name: str, text: str) -> None:
    parser = make(name)
    if isinstance(parser, Qwen3CoderParser):
        properties = {"b": {"type": "array"}, "c": {"type": "integer"}}
        parser.set_tools([{"function": {"name": "f", "parameters": {"properties": properties}}}])
    given: list[Part] = []
    for character in text:
        given += parser.feed(character)
    early = [part for part in given if isinstance(part, CallArguments)]
    assert len(early) >= 3 and isinstance(given[0], CallStart)
    (call,) = joined(given + parser.finish())
    assert isinstance(call, ToolCall) and json.loads(call.arguments) == {"a": "one two three", "b": [1, 2], "c": 3}


PIECES = [
    "<think>", "</think>", "<think", ">", "<", "</", "<tool_call>", "</tool_call>", "<tool_", "call>", "{", "}", " ",
    '{"name": "f", "arguments": {}}', '{"name": "g", "parameters": {"x": 1}}', "<|python_tag|>", "[TOOL_CALLS]",
    "<function=f>", "<parameter=a>", "</parameter>", "</function>", "[f(a=", "1", ")]", "]", "<|python_start|>",
    '"arguments": {"a": "', "\\", '["', "<parameter=l>",
    '{"name": "f", ', '{"title": 1, ', "<parameter=m>", "5", ",", "<|python_end|>", "<|tool_call|>", ")",
    "[TOOL", "\n", ";", '"', "a", "[", "Here is my thought process:", "Here is my response:", "Here is",
]  # fmt: skip
NAMES = [
    *REASONING_PARSERS,
    *TOOL_PARSERS,
    "granite_tools",
    "required",
    "named",
    "qwen3+hermes",
    "deepseek_r1+llama3_json",
    "granite+mistral",
]


@settings(max_examples=600)
@given(st.sampled_from(NAMES), st.lists(st.sampled_from(PIECES), max_size=12), st.data())
def test_pieces_do_not_matter(name: str, words: list[str], data: st.DataObject) -> None:
    text = "".join(words)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(make(name), pieces) == parse(make(name), [text])


def is_cut_call(text: str) -> bool:
    """Nothing, or how a call begins."""
    openings = ("<tool_call>", "<function=", "<|tool_call|>", "<|python_tag|>", "<|python_start|>", "[TOOL_CALLS]")
    return not text or text.lstrip().startswith((*openings, '{"name": "', "[f("))


@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_text_without_calls_comes_back_whole(words: list[str]) -> None:
    text = "".join(words)
    for name in (TOOL_PARSERS.keys() - REASONING_PARSERS.keys()) | {"granite_tools"}:
        parts = parse(make(name), list(text))
        if not any(isinstance(part, ToolCall) for part in parts):
            found = "".join(part.text for part in parts)  # type: ignore[union-attr]
            assert text.startswith(found) and is_cut_call(text[len(found) :]), (name, text, found)
        for part in parts:
            if isinstance(part, ToolCall):
                assert is_object_or_begins_one(part.arguments)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text",
    [
        "<" * 50_000, "<tool_call>" * 5_000, "[" * 50_000, '{"a":' * 10_000, "<think>" * 8_000, "[f(a=" * 5_000,
        " " * 100_000, "[f()]" + " " * 100_000, "[f(a=" + "9" * 100_000 + ")]", "\n{" * 30_000, "\n" * 100_000,
        '<tool_call>{"name": "f", "arguments": {"a": "' + "</tool_call>" * 10_000,
        "<tool_call><function=f>" + '<parameter=l>["</parameter>' * 5_000,
        '<tool_call><function=f><parameter=l>["</parameter></tool_call>' * 2_000,
        "<function=f><parameter=m>" + "9" * 50_000, "<function=f><parameter=m>[" + "9," * 30_000,
        "[TOOL_CALLS]" * 5_000, "<function=" * 5_000,
    ],
)  # fmt: skip
def test_hostile_text_takes_linear_time(name: str, text: str) -> None:
    """A quadratic parser would not come back from this."""
    parser = make(name)
    for i in range(0, len(text), 4):
        parser.feed(text[i : i + 4])
    parser.finish()


def test_model_text_is_never_evaluated() -> None:
    text = '<tool_call>{"name": "__import__(\'os\').abort()", "arguments": {"x": "{{ 7 * 7 }}"}}</tool_call>'
    assert parse(make("hermes"), [text]) == [ToolCall("__import__('os').abort()", '{"x": "{{ 7 * 7 }}"}')]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), st.booleans())
def test_json_is_read_as_it_was_written(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert scanned(text + "]") == (text, True, False)


@settings(max_examples=1000)
@given(st.lists(st.sampled_from(["true", "null", '"a"', '{"a":', "\n", *'{}[]",:-0123.eE+tfn \\ua']), max_size=12))
def test_only_json_is_read_to_its_end(words: list[str]) -> None:
    text = "{" + "".join(words)
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text)
    except ValueError:
        assert not scanned(text)[1]
    else:
        written, done, _ = scanned(text)
        assert done and json.loads(written) == value and (written == text[:end] or "\n" in text)


@given(VALUES)
def test_literals_are_read_as_python_writes_them(value: object) -> None:
    assert json.loads(LiteralReader(repr(value)).value()) == value


@given(st.from_regex(r"[-+]?([0-9]{1,9}\.?[0-9]{0,9}|\.[0-9]{1,9})([eE][-+]?[0-9]{1,4})?", fullmatch=True))
def test_numbers_are_written_as_json_has_them(text: str) -> None:
    assert float(json.loads(LiteralReader(text).value())) == float(text)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{'a':" * 20_000, "[a=" * 20_000, "'" + "x" * 100_000, "[1, " * 20_000]
)
def test_hostile_literals_take_few_operations(text: str) -> None:
    """Tokens are read once, and no further than the depth that is allowed."""
    reader = LiteralReader(text)
    with pytest.raises(NotALiteral):
        reader.value()
    assert reader.num_tokens < 500


def coder(**values: str) -> list[Part]:
    body = "".join(f"<parameter={name}>\n{value}\n</parameter>" for name, value in values.items())
    text = f"<tool_call><function=f>{body}</function></tool_call>"
    results = []
    for pieces in ([text], list(text)):
        parser = Qwen3CoderParser()
        parser.set_tools(TYPED)
        results.append(parse(parser, pieces))
    assert results[0] == results[1]
    return results[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1e999", "1e999"),
        ("9" * 5000, "9" * 5000),
        ("-1e999", "-1e999"),
        ("NaN", '"NaN"'),
        ("Infinity", '"Infinity"'),
        ("[1e999, NaN]", '"[1e999, NaN]"'),
        ("[1e999, " + "9" * 5000 + "]", "[1e999, " + "9" * 5000 + "]"),
        ("[" * 100 + "]" * 100, "[" * 100 + "]" * 100),
        ("[" * 1000 + "]" * 1000, '"' + "[" * 1000 + "]" * 1000 + '"'),
        ('["\\ud800"]', '["\\ud800"]'),
        (
            '["</parameter></function></tool_call><parameter=a>"]',
            '["</parameter></function></tool_call><parameter=a>"]',
        ),
        ('{"a\\"</parameter>": 1}', '{"a\\"</parameter>": 1}'),
    ],
)
def test_values_that_are_no_texts(value: str, expected: str) -> None:
    assert coder(l=value) == [ToolCall("f", f'{{"l": {expected}}}')]


ROOT = {
    "$defs": {
        "Count": {"type": "integer"}, "Loop": {"$ref": "#/$defs/Loop"}, "a/b": {"const": None},
        "Tree": {"anyOf": [{"$ref": "#/$defs/Tree"}, {"$ref": "#/$defs/Tree"}, {"type": "array"}]},
    },
}  # fmt: skip
TYPES: list[tuple[Any, str | None]] = [
    ({"type": ["integer", "null"]}, "integer null"),  # A12
    ({"type": "number"}, "number integer"),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "integer null"),
    ({"oneOf": [{"type": "boolean"}, {"enum": ["a", 1.5, [1], {}]}]}, "boolean string number array object"),
    ({"allOf": [{"type": ["integer", "string"]}, {"type": ["number", "null"]}]}, "integer"),
    ({"allOf": [{"$ref": "#/$defs/Count"}], "description": "many"}, "integer"),
    ({"$ref": "#/$defs/Count", "nullable": True}, "integer null"),
    ({"$ref": "#/$defs/a~1b"}, "null"),
    ({"$ref": "#/$defs/Loop"}, None),
    ({"$ref": "#/$defs/Tree"}, None),
    ({"$ref": "#/$defs/None"}, None),
    ({"$ref": "https://example.org/schema"}, None),
    ({"enum": [1, None, True]}, "integer null boolean"),
    ({"const": "x"}, "string"),
    ({"anyOf": [{"type": "integer"}, {}]}, None),
    ({"type": ["string", "integer"], "enum": ["a"]}, "string"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, None),
    ({"type": "int"}, "number integer boolean null array object"),
    ({"minimum": 3}, None),
    (True, None),
    ({"type": 5, "anyOf": 5, "allOf": [5], "enum": 5, "$ref": 5}, None),
]


@pytest.mark.parametrize(("schema", "expected"), TYPES)
def test_types_are_read_as_json_schema_means_them(schema: Any, expected: str | None) -> None:
    found = SchemaTypes(ROOT).of(schema)
    assert found == (None if expected is None else frozenset(expected.split()))


def test_schemas_that_refer_to_one_another_take_little_time() -> None:
    definitions: dict[str, Any] = {f"d{i}": {"anyOf": [{"$ref": f"#/d{i + 1}"}] * 2} for i in range(5000)}
    definitions["d5000"] = {"type": "integer"}
    assert SchemaTypes(definitions).of({"$ref": "#/d4970"}) == {"integer"}
    assert SchemaTypes(definitions).of({"$ref": "#/d0"}) is None


@pytest.mark.parametrize(
    ("types", "text", "expected"),
    [
        (["integer", "null"], "5", 5),
        (["integer", "null"], "null", None),
        (["boolean", "null"], "true", True),
        (["array", "null"], "[1, 2]", [1, 2]),
        (["string", "null"], "null", None),
        (["string", "null"], "nullify", "nullify"),
        (["string", "null"], "5", "5"),
        (["string", "null"], "", ""),
        (["string", "null"], "a\nnull\n", "a\nnull\n"),
        (["string", "integer"], "5", 5),
        (["string", "integer"], "5.5", "5.5"),
        (["string", "integer"], "007", "007"),
        (["string", "integer"], "5 apples", "5 apples"),
        (["string", "integer"], "9" * 100, "9" * 100),
        (["string", "number"], "-1.5e3", -1500.0),
        (["string", "number"], "5", 5),
        (["string", "boolean"], "True", "True"),
        (["string", "array"], "[1]", [1]),
        (["string", "array"], "[see below]", "[see below]"),
        (["string", "array"], '["</parameter>"]', ["</parameter>"]),
        (["string", "object"], '{"a": [1]}', {"a": [1]}),
        (["string", "object"], "[1]", "[1]"),
        (["boolean"], "True", True),
        (["integer"], "many", "many"),
        (["null", "object"], "None", None),
    ],
)
def test_values_by_lists_of_types(types: list[str], text: str, expected: Any) -> None:  # A12
    tools = [{"function": {"name": "f", "parameters": {"properties": {"x": {"type": types}}}}}]
    call = f"<tool_call><function=f><parameter=x>\n{text}\n</parameter></function></tool_call>"
    found = []
    for pieces in ([call], list(call), [call[i : i + 3] for i in range(0, len(call), 3)]):
        parser = Qwen3CoderParser()
        parser.set_tools(tools)
        found += parse(parser, pieces)
    assert found[0] == found[1] == found[2]
    assert json.loads(found[0].arguments) == {"x": expected}  # type: ignore[union-attr]


def test_texts_that_may_be_null_are_given_while_they_are_written() -> None:
    parser = Qwen3CoderParser()
    parser.set_tools([{"function": {"name": "f", "parameters": {"properties": {"x": {"type": ["string", "null"]}}}}}])
    parser.feed("<tool_call><function=f><parameter=x>\nnu")
    assert parser.feed("mbers ") == [CallArguments('"'), CallArguments("numbers ")]
    assert parser.feed("and ") == [CallArguments("and ")]


def test_texts_with_marks_that_end_no_value() -> None:
    assert coder(s="a <function=g> <tool_call>") == [ToolCall("f", '{"s": "a <function=g> <tool_call>"}')]


def test_strings_that_never_end_are_read_again() -> None:
    text = '<tool_call><function=f><parameter=l>["x</parameter><parameter=i>3</parameter></function></tool_call>'
    expected = ToolCall("f", '{"l": "[\\"x", "i": 3}')
    assert parse(make("qwen3_coder"), [text]) == parse(make("qwen3_coder"), list(text)) == [expected]
    another = "<tool_call><function=f></function></tool_call>"
    assert parse(make("qwen3_coder"), [text, "\n", another]) == [expected, ToolCall("f", "{}")]


def test_schemas_that_are_none() -> None:
    parser = Qwen3CoderParser()
    parser.set_tools(
        [{"function": {"name": "f", "parameters": given}} for given in ([1], 5, {"properties": [1]}, None)]
    )
    (call,) = parse(parser, ["<tool_call><function=f><parameter=a>1</parameter></function></tool_call>"])
    assert call == ToolCall("f", '{"a": "1"}')


def test_types_by_the_schema() -> None:
    parser = Qwen3CoderParser()
    parser.set_tools(TYPED)
    values = {"i": "3", "b": "True", "l": "['x', 1]", "s": "3", "n": "many", "other": "3"}
    body = "".join(f"<parameter={name}>\n{value}\n</parameter>" for name, value in values.items())
    (call,) = parse(parser, [f"<tool_call><function=f>{body}</function></tool_call>"])
    assert isinstance(call, ToolCall)
    expected = {"i": 3, "b": True, "l": ["x", 1], "s": "3", "n": "many", "other": "3"}
    assert json.loads(call.arguments) == expected
