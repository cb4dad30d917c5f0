"""`strict` tools: calls of the model's own accord have arguments by their schema, whatever the model likes to write."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest
import transformers
from llguidance import LLMatcher, LLTokenizer

from tests.server.conftest import BASE
from tests.server.fake_engine import FakeEngine
from tests.server.process import ServerProcess, serve
from tests.tiny import make_checkpoint, save_tokenizer
from vllm.entrypoints.chat_output.parsers import TOOL_PARSERS, CallArguments, CallStart, ToolCall
from vllm.entrypoints.chat_output.strict_tools import calls_grammar
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

QUESTION: list[Any] = [{"role": "user", "content": "Weather?"}]
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": 'Colons of a grammar ::= "and quotes".'},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        "at": {"$ref": "#/$defs/Place"},
        "exact": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
    "$defs": {"Place": {"type": "object", "properties": {"x": {"type": "number"}, "tags": {
        "type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}}, "required": ["x"],
        "additionalProperties": False}},
}  # fmt: skip
CODER_WEATHER = {**WEATHER, "properties": {**WEATHER["properties"], "at": WEATHER["$defs"]["Place"]}}  # type: ignore[dict-item, index]
BEGINNINGS = {
    "granite": "<|tool_call|>[",
    "hermes": "I will look it up.\n<tool_call>\n{",
    "llama3_json": " {",
    "llama4_pythonic": "<|python_start|>[",
    "mistral": "[TOOL_CALLS] [",
    "pythonic": "[",
    "qwen3_coder": "Sure.\n<tool_call>\n<function=",
}
NATURAL = {
    "granite": '<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo", "days": 3, "unit": "celsius"}}]',
    "hermes": 'Yes.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "unit": "celsius"}}\n</tool_call>\n'
    '<tool_call>{"name":"time","arguments":{"zone":"UTC"}}</tool_call>',
    "llama3_json": '{"name": "weather", "parameters": {"city": "Oslo", "unit": "celsius"}}',
    "llama4_pythonic": '<|python_start|>[weather(city="Oslo", unit="celsius")]<|python_end|>',
    "mistral": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo", "unit": "celsius"}}, '
    '{"name": "time", "arguments": {}}]',
    "pythonic": '[weather(city="Oslo", unit="celsius", exact=null), time(zone="UTC")]',
    "qwen3_coder": "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=unit>\ncelsius\n"
    "</parameter>\n</function>\n</tool_call>",
}


def tools_of(parser: str = "", strict: bool = True) -> list[Any]:
    parameters = CODER_WEATHER if parser == "qwen3_coder" else WEATHER
    return [
        {"type": "function", "function": {"name": "weather", "strict": strict, "parameters": parameters}},
        {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}},
    ]


MARKS = (
    "</tool_call>",
    "<tool_call>",
    "</function>",
    "</parameter>",
    "<parameter=",
    "<|python_end|>",
    "</tool",
    "1e999",
)


class Writer:
    """Writes what a grammar allows, a byte at a time, at random, with a liking for what ends things."""

    def __init__(self, grammar: str, seed: int) -> None:
        self._tokenizer = LLTokenizer("byte")
        self.matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)
        assert not self.matcher.get_error()
        self._random = random.Random(seed)
        self.text = ""

    def takes(self, text: str) -> bool:
        """Goes on by a text, if it may stand here."""
        ids = self._tokenizer.tokenize_str(text)
        if self.matcher.validate_tokens(ids) < len(ids):
            return False
        self.text += text
        return bool(self.matcher.consume_tokens(ids))

    def write(self, most: int) -> bool:
        """Until the output may end. False if it is not by then."""
        for _ in range(most):
            if self.matcher.is_accepting():
                return True
            if self._random.random() < 0.1 and self.takes(self._random.choice(MARKS)):
                continue
            mask = self.matcher.compute_bitmask()
            allowed = [byte for byte in range(32, 127) if mask[byte // 8] >> byte % 8 & 1] or [10]
            ending = [byte for byte in b'"}])<>/;' if byte in allowed]
            choice = self._random.choice(ending if ending and self._random.random() < 0.4 else allowed)
            assert self.takes(chr(choice))
        return False


def calls_in(parser: str, text: str, tools: list[Any]) -> list[tuple[str, Any]]:
    reader = TOOL_PARSERS[parser]()
    if (set_tools := getattr(reader, "set_tools", None)) is not None:
        set_tools(tools)
    calls: list[tuple[str, str]] = []
    for part in reader.feed(text) + reader.finish():
        if isinstance(part, (CallStart, ToolCall)):
            calls.append((part.name, getattr(part, "arguments", "")))
        elif isinstance(part, CallArguments):
            calls[-1] = (calls[-1][0], calls[-1][1] + part.text)
    return [(name, json.loads(arguments)) for name, arguments in calls]


def grammar_of(parser: str, tools: list[Any], level: str = "auto", **asked: Any) -> str:
    return str(calls_grammar(parser, tools, level, **asked).grammar)


@pytest.mark.parametrize("parser", sorted(BEGINNINGS))
def test_whatever_is_written_the_parser_finds_valid_arguments(parser: str) -> None:
    tools = tools_of(parser)
    num_weather = 0
    for seed in range(60):
        writer = Writer(grammar_of(parser, tools), seed)
        assert writer.takes(BEGINNINGS[parser])
        if not writer.write(700):
            continue
        calls = calls_in(parser, writer.text, tools)
        assert calls, f"no call in {writer.text!r}"
        for name, arguments in calls:
            assert name in ("weather", "time")
            if name == "weather":
                jsonschema.validate(arguments, tools[0]["function"]["parameters"])
                num_weather += 1
    assert num_weather >= 15


SCRAPS = [
    '{"name": "weather", ', '"parameters": {}}', '"arguments": {}}', "\n", "{", " ", "So", ";", "[", "]", "<tool_call>",
    "</tool_call>", "<function=weather>", "</function>", "<parameter=city>", "x", "</parameter>", "[TOOL_CALLS]", ")",
    "<|python_tag|>", "<|tool_call|>", "<|python_start|>", "weather(", "time(", "<|python_end|>", "<function=time>",
    '{"parameters": {}, "name": "weather"}', '{"na', "\\u006d", 'e": "weather", "parameters": {}}', *NATURAL.values(),
]  # fmt: skip


@pytest.mark.parametrize("parser", sorted(NATURAL))
def test_whatever_the_grammar_takes_has_no_calls_but_valid_ones(parser: str) -> None:
    tools, scraps = tools_of(parser), random.Random(parser)
    tokenizer = LLTokenizer("byte")
    grammar = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar_of(parser, tools)), log_level=0)
    num_taken = 0
    for _ in range(300):
        text = "".join(scraps.choice(SCRAPS) for _ in range(scraps.randint(1, 6)))
        matcher, ids = grammar.deep_copy(), tokenizer.tokenize_str(text)
        if matcher.validate_tokens(ids) < len(ids) or not matcher.consume_tokens(ids) or not matcher.is_accepting():
            continue
        num_taken += 1
        for name, arguments in calls_in(parser, text, tools):
            assert name in ("weather", "time"), text
            if name == "weather":
                jsonschema.validate(arguments, tools[0]["function"]["parameters"])
    assert num_taken > 100


@pytest.mark.parametrize("parser", sorted(NATURAL))
def test_what_models_write_is_taken(parser: str) -> None:
    for text in (NATURAL[parser], "", "Just an answer, with {braces} and <tags> and [lists].", "1 < 2"):
        writer = Writer(grammar_of(parser, tools_of(parser)), 0)
        assert writer.takes(text) and writer.matcher.is_accepting(), text
    calls = calls_in(parser, NATURAL[parser], tools_of(parser))
    assert calls[0][0] == "weather" and calls[0][1]["city"] == "Oslo"


@pytest.mark.parametrize("parser", ["granite", "llama3_json", "llama4_pythonic", "mistral", "qwen3_coder"])
def test_calls_behind_text_are_held_to_their_schemas_too(parser: str) -> None:  # A16, A17
    call = NATURAL[parser]
    if parser == "llama3_json":
        call = f"<|python_tag|>{call}"
    if parser == "qwen3_coder":
        call = call.removeprefix("<tool_call>\n")
    text = f"Let me see: [1] <b>.\n{call}"
    writer = Writer(grammar_of(parser, tools_of(parser)), 0)
    assert writer.takes(text) and writer.matcher.is_accepting()
    assert calls_in(parser, text, tools_of(parser))[0][0] == "weather"
    wrong = text.replace("celsius", "kelvin")
    assert not Writer(grammar_of(parser, tools_of(parser)), 0).takes(wrong)
    assert calls_in(parser, wrong, tools_of(parser)), "the parser would have found it"


def test_no_text_holds_calls_that_are_not_held_to_their_schemas() -> None:
    tools = tools_of()
    for text in ('So:\n{"name": "weather", "parameters": {}}', 'So:\n\n {"\\u006eame": "weather", "parameters": {}}'):
        assert calls_in("llama3_json", text, tools)
        assert not Writer(grammar_of("llama3_json", tools), 0).takes(text)
    writer = Writer(grammar_of("llama3_json", tools), 0)
    assert writer.takes('So:\n{"title": "weather"}') and writer.matcher.is_accepting()


MIXED: dict[str, Any] = {
    "text or null": {"type": ["string", "null"]},
    "text or number": {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 10, "maximum": 12}]},
    "choice or null": {"anyOf": [{"type": "string", "enum": ["a", "b c"]}, {"type": "null"}]},
    "values": {"enum": ["auto", 1, None, True]},
    "place": {"$ref": "#/$defs/Place"},
    "place or text": {"oneOf": [{"$ref": "#/$defs/Place"}, {"type": "string"}]},
    "nullable": {"type": "integer", "nullable": True},
}


def test_values_that_may_be_texts_or_something_else() -> None:  # A12
    parameters = {"type": "object", "properties": MIXED, "required": list(MIXED), "additionalProperties": False,
                  "$defs": WEATHER["$defs"]}  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f", "strict": True, "parameters": parameters}}]
    grammar = grammar_of("qwen3_coder", tools)
    num_calls = 0
    for seed in range(40):
        writer = Writer(grammar, seed)
        assert writer.takes("<function=f>\n")
        if writer.write(900):
            ((_, arguments),) = calls_in("qwen3_coder", writer.text, tools)
            jsonschema.validate({**arguments, "nullable": arguments["nullable"] or 0}, parameters)
            num_calls += 1
    assert num_calls > 10
    values = {"text or null": "x", "text or number": "11", "choice or null": "b c", "values": "auto",
              "place": '{"x": 1.5}', "place or text": "there", "nullable": "7"}  # fmt: skip

    def takes(**changed: str) -> bool:
        given = {**values, **{name.replace("_", " "): value for name, value in changed.items()}}
        body = "".join(f"<parameter={name}>{value}</parameter>" for name, value in given.items())
        return Writer(grammar, 0).takes(f"<function=f>{body}</function>")

    allowed = [("text_or_null", "null"), ("text_or_number", "apples 9"), ("text_or_number", "\n12\n"), ("values", "1"),
               ("choice_or_null", "\nnull\n"), ("values", "true"), ("place", '\n{"x": 2}\n'), ("nullable", "null"),
               ("place_or_text", '\n{"x": 2}\n')]  # fmt: skip
    refused = [("text_or_number", "9"), ("choice_or_null", "c"), ("values", "2"), ("place", "there"), ("nullable", "x"),
               ("place_or_text", '{"y": 2}')]  # fmt: skip
    assert takes()
    for name, value in allowed:
        assert takes(**{name: value}), (name, value)
    for name, value in refused:
        assert not takes(**{name: value}), (name, value)
    ambiguous = {"type": "object", "properties": {"a": {"enum": ["5", 7]}}}
    with pytest.raises(VLLMValidationError, match="'a'"):
        grammar_of("qwen3_coder", [{"function": {"name": "f", "strict": True, "parameters": ambiguous}}])


@pytest.mark.parametrize("parser", sorted(NATURAL))
def test_what_breaks_the_schema_is_not_taken(parser: str) -> None:
    for wrong in (NATURAL[parser].replace("celsius", "kelvin"), NATURAL[parser].replace("weather", "wether")):
        assert not Writer(grammar_of(parser, tools_of(parser)), 0).takes(wrong)
    loose = NATURAL[parser].replace("celsius", "kelvin")
    assert Writer(grammar_of(parser, tools_of(parser, strict=False)), 0).takes(loose), "not strict: any arguments"
    assert not Writer(grammar_of(parser, tools_of(parser, strict=False), "parameter"), 0).takes(loose)


@pytest.mark.parametrize("parser", sorted(set(NATURAL) - {"hermes", "qwen3_coder"}))
def test_one_call_at_most(parser: str) -> None:
    one = NATURAL[parser].split(', {"name": "time"')[0].split(", time")[0]
    end = "" if parser.startswith("llama") else "]"
    for several in (True, False):
        grammar = grammar_of(parser, tools_of(parser), several=several)
        assert Writer(grammar, 0).takes(one if one.endswith(end) else one + end)
        goes_on = {"llama3_json": "; {", "llama4_pythonic": ", time(", "pythonic": ", time("}.get(parser, ', {"name": ')
        cut = one.removesuffix("<|python_end|>").removesuffix("]" if parser != "llama3_json" else "")
        assert Writer(grammar, 0).takes(cut + goes_on) is several


@pytest.mark.parametrize("parser", sorted(NATURAL))
def test_beside_a_form_of_the_answer(parser: str) -> None:
    grammar = grammar_of(parser, tools_of(parser), form=StructuredOutputsParams(json={"enum": [17]}))
    assert Writer(grammar, 0).takes("17") and not Writer(grammar, 0).takes("hello")
    assert Writer(grammar, 0).takes(NATURAL[parser].removeprefix("Yes.\n"))


WITH_MARKS = {
    "granite": '<|tool_call|>[{"name": "f", "arguments": {"s": "TEXT", "l": ["TEXT"]}}]',
    "hermes": '<tool_call>{"name": "f", "arguments": {"s": "TEXT", "l": ["TEXT"]}}</tool_call>',
    "llama3_json": '{"name": "f", "parameters": {"s": "TEXT", "l": ["TEXT"]}}',
    "llama4_pythonic": '<|python_start|>[f(s="TEXT", l=["TEXT"])]<|python_end|>',
    "mistral": '[TOOL_CALLS] [{"name": "f", "arguments": {"s": "TEXT", "l": ["TEXT"]}}]',
    "pythonic": '[f(s="TEXT", l=["TEXT"])]',
    "qwen3_coder": '<tool_call><function=f><parameter=s>TEXT</parameter><parameter=l>["TEXT"]</parameter></function>'
    "</tool_call>",
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("parser", sorted(WITH_MARKS))
def test_marks_in_strings_end_nothing(parser: str, strict: bool) -> None:
    """Texts of qwen3_coder have no escape: there the grammar leaves out what would end them."""
    properties = {"s": {"type": "string"}, "l": {"type": "array", "items": {"type": "string"}}}
    parameters = {"type": "object", "properties": properties, "required": ["s", "l"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "f", "strict": strict, "parameters": parameters}}]
    for mark in (*MARKS, "</think>", "[TOOL_CALLS]", "; {", ")]"):
        text = WITH_MARKS[parser].replace("TEXT", mark)
        ends = parser == "qwen3_coder" and mark in ("</tool_call>", "</function>", "</parameter>", "<parameter=")
        if strict and ends:
            assert not Writer(grammar_of(parser, tools), 0).takes(text)
        if ends:
            text = text.replace(f"<parameter=s>{mark}<", "<parameter=s><")
        if strict:
            writer = Writer(grammar_of(parser, tools), 0)
            assert writer.takes(text) and writer.matcher.is_accepting()
        assert calls_in(parser, text, tools) == [("f", {"s": "" if ends else mark, "l": [mark]})]


@pytest.mark.parametrize(
    ("parser", "name", "properties", "says"),
    [
        ("pythonic", "1f", {}, "'1f'"),
        ("llama4_pythonic", "f", {"a b": {"type": "string"}}, "'a b'"),
        ("qwen3_coder", "f>", {}, "'f>'"),
        ("qwen3_coder", "f", {"a\nb": {"type": "string"}}, "can write"),
        ("qwen3_coder", "f", {"a": {"enum": ["x", "</parameter>"]}}, "'a'"),
        ("qwen3_coder", "f", {"a": {"enum": ["x\n"]}}, "'a'"),
    ],
)
def test_what_a_form_cannot_write_is_refused(parser: str, name: str, properties: dict[str, Any], says: str) -> None:
    parameters = {"type": "object", "properties": properties}
    tools = [{"type": "function", "function": {"name": name, "strict": True, "parameters": parameters}}]
    with pytest.raises(VLLMValidationError, match=says):
        grammar_of(parser, tools)
    assert grammar_of("hermes", tools)


def nested(depth: int) -> dict[str, Any]:
    return {"anyOf": [nested(depth - 1)]} if depth else {"type": "string"}


@pytest.mark.parametrize("parser", sorted(WITH_MARKS))
@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"a": {"anyOf": 5}}},
        {"properties": {"a": {"oneOf": {}}}},
        {"properties": {"a": {"enum": 5}}},
        {"properties": {"a": {"enum": "text"}}},
        {"properties": {"a": {"type": "string"}}, "required": 5},
        {"properties": {"a": {"type": "string"}}, "required": "a"},
        {"properties": {"a": nested(200)}},
        {"properties": 5},
        {"$defs": 5, "properties": {"a": {}}},
    ],
)
def test_schemas_that_are_none_are_refused_or_fail_to_compile(parser: str, parameters: dict[str, Any]) -> None:
    tools = [{"type": "function", "function": {"name": "f", "strict": True, "parameters": parameters}}]
    try:
        grammar = grammar_of(parser, tools)
    except VLLMValidationError:
        return
    LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(grammar), log_level=0)


MARK = "[TOOL_CALLS]"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes anything; its tokenizer has a special token for the parser's mark."""
    directory = make_checkpoint(tmp_path_factory.mktemp("strict"))
    save_tokenizer(directory, vocab_size=310)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": [MARK]})
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def bias(model: Path) -> dict[str, int]:
    """Makes the model begin calls, whenever it may."""
    return {str(transformers.AutoTokenizer.from_pretrained(model).convert_tokens_to_ids(MARK)): 100}


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[ServerProcess]:
    words = ("--enable-auto-tool-choice", "--tool-call-parser", "mistral", "--max-model-len", "512")
    with serve(model, *words) as running:
        yield running


