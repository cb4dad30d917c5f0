"""Parsers say the same whatever the pieces were, lose nothing, and take time in proportion to the text."""

from __future__ import annotations

import json

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
    "n": {"type": "number"}}}}}]  # fmt: skip

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
        ("required", '[{"name": "f", "para', [Content('[{"name": "f", "para')]),
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


@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_text_without_calls_comes_back_whole(words: list[str]) -> None:
    text = "".join(words)
    for name in (TOOL_PARSERS.keys() - REASONING_PARSERS.keys()) | {"granite_tools"}:
        parts = parse(make(name), list(text))
        if not any(isinstance(part, ToolCall) for part in parts):
            assert "".join(part.text for part in parts) == text  # type: ignore[union-attr]
        for part in parts:
            if isinstance(part, ToolCall):
                assert is_object_or_begins_one(part.arguments)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text",
    [
        "<" * 100_000, "<tool_call>" * 10_000, "[" * 100_000, '{"a":' * 20_000, "<think>" * 15_000, "[f(a=" * 10_000,
        " " * 400_000, "[f()]" + " " * 400_000, "[f(a=" + "9" * 400_000 + ")]",
        '<tool_call>{"name": "f", "arguments": {"a": "' + "</tool_call>" * 30_000,
        "<tool_call><function=f>" + '<parameter=l>["</parameter>' * 15_000,
        '<tool_call><function=f><parameter=l>["</parameter></tool_call>' * 6_000,
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
