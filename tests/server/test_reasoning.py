"""Reasoning before an output of a given form: free until its end, constrained from there on; and counted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.fake_engine import FakeEngine
from tests.server.process import ServerProcess, serve
from tests.tiny import CHAT_TEMPLATE, make_checkpoint, save_tokenizer
from vllm.engine.structured_outputs.gate import Gate
from vllm.sampling_params import ReasoningGate

OPEN, CLOSE = "<think>", "</think>"
PATTERN = "[a-f]{3}(left|right)[0-9]{2}"
QUESTION: list[Any] = [{"role": "user", "content": "Where?"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "turn", "parameters": {
    "type": "object", "properties": {"side": {"enum": ["left", "right"]}}, "required": ["side"],
    "additionalProperties": False}}}]  # fmt: skip
ENDED = CHAT_TEMPLATE.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n")


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine(max_model_len=1000)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose tokenizer has a token for each marker."""
    directory = make_checkpoint(tmp_path_factory.mktemp("thinker"))
    save_tokenizer(directory, vocab_size=310)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens([OPEN, CLOSE])
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def ids(thinker: Path) -> tuple[int, int]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(thinker)
    return tokenizer.convert_tokens_to_ids(OPEN), tokenizer.convert_tokens_to_ids(CLOSE)


@pytest.fixture(scope="module")
def r1(thinker: Path) -> Iterator[ServerProcess]:
    """An output may begin with reasoning that nothing opens."""
    with serve(
        thinker, "--reasoning-parser", "deepseek_r1", "--max-model-len", "512", "--trust-request-chat-template"
    ) as server:
        yield server


@pytest.fixture(scope="module")
def qwen(thinker: Path) -> Iterator[ServerProcess]:
    with serve(thinker, "--reasoning-parser", "qwen3", "--max-model-len", "512") as server:
        yield server


def ask(server: ServerProcess, seed: int, bias: dict[int, float], max_tokens: int = 400, **fields: Any) -> Any:
    """The end-of-sequence token ends no reasoning here."""
    bias = {2: -100.0, **bias}
    extra = {"return_token_ids": True, **fields.pop("extra_body", {})}
    return server.client().chat.completions.create(
        model="test-model", messages=QUESTION, seed=seed, temperature=1.5, max_completion_tokens=max_tokens,
        logit_bias={str(token): value for token, value in bias.items()}, extra_body=extra, **fields,
    )  # fmt: skip


CONSTRAINED = {"structured_outputs": {"regex": PATTERN}}


def test_it_is_free_until_its_end(r1: ServerProcess, ids: tuple[int, int]) -> None:
    """The same tokens as without the constraint, up to the marker; the form from there on."""
    bias = {ids[1]: 5.0}
    for seed in range(4):
        free = ask(r1, seed, bias).choices[0].token_ids
        answer = ask(r1, seed, bias, extra_body=CONSTRAINED)
        choice = answer.choices[0]
        num_reasoning = choice.token_ids.index(ids[1])
        assert choice.token_ids[: num_reasoning + 1] == free[: num_reasoning + 1]
        assert re.fullmatch(PATTERN, choice.message.content), choice.message
        assert (choice.message.reasoning is not None) == (num_reasoning > 0) and choice.finish_reason == "stop"
        assert answer.usage.completion_tokens_details.reasoning_tokens == num_reasoning


def has_thought(answer: Any) -> bool:
    return hasattr(answer.choices[0].message, "reasoning")


def thoughtful(server: ServerProcess, bias: dict[int, float]) -> tuple[int, Any]:
    """A seed with which the model does not end its reasoning at once, and the answer."""
    answers = ((seed, ask(server, seed, bias, extra_body=CONSTRAINED)) for seed in range(20))
    return next((seed, answer) for seed, answer in answers if has_thought(answer))


def test_streamed(r1: ServerProcess, ids: tuple[int, int]) -> None:
    bias = {ids[1]: 4.0}
    seed, plain = thoughtful(r1, bias)
    stream = ask(r1, seed, bias, extra_body=CONSTRAINED, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    message = plain.choices[0].message
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == message.reasoning
    assert chunks[-1].usage == plain.usage


def test_an_output_may_begin_with_its_form(qwen: ServerProcess, ids: tuple[int, int]) -> None:
    """The first token opens the reasoning, or belongs to the form."""
    begun = []
    for seed in range(8):
        choice = ask(qwen, seed, {ids[0]: 4.0, ids[1]: 5.0}, extra_body=CONSTRAINED).choices[0]
        assert re.fullmatch(PATTERN, choice.message.content), choice.message
        begun.append(choice.token_ids[0] == ids[0])
        assert begun[-1] == (ids[1] in choice.token_ids)
    assert True in begun and False in begun


def test_forced_calls(r1: ServerProcess, ids: tuple[int, int]) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "turn"}}):
        answer = ask(r1, 3, {ids[1]: 4.0}, tools=TOOLS, tool_choice=choice)
        (call,) = answer.choices[0].message.tool_calls[:1]
        assert call.function.name == "turn" and json.loads(call.function.arguments)["side"] in ("left", "right")
        assert ids[1] in answer.choices[0].token_ids