class Weather(pydantic.BaseModel):
    """The weather."""

    model_config = pydantic.ConfigDict(extra="forbid")
    city: Literal["Oslo", "Rome"]
    days: int = pydantic.Field(ge=1, le=14)


def test_chat_by_the_clients_own_parser(server: ServerProcess, bias: dict[str, int]) -> None:
    tools = [openai.pydantic_function_tool(Weather)]
    assert tools[0]["function"]["strict"] is True
    asked: dict[str, Any] = {
        "model": "test-model",
        "messages": QUESTION,
        "logit_bias": bias,
        "max_completion_tokens": 99,
        "parallel_tool_calls": False,
    }
    for seed in range(4):
        answer = server.client().chat.completions.parse(**asked, tools=tools, seed=seed)
        (choice,) = answer.choices
        calls = choice.message.tool_calls or []
        assert calls and all(isinstance(call.function.parsed_arguments, Weather) for call in calls)
        assert choice.finish_reason == "tool_calls" and not choice.message.content
        with server.client().chat.completions.stream(**asked, tools=tools, seed=seed) as stream:
            streamed = stream.get_final_completion().choices[0].message.tool_calls or []
        assert [call.function.arguments for call in streamed] == [call.function.arguments for call in calls]
    loose: Any = [{"type": "function", "function": {**tools[0]["function"], "strict": False}}]
    answer = server.client().chat.completions.create(**asked, tools=loose, seed=0)
    assert not answer.choices[0].message.tool_calls, "held to nothing, this model writes no call"


