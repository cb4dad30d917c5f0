"""Log-probabilities by one set of rules on every route: bytes join to the text, offsets index it, names differ."""

from __future__ import annotations

import json
from codecs import utf_8_decode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from tests.engine import backends
from tests.engine.engines import engine_args
from tests.server.conftest import BASE, make_app
from vllm.core.contract import TokenLogprobs
from vllm.core.outputs import EngineCoreOutput
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.messages import EngineCoreRequest
from vllm.engine.text.detokenizer import incremental_decoder
from vllm.engine.text.input_processor import ProcessedRequest
from vllm.engine.text.logprobs import prompt_offsets
from vllm.engine.text.output_processor import OutputProcessor
from vllm.engine.text.tokenizer import Tokenizer
from vllm.entrypoints.openai.logprobs import LogprobsFormatter, TokenNames, joined
from vllm.entrypoints.openai.protocol import CompletionResponseChoice
from vllm.entrypoints.openai.protocol.stream import CompletionChunkChoice
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

TOKENIZERS = {name: getattr(backends, name)() for name in ("byte_level", "byte_fallback", "word_piece")}
LLAMA = "🦙"
on_routes = pytest.mark.asyncio(loop_scope="module")


# The rules, on any tokens.


def core_outputs(tokens: list[list[int]], sizes: list[int], finish_reason: str) -> Iterator[EngineCoreOutput]:
    """tokens: of each position the sampled one, and further candidates. sizes: tokens of each step."""
    left, sizes = list(tokens), list(sizes)
    while left:
        size = sizes.pop() if sizes else 1
        step, left = left[:size], left[size:]
        entries = [
            TokenLogprobs(token_id, -9.5, 50, [(one, -1.0 - i) for i, one in enumerate(dict.fromkeys(others))])
            for token_id, *others in step
        ]
        ends = None if left else finish_reason
        yield EngineCoreOutput("r", [entry.token_id for entry in entries], entries, finish_reason=ends)


def run(
    tokenizer: Tokenizer, kind: RequestOutputKind, outputs: Iterator[EngineCoreOutput], **fields: Any
) -> list[CompletionOutput]:
    """The outputs that a user gets."""
    params = SamplingParams(logprobs=8, output_kind=kind, **fields)
    processor, found = OutputProcessor(tokenizer, with_metrics=False), []
    request = ProcessedRequest("r", None, [1], params, [EngineCoreRequest("r", [1], params.for_core())], 0.0)
    processor.add(request, lambda output: found.extend(output.outputs))
    for output in outputs:
        processor.process([output])
    return found