def test_cut_off_while_it_thinks(r1: ServerProcess, ids: tuple[int, int]) -> None:
    answer = ask(r1, 0, {ids[1]: -100.0}, max_tokens=5, extra_body=CONSTRAINED, tools=TOOLS,
                 tool_choice="none")  # fmt: skip
    choice = answer.choices[0]
    assert choice.finish_reason == "length" and choice.message.content is None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 5
    forced = ask(r1, 0, {ids[1]: -100.0}, max_tokens=5, tools=TOOLS,
                 tool_choice={"type": "function", "function": {"name": "turn"}})  # fmt: skip
    assert not forced.choices[0].message.tool_calls


def test_prompt_that_ends_the_reasoning(r1: ServerProcess, ids: tuple[int, int]) -> None:
    answer = ask(r1, 0, {ids[1]: 100.0}, extra_body={**CONSTRAINED, "chat_template": ENDED})
    assert re.fullmatch(PATTERN, answer.choices[0].message.content)
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    answer = ask(r1, 0, {}, max_tokens=4, extra_body={"chat_template": ENDED})
    assert answer.choices[0].message.content and answer.choices[0].message.reasoning is None


@pytest.mark.parametrize("name", ["deepseek_r1", "qwen3"])
@pytest.mark.parametrize(
    ("turn", "reasoning"),
    [
        ("<think>\nhm\n</think>\n\nWell", False),
        ("Well", False),
        ("<think>\nhm", True),
        ("a </think> <think> b", True),
        ([{"type": "text", "text": "<think>hm</think>"}, {"type": "text", "text": "Well"}], False),
    ],
)
async def test_a_turn_that_is_gone_on_with(
    make_client: Callable[..., Any], engine: FakeEngine, name: str, turn: Any, reasoning: bool
) -> None:  # A13
    """Its last marker counts; those of earlier turns do not."""
    engine.text = " more"
    http = await make_client("--reasoning-parser", name)
    earlier: list[Any] = [*QUESTION, {"role": "assistant", "content": "<think>z</think>y"}, *QUESTION]
    messages = [*earlier, {"role": "assistant", "content": turn}]
    expected = {"content": None, "reasoning": " more"} if reasoning else {"content": " more", "reasoning": None}
    asked = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    message = (await http.post("/v1/chat/completions", json=asked)).json()["choices"][0]["message"]
    assert {key: message.get(key) for key in expected} == expected
    streamed = (await http.post("/v1/chat/completions", json={**asked, "stream": True})).text
    assert ('"reasoning":' in streamed) == reasoning
    if isinstance(turn, str):
        prefilled = (await http.post("/v1/messages", json={"messages": messages, "max_tokens": 9})).json()
        assert [block["type"] for block in prefilled["content"]] == ["thinking" if reasoning else "text"]


def test_responses_count_it(r1: ServerProcess, ids: tuple[int, int]) -> None:
    seed, chat = thoughtful(r1, {ids[1]: 4.0})
    response = r1.client().responses.create(
        model="test-model", input="Where?", temperature=1.5,
        extra_body={"seed": seed, "logit_bias": {str(ids[1]): 4.0, "2": -100.0}, **CONSTRAINED},
    )  # fmt: skip
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output_text == chat.choices[0].message.content
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == chat.choices[0].token_ids.index(ids[1])


@settings(max_examples=50)
@given(st.text("<>/think a{", max_size=12), st.text("{}a ", max_size=6), st.data())
def test_gate_finds_the_end_in_any_tokens(thought: str, rest: str, data: st.DataObject) -> None:
    """Cut into tokens anyhow, and given any number at a time: what is behind the gate is what follows the marker."""
    text = thought + CLOSE + rest
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1))))
    pieces = [text[a:b].encode() for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    gate = Gate(ReasoningGate(CLOSE, begun=True), lambda tokens: b"".join(pieces[token] for token in tokens))
    behind, position = b"", 0
    while position < len(pieces):
        count = data.draw(st.integers(1, 3))
        passed = gate.take(list(range(position, min(position + count, len(pieces)))))
        behind += passed.overhang + b"".join(pieces[token] for token in passed.token_ids)
        position += count
        if gate.is_open:
            behind += b"".join(pieces[position:])
            break
    assert behind.decode() == text.split(CLOSE, 1)[1]