def test_responses(server: ServerProcess, bias: dict[str, int]) -> None:
    tool: Any = openai.pydantic_function_tool(Weather)["function"]
    asked: dict[str, Any] = {
        "model": "test-model",
        "input": "Weather?",
        "max_output_tokens": 99,
        "parallel_tool_calls": False,
    }
    answer = server.client().responses.create(
        **asked, tools=[{"type": "function", **tool}], extra_body={"logit_bias": bias}
    )
    calls = [item for item in answer.output if item.type == "function_call"]
    assert calls and all(Weather.model_validate_json(call.arguments) for call in calls)


def test_a_schema_that_cannot_be_held_to_is_refused(server: ServerProcess) -> None:
    tools: Any = tools_of()
    tools[0]["function"]["parameters"] = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        server.client().chat.completions.create(model="test-model", messages=QUESTION, tools=tools)


async def asked_of(engine: FakeEngine, make_client: Callable[..., Any], *words: str, **fields: Any) -> Any:
    """The constraint that the engine is given."""
    client = await make_client("--enable-auto-tool-choice", *words)
    api = openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key="none", http_client=client, max_retries=0)
    await api.chat.completions.create(model="fake", messages=QUESTION, **{"tools": tools_of(), **fields})
    return engine.seen[-1][2].structured_outputs


