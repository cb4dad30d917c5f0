"""Structured outputs through the official client, on the null target and with SmolLM2 on the cpu target."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pydantic
import pytest

from tests.server.process import ServerProcess, serve
from tests.waiting import PATIENCE, wait_until

MODEL = "test-model"
HELLO: list[Any] = [{"role": "user", "content": "Give me a person."}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PATTERN = r"[A-Z][a-z]{2,8} [0-9]{1,3}"
CHAIN = {"$ref": "#/$defs/a0", "$defs": {f"a{i}": {"items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(3000)}}


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[ServerProcess]:
    with serve(tiny_llama, "--max-model-len", "512", "--max-num-seqs", "4") as running:
        yield running


@pytest.fixture(scope="module")
def smollm(smollm2: Path) -> Iterator[ServerProcess]:
    with serve(smollm2, "--max-model-len", "256", "--max-num-seqs", "4", device="cpu") as running:
        yield running


def chat(server: ServerProcess, seed: int = 0, **fields: Any) -> str:
    given: dict[str, Any] = {"temperature": 1.5, "max_completion_tokens": 180, "messages": HELLO, **fields}
    choice = server.client().chat.completions.create(model=MODEL, seed=seed, **given).choices[0]
    assert choice.finish_reason == "stop"
    return choice.message.content or ""


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}},
        {"extra_body": {"structured_outputs": {"json": SCHEMA}}},
        {"extra_body": {"structured_outputs": {"json": json.dumps(SCHEMA), "disable_any_whitespace": True}}},
        {"extra_body": {"guided_json": SCHEMA}},
    ],
)
def test_json_schema(server: ServerProcess, fields: dict[str, Any]) -> None:
    for seed in range(4):
        jsonschema.validate(json.loads(chat(server, seed, **fields)), SCHEMA)


@pytest.mark.parametrize(
    ("body", "pattern"),
    [
        ({"structured_outputs": {"regex": PATTERN}}, PATTERN),
        ({"guided_regex": PATTERN}, PATTERN),
        ({"guided_choice": ["left", "right"]}, "left|right"),
        ({"structured_outputs": {"choice": ["left", "right"]}}, "left|right"),
        ({"guided_grammar": 'root ::= "a" ("b" | "c")*'}, "a[bc]*"),
        ({"structured_outputs": {"grammar": "start: /a[bc]*/"}}, "a[bc]*"),
    ],
)
def test_text_forms(server: ServerProcess, body: dict[str, Any], pattern: str) -> None:
    for seed in range(4):
        assert re.fullmatch(pattern, chat(server, seed, extra_body=body))
    completion = server.client().completions.create(model=MODEL, prompt="x", max_tokens=99, extra_body=body)
    assert re.fullmatch(pattern, completion.choices[0].text)


def test_stream_equals_plain(server: ServerProcess) -> None:
    body = {"structured_outputs": {"regex": "[a-z]{20}"}}
    stream = server.client().chat.completions.create(
        model=MODEL, messages=HELLO, seed=4, temperature=1.5, stream=True, extra_body=body
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == chat(server, 4, extra_body=body)


def test_json_object_and_text(server: ServerProcess) -> None:
    asked = {"model": MODEL, "messages": HELLO, "max_completion_tokens": 300}
    client = server.client()
    for seed in range(6):
        answer = client.chat.completions.create(**asked, seed=seed, response_format={"type": "json_object"})
        if answer.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)
    client.chat.completions.create(**asked, response_format={"type": "text"})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        {"structured_outputs": {"regex": "["}},
        {"structured_outputs": {"regex": "a\0"}},
        {"structured_outputs": {"choice": []}},
        {"structured_outputs": {"json": {"type": "nothing"}}},
        {"structured_outputs": {"json": ""}},
        {"structured_outputs": {"json_object": False}},
        {"structured_outputs": {}},
        {"structured_outputs": {"regexp": "a"}},
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        {"structured_outputs": {"regex": "a"}, "guided_regex": "b"},
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a", "backend": "outlines"}},
        {"structured_outputs": {"grammar": "start: nothing"}},
        {"structured_outputs": {"structural_tag": '{"format": {}}'}},
        {"guided_decoding_backend": "auto"},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}},
        {"response_format": {"type": "structural_tag", "format": {}}},
        {"structured_outputs": {"json": CHAIN}},
    ],
)
def test_bad_constraint(server: ServerProcess, body: dict[str, Any], stream: bool) -> None:
    for path, prompt in [("completions", {"prompt": "a"}), ("chat/completions", {"messages": HELLO})]:
        response = httpx.post(f"{server.url}/v1/{path}", json={**prompt, **body, "stream": stream}, timeout=PATIENCE)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["code"] == 400
    assert server.get("/health").status_code == 200


def records(**more: Any) -> dict[str, Any]:
    """As zod writes `z.record`, and as Claude Code's TaskCreate has it."""
    inner = {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {}, "maxProperties": 2}
    return {"type": "object", "properties": {"m": {**inner, **more}}, "required": ["m"], "additionalProperties": False}