def data_of(entries: list[dict[str, Any]]) -> bytes:
    return bytes(byte for entry in entries for byte in entry["bytes"])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_bytes_offsets_and_names(data: st.DataObject) -> None:  # A14, A15
    tokenizer = TOKENIZERS[data.draw(st.sampled_from(sorted(TOKENIZERS)))]
    ids = st.integers(0, len(tokenizer) + 2)
    tokens = data.draw(st.lists(st.lists(ids, min_size=1, max_size=9), min_size=1, max_size=12))
    sizes = data.draw(st.lists(st.integers(1, 4)))
    fields = {name: data.draw(st.booleans()) for name in ("skip_special_tokens", "include_stop_str_in_output")}
    stop = data.draw(st.none() | st.text("the qu!日", min_size=1, max_size=2))
    finish_reason = data.draw(st.sampled_from(["stop", "length"]))
    as_ids = data.draw(st.booleans())

    def outputs(kind: RequestOutputKind) -> list[CompletionOutput]:
        return run(tokenizer, kind, core_outputs(tokens, sizes, finish_reason), stop=stop, **fields)

    def formatter() -> LogprobsFormatter:
        return LogprobsFormatter(
            TokenNames(tokenizer),
            as_ids=as_ids,
            skips_special=fields["skip_special_tokens"],
            has_stop_token=fields["include_stop_str_in_output"],
        )

    (whole,) = outputs(RequestOutputKind.FINAL_ONLY)
    chat, shown = formatter().chat(whole, 5)["content"], formatter().completion(whole)
    text = data_of(chat).decode("utf-8", "replace")
    if isinstance(whole.stop_reason, str):
        assert text.startswith(whole.text)
    else:
        assert text == whole.text
    before = [utf_8_decode(data_of(chat[:i]), "replace")[0] for i in range(len(chat))]
    assert shown["text_offset"] == list(map(len, before))
    for position, name, top, entry in zip(whole.logprobs, shown["tokens"], shown["top_logprobs"], chat, strict=True):
        assert len(top) == len(position) and name in top and entry["token"] == name
        assert [one["logprob"] for one in entry["top_logprobs"]] == sorted(top.values(), reverse=True)[:5]
        names = [one["token"] for one in entry["top_logprobs"]]
        assert len(set(names)) == len(names) and set(names) <= set(top)

    pieces, streamed, streamed_chat = outputs(RequestOutputKind.DELTA), formatter(), formatter()
    found: dict[str, Any] | None = None
    for piece in pieces:
        found = joined(found, streamed.completion(piece))
    assert found == shown
    assert [entry for piece in pieces for entry in streamed_chat.chat(piece, 5)["content"]] == chat


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.sampled_from("the quick\n,日本😀é") | st.characters(exclude_categories=["Cs"])), bos=st.booleans()
)
def test_prompt_offsets_tile_a_text(text: str, bos: bool) -> None:
    """Each token of byte-level BPE begins where the texts of those before it end."""
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer.encode(text, add_special_tokens=bos)
    decoder, length = incremental_decoder(tokenizer), 0
    expected = []
    for i, token_id in enumerate(ids):
        expected.append(length)
        length += 0 if bos and i == 0 else len(decoder.push(token_id))
    assert prompt_offsets(tokenizer, text, ids, bos) == expected and length == len(text)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_prompt_offsets_tile_what_tokens_decode_to(data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[data.draw(st.sampled_from(sorted(TOKENIZERS)))]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    text = tokenizer.decode(ids)
    offsets = prompt_offsets(tokenizer, text, ids, None)
    decoder = incremental_decoder(tokenizer)
    pieces = [decoder.push(token_id) for token_id in ids]
    assert len(offsets) == len(ids) and offsets == sorted(offsets)
    if "".join(pieces) == text:
        assert all(text[start:].startswith(piece) for start, piece in zip(offsets, pieces, strict=True))


def test_prompt_offsets_of_a_text_that_is_normalised() -> None:
    tokenizer = backends.byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    text = "e\u0301 the fox"
    ids = tokenizer.encode(text)
    offsets = prompt_offsets(tokenizer, text, ids, True)
    names = [TokenNames(tokenizer).name(token_id) for token_id in ids]
    assert offsets == sorted(offsets) and offsets[names.index(" the")] in (2, 3)


def test_siblings_wait_for_the_log_probabilities_of_the_prompt() -> None:  # A11
    tokenizer = TOKENIZERS["byte_level"]
    params = SamplingParams(n=3, logprobs=0, prompt_logprobs=0, output_kind=RequestOutputKind.DELTA)
    cores = [EngineCoreRequest(f"{i}_r", [5, 6, 7], params.for_core()) for i in range(3)]
    processor, found = OutputProcessor(tokenizer, with_metrics=False), []
    processor.add(ProcessedRequest("r", None, [5, 6, 7], params, cores, 0.0), found.append)

    def step(index: int, token_id: int, prompt: list[int] | None = None, ends: str | None = None) -> None:
        entries = None if prompt is None else [TokenLogprobs(one, -1.0, 1) for one in prompt]
        output = EngineCoreOutput(f"{index}_r", [token_id], [TokenLogprobs(token_id, -2.0, 1)], entries, ends)
        processor.process([output])

    step(2, 10)
    step(1, 11, ends="stop")
    step(2, 12)
    assert not found
    step(0, 13, prompt=[6, 7])
    (first,) = found
    assert [next(iter(position)) for position in first.prompt_logprobs[1:]] == [6, 7]
    assert {output.index: list(output.token_ids) for output in first.outputs} == {2: [10, 12], 1: [11], 0: [13]}
    assert [output.finish_reason for output in first.outputs] == [None, "stop", None]
    step(2, 14, ends="length")
    step(0, 15, ends="length")
    assert [output.prompt_logprobs for output in found[1:]] == [None, None]
    assert found[-1].finished and not processor.num_unfinished


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_answer_is_other_than_json(value: float) -> None:  # M4
    """Such values are clipped, or end their request, before; and if not, an answer still is JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    position = {7: Logprob(value, 1, "x")}
    output = CompletionOutput(0, "x", [7], None, [position], finish_reason="length")
    formatter = LogprobsFormatter(TokenNames(None), as_ids=True, skips_special=False, has_stop_token=True)
    shown = formatter.completion(output)
    assert shown["token_logprobs"][0] in (-9999.0, float("inf"))
    choice = CompletionResponseChoice(index=0, text="x", logprobs=shown)
    chunk = CompletionChunkChoice(0, "x", shown)
    for encoded in (choice.model_dump_json(), msgspec.json.encode(chunk)):
        json.loads(encoded, parse_constant=refuse)


# On the routes.


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tiny_llama: Path) -> AsyncIterator[httpx.AsyncClient]:
    engine = AsyncLLM.from_engine_args(engine_args(tiny_llama, max_num_seqs=8))
    app = await make_app(engine)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as client:
        yield client
    engine.shutdown()


async def ask(server: httpx.AsyncClient, path: str, **body: Any) -> Any:
    answer = await server.post(path, json=body)
    assert answer.status_code == 200, answer.text
    if not body.get("stream"):
        return answer.json()
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]


@on_routes
@pytest.mark.parametrize("stream", [False, True])
async def test_bytes_of_parts_of_a_character(server: httpx.AsyncClient, stream: bool) -> None:  # A14
    body = {"messages": [{"role": "user", "content": "hi"}], "structured_outputs": {"choice": [LLAMA]}}
    body |= {"logprobs": True, "top_logprobs": 3, "max_tokens": 20, "stream": stream}
    answer = await ask(server, "/v1/chat/completions", **body)
    if stream:
        choices = [chunk["choices"][0] for chunk in answer]
        content = "".join(choice["delta"].get("content") or "" for choice in choices)
        entries = [entry for choice in choices if choice.get("logprobs") for entry in choice["logprobs"]["content"]]
    else:
        (choice,) = answer["choices"]
        content, entries = choice["message"]["content"], choice["logprobs"]["content"]
    assert content == LLAMA and data_of(entries) == LLAMA.encode()
    assert [entry["token"] for entry in entries[:4]] == [f"bytes:\\x{byte:02x}" for byte in LLAMA.encode()]
    assert entries[-1]["token"] == "<|im_end|>" and entries[-1]["bytes"] == []


@on_routes
async def test_bytes_of_a_response(server: httpx.AsyncClient) -> None:  # A14
    body = {"input": "hi", "max_output_tokens": 9, "include": ["message.output_text.logprobs"], "temperature": 0}
    (item,) = (await ask(server, "/v1/responses", **body))["output"]
    (part,) = item["content"]
    assert data_of(part["logprobs"]).decode("utf-8", "replace") == part["text"]
    events = await ask(server, "/v1/responses", **body, stream=True)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(delta["delta"] for delta in deltas) == part["text"]
    told = [entry for delta in deltas for entry in delta["logprobs"]]
    assert told == part["logprobs"][: len(told)] and data_of(told).decode("utf-8", "replace") == part["text"]


@on_routes
@pytest.mark.parametrize("prompt", ["Hello there my friend", [72, 300, 5, 301]])
async def test_offsets_where_tokens_are_named_by_id(server: httpx.AsyncClient, prompt: Any) -> None:  # A15
    body = {"prompt": prompt, "max_tokens": 4, "temperature": 0, "logprobs": 1, "echo": True}
    body |= {"ignore_eos": True, "skip_special_tokens": False}
    plain = (await ask(server, "/v1/completions", **body))["choices"][0]
    by_id = (await ask(server, "/v1/completions", **body, return_tokens_as_token_ids=True))["choices"][0]
    assert by_id["logprobs"]["text_offset"] == plain["logprobs"]["text_offset"]
    assert all(name.startswith("token_id:") for name in by_id["logprobs"]["tokens"])
    text, logprobs = plain["text"], plain["logprobs"]
    for name, start in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert name.startswith("bytes:") or text[start:].lstrip("\ufffd").startswith(name)


@on_routes
async def test_echo_of_a_prompt_that_is_cut(server: httpx.AsyncClient) -> None:
    body = {
        "prompt": "Hello there my friend",
        "truncate_prompt_tokens": 3,
        "max_tokens": 2,
        "logprobs": 0,
        "echo": True,
    }
    choice = (await ask(server, "/v1/completions", **body))["choices"][0]
    tokens = choice["logprobs"]["tokens"]
    assert len(tokens) == 5 and choice["text"].startswith("".join(tokens[:3])) and tokens[0] != "H"


@on_routes
@pytest.mark.parametrize("num_choices", [2, 8])
async def test_every_choice_has_the_prompts_log_probabilities(
    server: httpx.AsyncClient, num_choices: int
) -> None:  # A11
    for i in range(6):
        body = {"prompt": [f"Sample {i} and more words here", f"another {i}"], "max_tokens": 2, "seed": i, "echo": True}
        body |= {"logprobs": 1, "temperature": 1, "n": num_choices}
        plain = (await ask(server, "/v1/completions", **body))["choices"]
        found: dict[int, Any] = {}
        for chunk in await ask(server, "/v1/completions", **body, stream=True):
            for choice in chunk["choices"]:
                found[choice["index"]] = joined(found.get(choice["index"]), choice["logprobs"])
        assert found == {choice["index"]: choice["logprobs"] for choice in plain}
        assert not any(None in choice["logprobs"]["token_logprobs"][1:] for choice in plain)