HERMES = ("--tool-call-parser", "hermes")


async def test_when_calls_are_held(
    engine: FakeEngine, make_client: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def constraint(*words: str, **fields: Any) -> Any:
        return await asked_of(engine, make_client, *HERMES, *words, **fields)

    held = await constraint()
    assert held.grammar == grammar_of("hermes", tools_of())
    assert await constraint(tool_choice="none") is None
    one = await constraint(parallel_tool_calls=False)
    assert one.grammar == grammar_of("hermes", tools_of(), several=False) != held.grammar
    assert (await constraint(tool_choice="required")).json is not None
    loose = tools_of(strict=False)
    assert await constraint(tools=loose) is None
    assert (await constraint("--tool-strict-level", "function", tools=loose)).grammar == grammar_of(
        "hermes", loose, "function"
    )
    assert (await constraint("--tool-strict-level", "parameter", tools=loose)).grammar == held.grammar
    form = {"type": "json_object"}
    both = await constraint(response_format=form)
    assert both.grammar == grammar_of("hermes", tools_of(), form=StructuredOutputsParams(json_object=True))
    monkeypatch.setenv("VLLM_ENFORCE_STRICT_TOOL_CALLING", "0")
    assert await constraint() is None


async def test_messages(engine: FakeEngine, make_client: Callable[..., Any]) -> None:
    http = await make_client("--enable-auto-tool-choice", *HERMES)
    tools = [{"name": "weather", "input_schema": WEATHER, "strict": True}]
    asked = {"model": "fake", "max_tokens": 9, "messages": QUESTION, "tools": tools}
    assert (await http.post("/v1/messages", json=asked)).status_code == 200
    assert engine.seen[-1][2].structured_outputs.grammar == grammar_of("hermes", tools_of()[:1])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": "yes"}}]}, "true or false"),
        ({"extra_body": {"structured_outputs": {"regex": "a"}}}, "other forms"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": []}}]}, "schema"),
    ],
)
async def test_faults(engine: FakeEngine, make_client: Callable[..., Any], fields: dict[str, Any], says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        await asked_of(engine, make_client, *HERMES, **fields)
    assert str(caught.value.param).startswith("tools")


async def test_parsers_that_cannot(engine: FakeEngine, make_client: Callable[..., Any], tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from vllm.tool_parsers import Content, ToolParserManager\n"
        "@ToolParserManager.register_module('strictless', force=True)\n"
        "class Parser:\n"
        "    def feed(self, text): return [Content(text)]\n"
        "    def finish(self): return []\n"
    )
    with pytest.raises(openai.BadRequestError, match="'strictless'"):
        await asked_of(engine, make_client, "--tool-parser-plugin", str(plugin), "--tool-call-parser", "strictless")
    tools = tools_of("qwen3_coder")
    tools[0]["function"]["parameters"] = {"properties": {"a": {"type": "string", "pattern": "x+"}}}
    with pytest.raises(openai.BadRequestError, match="'a'"):
        await asked_of(engine, make_client, "--tool-call-parser", "qwen3_coder", tools=tools)