def test_a_schema_is_taken_or_its_tool_and_property_are_named(server: ServerProcess) -> None:  # A5
    def post(path: str, **fields: Any) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/{path}", json={"seed": 1, "temperature": 1, **fields}, timeout=30)

    def asked(path: str, parameters: Any) -> httpx.Response:
        """A call of the second of two tools is forced; the first one is left out."""
        if path == "messages":
            tools: list[Any] = [{"type": "bash_20250124", "name": "b"}, {"name": "f", "input_schema": parameters}]
            return post(path, messages=HELLO, max_tokens=99, tools=tools, tool_choice={"type": "any"})
        function = {"name": "f", "parameters": parameters}
        if path == "responses":
            tools = [{"type": "web_search"}, {"type": "function", **function}]
            return post(path, input="a", max_output_tokens=99, tools=tools, tool_choice="required")
        tools = [{"type": "custom"}, {"type": "function", "function": function}]
        return post(path, messages=HELLO, max_tokens=99, tools=tools, tool_choice="required")

    for path, place in (
        ("chat/completions", "tools[1].function.parameters"),
        ("responses", "tools[1].parameters"),
        ("messages", "tools[1].input_schema"),
    ):
        assert asked(path, records()).status_code == 200
        refused = asked(path, records(additionalProperties={"not": {}}))
        message = refused.json()["error"]["message"]
        assert refused.status_code == 400 and "the tool 'f'" in message and "not" in message
        assert f"{place}.properties.m.additionalProperties cannot be used" in message

    given = {"name": "n", "schema": records(patternProperties={"^a": {"not": {}}})}
    refused = post("chat/completions", messages=HELLO, response_format={"type": "json_schema", "json_schema": given})
    error = refused.json()["error"]
    assert error["message"].startswith("response_format.json_schema.schema.properties.m.patternProperties.^a cannot")
    assert error["param"] == "response_format.json_schema.schema"
    refused = post("completions", prompt="a", guided_json=records(uniqueItems=True))
    assert refused.json()["error"]["message"].startswith("guided_json.properties.m cannot be used")


def test_contradiction_is_the_requests_fault(server: ServerProcess) -> None:
    body = {"prompt": "a", "structured_outputs": {"regex": "[0-9]+"}, "allowed_token_ids": [67, 68]}
    response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE)
    assert response.status_code == 400 and "structured_outputs" in response.json()["error"]["message"]


