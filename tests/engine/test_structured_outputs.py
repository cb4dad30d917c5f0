"""Structured outputs on the null target: what comes has the form; what cannot be compiled hurts nobody."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tokenizers

from tests.engine.engines import engine_args, greedy
from tests.tiny import make_checkpoint
from vllm import LLM, SamplingParams
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.messages import Reply
from vllm.engine.processes.core_client import ProcessClient
from vllm.engine.structured_outputs import checker as checker_module
from vllm.engine.structured_outputs import manager as manager_module
from vllm.engine.structured_outputs.checker import GrammarChecker, VerdictCache
from vllm.engine.structured_outputs.matcher_tokenizer import within
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "inner": {"$ref": "#/$defs/inner"},
    },
    "required": ["name", "age", "tags", "inner"],
    "additionalProperties": False,
    "$defs": {"inner": {"anyOf": [{"type": "null"}, {"type": "boolean"}]}},
}
TAG = {"structures": [{"begin": "<f=", "schema": {"type": "boolean"}, "end": ">"}], "triggers": ["<f"]}


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> Iterator[LLM]:
    llm = LLM.from_engine_args(engine_args(tiny_llama, max_model_len=512))
    yield llm
    llm.shutdown()


def constrained(seed: int = 0, max_tokens: int = 300, **fields: Any) -> SamplingParams:
    names = {field for field in StructuredOutputsParams.__struct_fields__ if field in fields}
    constraint = StructuredOutputsParams(**{name: fields.pop(name) for name in names})
    return SamplingParams(
        seed=seed, max_tokens=max_tokens, structured_outputs=constraint, **{"temperature": 1.9, **fields}
    )


def texts(llm: LLM, params: list[SamplingParams]) -> list[str]:
    outputs = [output.outputs[0] for output in llm.generate(["a prompt"] * len(params), params, use_tqdm=False)]
    assert {output.finish_reason for output in outputs} == {"stop"}
    return [output.text for output in outputs]


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for level in range(depth):
        schema = {"oneOf": [schema, {"type": "object", "properties": {f"p{level}": {"type": "integer"}}}]}
    return schema


def chain_of_references(length: int) -> dict[str, Any]:
    """Each definition holds the next: deep without being nested."""
    links = {f"a{i}": {"properties": {"x": {"$ref": f"#/$defs/a{i + 1}"}}} for i in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": {**links, f"a{length}": {"type": "string"}}}


def exploding(depth: int) -> dict[str, Any]:
    def level(i: int) -> dict[str, Any]:
        return {
            "allOf": [
                {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}, {"properties": {f"{side}{i}": {"type": "string"}}}]}
                for side in "jk"
            ]
        }

    return {"$ref": "#/$defs/a0", "$defs": {**{f"a{i}": level(i) for i in range(depth)}, f"a{depth}": {}}}


HOSTILE: dict[str, dict[str, Any]] = {
    "explodes": {"json": exploding(20)},
    "overflows the stack": {"json": chain_of_references(3000)},
    "rules that overflow the stack": {
        "grammar": "start: r0\n" + "\n".join(f'r{i}: "x" r{(i + 1) % 9000}?' for i in range(9000))
    },
    "too long": {"json": {"description": "x" * 300_000}},
    "too long a text": {"regex": "a" * 300_000},
    "nothing but itself": {"json": {"$ref": "#"}},
    "unsatisfiable": {"json": {"type": "string", "enum": [1]}},
    "unknown type": {"json": {"type": "no such type"}},
    "unknown keyword": {"json": {"type": "array", "uniqueItems": True}},
    "remote reference": {"json": {"$ref": "http://127.0.0.1:9/schema"}},
    "pattern of a schema": {"json": {"type": "string", "pattern": "("}},
    "no JSON": {"json": "{"},
    "deep text": {"json": '{"items":' * 20_000 + "{}" + "}" * 20_000},
    "a number": {"json": "7"},
    "unclosed regex": {"regex": "["},
    "back reference": {"regex": r"(a)\1"},
    "look-ahead": {"regex": "(?=a)b"},
    "deep regex": {"regex": "(" * 50_000 + "a" + ")" * 50_000},
    "regex of nothing": {"regex": r"[^\s\S]"},
    "lone surrogate": {"choice": ["\ud800"]},
    "unknown rule": {"grammar": "start: foo"},
    "bad GBNF": {"grammar": "root ::= ("},
    "deep GBNF": {"grammar": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000},
    "tag without triggers": {"structural_tag": '{"structures": []}'},
    "tag of the other form": {"structural_tag": '{"format": {"type": "any_text"}}'},
    "tag without its trigger": {"structural_tag": json.dumps({**TAG, "triggers": ["<g"]})},
    "unknown backend": {"regex": "a", "backend": "outlines"},
}


@pytest.mark.parametrize("options", [{}, {"disable_any_whitespace": True}])
def test_json_schema(llm: LLM, options: dict[str, Any]) -> None:
    for text in texts(llm, [constrained(seed, json=SCHEMA, **options) for seed in range(24)]):
        jsonschema.validate(json.loads(text), SCHEMA)
        assert not options or " :" not in text


def test_schema_as_text_and_closed(llm: LLM) -> None:
    schema = {"properties": {"a": {"type": "boolean"}}, "type": "object"}
    params = [constrained(seed, json=json.dumps(schema), disable_additional_properties=True) for seed in range(12)]
    for text in texts(llm, params):
        assert set(json.loads(text)) <= {"a"}


def test_defaults_of_the_engine(tiny_llama: Path) -> None:
    """They hold for every request; what a request asks for itself stays."""
    open_schema = {"type": "object", "properties": {"a": {"type": "boolean"}}}
    defaults = {"disable_any_whitespace": True, "disable_additional_properties": True, "backend": "guidance"}
    llm = LLM.from_engine_args(engine_args(tiny_llama, max_model_len=512, structured_outputs_config=defaults))
    try:
        asked = [constrained(seed, json=open_schema, disable_any_whitespace=seed % 2 == 0) for seed in range(8)]
        assert set(texts(llm, asked)) <= {"{}", '{"a":true}', '{"a":false}'}
    finally:
        llm.shutdown()


def test_whitespace_pattern(llm: LLM) -> None:
    for text in texts(llm, [constrained(seed, json=SCHEMA, whitespace_pattern="[ ]") for seed in range(8)]):
        jsonschema.validate(json.loads(text), SCHEMA)
        assert "  " not in text.replace('"', "") and "\n" not in text


@pytest.mark.parametrize("pattern", [r"[a-f]{3,8}-[0-9]+x", "(foo|ba[rz])+!", "^anchored$", "日[本語]{2}"])
def test_regex(llm: LLM, pattern: str) -> None:
    for text in texts(llm, [constrained(seed, regex=pattern) for seed in range(16)]):
        assert re.fullmatch(pattern, text)


def test_choice(llm: LLM) -> None:
    choices = ["yes", 'no "q"', "a\nb\\", "mäh 😀", "<|im_end|>"]
    found = set(texts(llm, [constrained(seed, choice=choices) for seed in range(40)]))
    assert found <= set(choices) and len(found) > 2


@pytest.mark.parametrize(
    "grammar",
    ['root ::= "a" tail+\ntail ::= "x" | "y"', 'start: "a" TAIL\nTAIL: /[xy]+/', '?start: "a" (tail)+\ntail: "x"|"y"'],
)
def test_grammar(llm: LLM, grammar: str) -> None:
    for text in texts(llm, [constrained(seed, grammar=grammar) for seed in range(12)]):
        assert re.fullmatch("a[xy]+", text)


def test_structural_tag(llm: LLM) -> None:
    params = [
        constrained(seed, 60, structural_tag=json.dumps(TAG), bad_words=["\n"], ignore_eos=False) for seed in range(8)
    ]
    outputs = llm.generate(["x"] * 8, params, use_tqdm=False)
    for output in outputs:
        for found in re.findall("<f[^>]{0,8}", output.outputs[0].text):
            assert "<f=".startswith(found) or found in ("<f=true", "<f=false") or "<f=false".startswith(found)


def test_greedy_and_batch_are_alone(llm: LLM) -> None:
    """Constrained and free requests side by side: each gives what it gives alone."""
    params = [constrained(seed, regex="[ab]{4,30}") if seed % 2 else greedy(10) for seed in range(8)]
    together = llm.generate(["hello"] * 8, params, use_tqdm=False)
    for each, output in zip(params, together, strict=True):
        (alone,) = llm.generate("hello", each, use_tqdm=False)
        assert alone.outputs[0].token_ids == output.outputs[0].token_ids
    assert re.fullmatch("[ab]{4,30}", texts(llm, [constrained(regex="[ab]{4,30}", temperature=0)])[0])


def test_ends_with_eos(llm: LLM) -> None:
    output = llm.generate("x", constrained(regex="ab", logprobs=2), use_tqdm=False)[0].outputs[0]
    assert output.text == "ab" and output.token_ids[-1] == llm.get_tokenizer().eos_token_id
    assert output.finish_reason == "stop" and output.stop_reason is None
    assert len(output.logprobs) == len(output.token_ids)


@pytest.mark.parametrize("fields", [{"ignore_eos": True}, {"min_tokens": 50}])
def test_ends_where_no_eos_can_come(llm: LLM, fields: dict[str, Any]) -> None:
    """A complete output goes before ignore_eos and min_tokens, which would leave no token."""
    assert texts(llm, [constrained(regex="ab", **fields)]) == ["ab"]


def test_min_tokens_prolongs(llm: LLM) -> None:
    for seed in range(6):
        output = llm.generate("x", constrained(seed, regex="[a-c]*", min_tokens=20), use_tqdm=False)[0].outputs[0]
        assert len(output.token_ids) > 20 and re.fullmatch("[a-c]*", output.text)


def test_with_stop_string_and_length(llm: LLM) -> None:
    output = llm.generate("x", constrained(regex="a{50}b", stop="aaaa"), use_tqdm=False)[0].outputs[0]
    assert (output.text, output.stop_reason) == ("", "aaaa")
    output = llm.generate("x", constrained(regex="[a]{50}b", max_tokens=3), use_tqdm=False)[0].outputs[0]
    assert output.finish_reason == "length" and set(output.text) == {"a"}


def test_n(llm: LLM) -> None:
    (output,) = llm.generate("x", constrained(regex="[a-z]{6}", n=5), use_tqdm=False)
    assert len({completion.text for completion in output.outputs}) > 1
    assert all(re.fullmatch("[a-z]{6}", completion.text) for completion in output.outputs)


def test_contradiction_ends_the_request_alone(llm: LLM) -> None:
    params = [constrained(regex="[0-9]+x", allowed_token_ids=[67, 68]), constrained(1, regex="[0-9]{3}")]
    bad, good = llm.generate(["x"] * 2, params, use_tqdm=False)
    assert bad.outputs[0].finish_reason == "error" and "structured_outputs" in str(bad.outputs[0].stop_reason)
    assert re.fullmatch("[0-9]{3}", good.outputs[0].text)
    assert llm.llm_engine.engine_core.core.grammars.num_running == 0


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_constraint_is_refused(llm: LLM, name: str) -> None:
    with pytest.raises(VLLMValidationError, match=r"structured_outputs|regex|json"):
        llm.generate(["good", "bad"], [greedy(4), constrained(**HOSTILE[name])], use_tqdm=False)
    assert texts(llm, [constrained(regex="[ab]{3}")])[0].strip("ab") == ""
    llm.llm_engine.engine_core.call("check_integrity")


@pytest.mark.parametrize("depth", [3, 30])
def test_deep_one_of(llm: LLM, depth: int) -> None:
    """Such a schema is compiled or refused; what it gives is of the schema."""
    try:
        params = [constrained(seed, json=nested(depth)) for seed in range(8)]
        for output in llm.generate(["x"] * 8, params, use_tqdm=False):
            if output.outputs[0].finish_reason == "stop":
                json.loads(output.outputs[0].text)
    except VLLMValidationError as error:
        assert "structured_outputs.json" in str(error)


def test_slow_constraint_is_refused_in_time(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    preparer = llm.llm_engine.grammars
    llm.generate("x", constrained(regex="warm"), use_tqdm=False)
    sandbox = preparer._checker._free[-1]
    os.kill(sandbox.process.pid, signal.SIGSTOP)
    monkeypatch.setenv("VLLM_REGEX_COMPILATION_TIMEOUT_S", "0.2")
    with pytest.raises(VLLMValidationError, match="takes more than"):
        llm.generate("x", constrained(regex="slow{1,20}"), use_tqdm=False)
    assert sandbox.process.poll() is not None
    monkeypatch.undo()
    assert texts(llm, [constrained(regex="[cd]{2}")])[0].strip("cd") == ""


def test_target_without_structured_outputs(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    preparer = llm.llm_engine.grammars
    monkeypatch.setattr(
        preparer, "_capabilities", dataclasses.replace(preparer._capabilities, structured_outputs=False)
    )
    with pytest.raises(VLLMValidationError, match="null target has no structured outputs"):
        llm.generate("x", constrained(regex="a"), use_tqdm=False)


def test_no_tokenizer(tiny_llama: Path) -> None:
    llm = LLM.from_engine_args(engine_args(tiny_llama, skip_tokenizer_init=True))
    with pytest.raises(VLLMValidationError, match="need a tokenizer"):
        llm.generate([[1, 2]], constrained(regex="a", detokenize=False), use_tqdm=False)
    llm.shutdown()


def test_caches_are_bounded(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_module, "MAX_COMPILED", 5)
    params = [constrained(regex=f"a{i}") for i in range(40)]
    assert texts(llm, params) == [f"a{i}" for i in range(40)]
    assert llm.llm_engine.engine_core.core.grammars.manager.num_compiled <= 5
    cache = VerdictCache(3, 100)
    for i in range(50):
        cache.put(bytes([i]), {"grammar": "x" * 40})
        assert len(cache) <= 2
    assert cache.get(bytes([49])) and cache.get(bytes([0])) is None


def test_each_constraint_is_judged_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    texts(llm, [constrained(regex="once{1,3}")])
    monkeypatch.setattr(GrammarChecker, "_judge", lambda *_: pytest.fail("judged again"))
    texts(llm, [constrained(seed, regex="once{1,3}") for seed in range(4)])


def test_grammar_too_large_for_n(llm: LLM) -> None:
    choices = [f"choice number {i}" for i in range(6000)]
    with pytest.raises(VLLMValidationError, match="lower n") as caught:
        llm.generate("x", constrained(choice=choices, n=1000), use_tqdm=False)
    assert caught.value.parameter == "n"


def test_sandbox_that_does_not_start(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker_module, "_COMMAND", ["/bin/false"])
    with pytest.raises(RuntimeError, match="does not start"):
        GrammarChecker(llm.llm_engine.grammars._grammar_tokenizer()).check(StructuredOutputsParams(regex="a"))


async def test_a_request_waits_while_others_run(tiny_llama: Path) -> None:
    """The engine goes on while a grammar is checked, and a request that is aborted meanwhile leaves nothing."""
    engine = AsyncLLM.from_engine_args(engine_args(tiny_llama))

    async def text(params: SamplingParams, request_id: str) -> str:
        final = None
        async for output in engine.generate("hello", params, request_id):
            final = output
        assert final is not None
        return final.outputs[0].text

    try:
        free = await text(greedy(), "free")
        assert await text(constrained(regex="[xy]{5}"), "a") != ""
        release = threading.Event()
        judge = engine.grammars._checker._judge
        engine.grammars._checker._judge = lambda line: (release.wait(20), judge(line))[1]  # type: ignore[method-assign]
        slow = asyncio.create_task(text(constrained(regex="[pq]{5}"), "slow"))
        gone = asyncio.create_task(text(constrained(regex="[rs]{5}"), "gone"))
        for i in range(3):
            assert await text(greedy(), f"free {i}") == free
        assert not slow.done()
        gone.cancel()
        release.set()
        assert re.fullmatch("[pq]{5}", await slow)
        with pytest.raises(VLLMValidationError):
            await text(constrained(regex="["), "bad")
        await engine.check_health()
    finally:
        engine.shutdown()


def test_core_waits_for_a_grammar(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the core, a request whose grammar is not compiled yet waits outside the scheduler; others run and end."""
    core = llm.llm_engine.engine_core.core
    texts(llm, [constrained(regex="warm")])
    compiled: Future[Any] = Future()
    real = core.grammars.manager.compile('{"grammars":[{"lark_grammar":"start: /[ab]{4}/"}]}')
    monkeypatch.setattr(core.grammars.manager, "compile", lambda grammar: compiled)
    llm.llm_engine.add_request("slow", "x", constrained(regex="[ab]{4}"))
    llm.llm_engine.add_request("aborted", "x", constrained(regex="[ab]{4}"))
    llm.llm_engine.add_request("free", "x", greedy(5))
    assert core.stats().num_waiting == 3
    finished: list[str] = []
    for _ in range(12):
        finished += [output.request_id for output in llm.llm_engine.step() if output.finished]
    assert finished == ["free"]
    llm.llm_engine.abort_request("aborted")
    assert core.stats().num_waiting == 1 and core.has_work
    compiled.set_result(real.result(10))
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            if output.finished:
                assert re.fullmatch("[ab]{4}", output.outputs[0].text)
    llm.llm_engine.step()
    assert not core.has_work and core.grammars.num_running == core.grammars.num_waiting == 0
    core.check_integrity()