def test_streams_go_on_while_constraints_explode(server: ServerProcess) -> None:
    """Streams beside a crowd of hostile requests give what they give alone, and nothing is left behind."""
    client = server.client()
    asked: dict[str, Any] = {"model": MODEL, "prompt": "good", "seed": 7, "max_tokens": 300}
    alone = client.completions.create(**asked).choices[0].text
    hostile = [
        {"regex": "(" * 9000},
        {"json": CHAIN},
        {"grammar": "start: r0\n" + "\n".join(f'r{i}: "x" r{(i + 1) % 8000}?' for i in range(8000))},
    ]
    codes: list[int] = []

    def attack(constraint: dict[str, Any]) -> None:
        body = {"prompt": "bad", "structured_outputs": constraint}
        codes.append(httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE).status_code)

    threads = [threading.Thread(target=attack, args=(constraint,)) for constraint in hostile]
    for thread in threads:
        thread.start()
    stream = client.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == alone
    for thread in threads:
        thread.join()
    assert codes == [400] * len(hostile)
    wait_until(server.is_idle)


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    kind: Literal["adult", "child"]


def test_parse_with_a_real_model(smollm: ServerProcess) -> None:
    answer = smollm.client().chat.completions.parse(
        model=MODEL, messages=HELLO, response_format=Person, temperature=1.0, seed=1, max_completion_tokens=120
    )
    parsed = answer.choices[0].message.parsed
    assert parsed is not None and parsed.kind in ("adult", "child")


def test_real_model_keeps_to_the_form(smollm: ServerProcess) -> None:
    for seed in range(4):
        text = chat(smollm, seed, extra_body={"structured_outputs": {"regex": PATTERN}})
        assert re.fullmatch(PATTERN, text)
    schema = {"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA}}
    jsonschema.validate(json.loads(chat(smollm, temperature=0, response_format=schema)), SCHEMA)


def test_refusal_names_the_field(smollm: ServerProcess) -> None:
    with pytest.raises(openai.BadRequestError, match=r"structured_outputs\.regex"):
        chat(smollm, extra_body={"structured_outputs": {"regex": "(?<=a)b"}})


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 6}, "unit": {"$ref": "#/$defs/unit"}},
                "required": ["city", "unit"],
                "additionalProperties": False,
                "$defs": {"unit": {"enum": ["C", "F"]}},
            },
        },
    },
    {"type": "function", "function": {"name": "time"}},
]


def check_call(name: str, arguments: str) -> None:
    schema = TOOLS[0]["function"]["parameters"] if name == "weather" else {"type": "object", "maxProperties": 0}
    jsonschema.validate(json.loads(arguments), schema)


def test_required_tools(server: ServerProcess) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": HELLO, "tools": TOOLS, "tool_choice": "required"}
    for seed in range(4):
        (choice,) = server.client().chat.completions.create(**asked, seed=seed, parallel_tool_calls=False).choices
        assert choice.finish_reason == "tool_calls" and not choice.message.content
        (call,) = choice.message.tool_calls or []
        check_call(call.function.name, call.function.arguments)
        stream = server.client().chat.completions.create(**asked, seed=seed, parallel_tool_calls=False, stream=True)
        deltas = [chunk.choices[0].delta for chunk in stream]
        pieces = [each for delta in deltas for each in delta.tool_calls or []]
        assert [piece.function.name for piece in pieces if piece.function.name] == [call.function.name]
        assert pieces[0].function.name and {piece.index for piece in pieces} == {0}
        assert "".join(piece.function.arguments or "" for piece in pieces) == call.function.arguments


def test_named_tool(server: ServerProcess) -> None:
    chosen: Any = {"type": "function", "function": {"name": "weather"}}
    asked: dict[str, Any] = {"model": MODEL, "messages": HELLO, "tools": TOOLS, "tool_choice": chosen}
    for seed in range(4):
        (choice,) = server.client().chat.completions.create(**asked, seed=seed).choices
        assert choice.finish_reason == "stop"
        (call,) = choice.message.tool_calls or []
        assert call.function.name == "weather"
        check_call("weather", call.function.arguments)


def test_required_tools_of_a_real_model(smollm: ServerProcess) -> None:
    answer = smollm.client().chat.completions.create(
        model=MODEL, messages=HELLO, tools=TOOLS, tool_choice="required", temperature=0, parallel_tool_calls=False
    )
    (call,) = answer.choices[0].message.tool_calls or []
    check_call(call.function.name, call.function.arguments)