async def test_a_server_reads_the_vocabulary_at_its_start(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not with the first constraint, when it would stop every stream; nor after it has said that it is ready."""
    sent: list[Any] = []
    send = ProcessClient.set_grammar_tokenizer

    def counted(client: ProcessClient, tokenizer: Any) -> None:
        sent.append(tokenizer)
        send(client, tokenizer)

    replies: list[Any] = []
    next_message = ProcessClient._next_message

    def noted(client: ProcessClient) -> Any:
        message = next_message(client)
        if isinstance(message, Reply):
            replies.append(message)
        return message

    monkeypatch.setattr(ProcessClient, "set_grammar_tokenizer", counted)
    monkeypatch.setattr(ProcessClient, "_next_message", noted)
    llm = AsyncLLM.from_engine_args(engine_args(tiny_llama, max_model_len=64))
    try:
        assert len(sent) == 1 and [reply.error for reply in replies] == [None], "it was waited for"
        outputs = [output async for output in llm.generate("a", constrained(regex="[ab]{3}"), "one")]
        assert re.fullmatch("[ab]{3}", outputs[-1].outputs[0].text) and len(sent) == 1
    finally:
        llm.shutdown()


def test_a_tokenizer_with_tokens_that_the_model_lacks(tmp_path: Path) -> None:  # M15
    """A text is written with those that it has."""
    small = make_checkpoint(tmp_path / "small", vocab_size=260)
    vocab = json.loads((small / "tokenizer.json").read_text())["model"]["vocab"]
    assert sum(token_id < 260 for token_id in vocab.values()) == 260 < len(vocab), "bytes, and one merge"
    llm = LLM.from_engine_args(engine_args(small, max_model_len=128))

    def written(**fields: Any) -> Any:
        params = constrained(max_tokens=60, **fields)
        return llm.generate({"prompt_token_ids": [5, 6, 7]}, params, use_tqdm=False)[0].outputs[0]

    for text in ("hello", "the engine keeps its promise", "zzz~é"):
        assert (written(choice=[text]).text, written(choice=[text]).finish_reason) == (text, "stop")
    closed = {"type": "object", "properties": {"the": {"const": "the"}}, "required": ["the"]}
    answer = written(json={**closed, "additionalProperties": False}, disable_any_whitespace=True)
    assert json.loads(answer.text) == {"the": "the"}
    llm.shutdown()


def test_a_tokenizer_without_its_last_tokens(tiny_llama: Path) -> None:  # M15
    text = (tiny_llama / "tokenizer.json").read_text()
    whole = tokenizers.Tokenizer.from_str(text)
    for size in (320, 300, 262):
        part = tokenizers.Tokenizer.from_str(within(text, size))
        expected = {token: i for token, i in whole.get_vocab().items() if i < size}
        assert part.get_vocab() == expected
        ids = part.encode("The quick brown fox keeps its promise\n\x01é").ids
        assert max(ids) < size and part.decode(ids) == "The quick brown fox keeps its promise\n\x01é"
    unigram = {"model": {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0], ["ab", -0.5]], "unk_id": 0}}
    assert json.loads(within(json.dumps(unigram), 2))["model"]["vocab"] == [["a", 0.0], ["b", -1.0]]
    listed = {"model": {"vocab": {"a": 0, "b": 1, "ab": 2, "abb": 3}, "merges": ["a b", "ab b"]}}
    assert json.loads(within(json.dumps(listed), 3))["model"]["merges"] == ["a b"]
