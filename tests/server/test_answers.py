"""What the answers look like, plain and streamed, seen through the official client over the fake engine."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import httpx
import openai
import prometheus_client.openmetrics.parser
import prometheus_client.parser
import pytest
from prometheus_client import Gauge

from tests.server.fake_engine import MAX_MODEL_LEN, FakeEngine

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


def following(prompt: str, num_tokens: int) -> str:
    """What the fake engine says after a prompt."""
    return bytes(97 + (prompt.encode()[-1] + step) % 26 for step in range(num_tokens)).decode()


async def test_completion(api: openai.AsyncOpenAI) -> None:
    answer = await api.completions.create(model="fake", prompt="abc", max_tokens=5)
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion" and answer.model == "fake"
    (choice,) = answer.choices
    assert choice.text == following("abc", 5)
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (4, 5, 9)


async def test_choices_of_several_prompts(api: openai.AsyncOpenAI) -> None:
    prompts = ["a", "b", "c"]
    answer = await api.completions.create(model="fake", prompt=prompts, max_tokens=3, n=2)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [choice.text for choice in answer.choices] == [following(prompt, 3) for prompt in prompts for _ in range(2)]
    assert answer.usage is not None and answer.usage.completion_tokens == 18 and answer.usage.prompt_tokens == 6


@pytest.mark.parametrize("prompt", [[97, 98], [[97], [98, 99]]])
async def test_token_prompts(api: openai.AsyncOpenAI, engine: FakeEngine, prompt: Any) -> None:
    await api.completions.create(model="fake", prompt=prompt, max_tokens=2)
    given = [inputs["prompt_token_ids"] for _, inputs, _ in engine.seen]
    assert given == (prompt if isinstance(prompt[0], list) else [prompt])


async def test_sampling_fields_reach_the_engine(api: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    extra = {
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "stop_token_ids": [5],
        "ignore_eos": True,
        "min_tokens": 2,
        "allowed_token_ids": [1, 2],
        "bad_words": ["no"],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "prompt_logprobs": 1,
        "cache_salt": "salt",
    }
    await api.completions.create(
        model="fake",
        prompt="a",
        max_tokens=4,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        logit_bias={"5": 200},
        stop=["x", "y"],
        logprobs=2,
        extra_body=extra,
    )
    _, prompt, params = engine.seen[0]
    assert prompt["cache_salt"] == "salt"
    for name, value in {**extra, "temperature": 0.5, "top_p": 0.9, "seed": 3, "max_tokens": 4, "logprobs": 2}.items():
        if name != "cache_salt":
            assert getattr(params, name) == value, name
    assert params.logit_bias == {5: 100.0} and params.stop == ["x", "y"]
    assert (params.presence_penalty, params.frequency_penalty) == (0.25, -0.5)


async def test_defaults_of_the_server(make_client: Callable[..., Any], engine: FakeEngine) -> None:
    engine.default_sampling_params.update(temperature=0.6, top_k=20)
    http = await make_client()
    await http.post("/v1/completions", json={"prompt": "a"})
    await http.post("/v1/completions", json={"prompt": "a", "temperature": 0.1, "top_k": 0})
    assert [(params.temperature, params.top_k) for *_, params in engine.seen] == [(0.6, 20), (0.1, 0)]


async def test_echo(api: openai.AsyncOpenAI) -> None:
    answer = await api.completions.create(model="fake", prompt="abc", max_tokens=2, echo=True)
    assert answer.choices[0].text == "abc" + following("abc", 2)
    answer = await api.completions.create(model="fake", prompt="abc", max_tokens=0, echo=True)
    assert answer.choices[0].text == "abc"
    assert answer.usage is not None and answer.usage.completion_tokens == 0
    answer = await api.completions.create(model="fake", prompt=[97, 98], max_tokens=1, echo=True)
    assert answer.choices[0].text == "ab" + following("b", 1)


async def test_completion_logprobs(api: openai.AsyncOpenAI) -> None:
    answer = await api.completions.create(model="fake", prompt="abc", max_tokens=2, logprobs=2, echo=True)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and logprobs.token_logprobs is not None
    assert logprobs.token_logprobs == [None, -9.0, -9.0, -9.0, -9.0, -9.0]
    assert logprobs.tokens[1:] == list("abc" + following("abc", 2))
    assert logprobs.top_logprobs is not None and logprobs.top_logprobs[0] is None
    assert all(len(top) == 3 and min(top.values()) == -9999.0 for top in logprobs.top_logprobs[1:])
    assert logprobs.text_offset == [0, 0, 1, 2, 3, 4]


async def test_chat(api: openai.AsyncOpenAI) -> None:
    answer = await api.chat.completions.create(model="fake", messages=HELLO, max_completion_tokens=4)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    message = answer.choices[0].message
    assert (message.role, message.content) == ("assistant", following("user: hello\nassistant:", 4))
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 4


async def test_chat_uses_what_the_context_has_left(api: openai.AsyncOpenAI) -> None:
    answer = await api.chat.completions.create(model="fake", messages=HELLO)
    assert answer.usage is not None and answer.usage.total_tokens == MAX_MODEL_LEN


async def test_chat_logprobs(api: openai.AsyncOpenAI) -> None:
    answer = await api.chat.completions.create(
        model="fake", messages=HELLO, max_tokens=2, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None and len(content) == 2
    assert content[0].logprob == -9.0 and content[0].bytes == list(content[0].token.encode())
    assert [top.logprob for top in content[0].top_logprobs] == [-1.0, -9.0]
    answer = await api.chat.completions.create(model="fake", messages=HELLO, max_tokens=2, logprobs=True)
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[0].top_logprobs == []


async def test_chat_content_parts_and_continuation(api: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    parts: Any = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages: Any = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Well"}]
    answer = await api.chat.completions.create(
        model="fake",
        messages=messages,
        max_tokens=1,
        extra_body={"add_generation_prompt": False, "continue_final_message": True, "echo": True},
    )
    assert engine.seen[0][1]["prompt"] == "user: one\ntwo\nassistant: Well"
    assert answer.choices[0].message.content == "Well" + following("Well", 1)


async def test_the_operators_bound_of_outputs(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    """`max_new_tokens` of --override-generation-config, as vLLM has it: for every request, whatever it asks for."""
    engine.model_config.max_output_tokens = 3
    for asked, given in ((None, 3), (2, 2), (50, 3)):
        for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": HELLO})):
            usage = (await http.post(path, json={**body, "max_tokens": asked})).json()["usage"]
            assert usage["completion_tokens"] == given


async def test_what_null_asks_for(http: httpx.AsyncClient) -> None:
    """Of fields that vLLM and the clients send as null."""
    path, body = "/v1/completions", {"prompt": "hello", "max_tokens": None, "echo": None, "model": None}
    assert (await http.post(path, json=body)).json()["usage"]["completion_tokens"] == 16
    options = {"include_usage": True, "continuous_usage_stats": None}
    text = (await http.post(path, json={**body, "stream": True, "stream_options": options})).text
    assert text.count('"usage":') == 1


async def test_token_ids_and_prompt_text(http: httpx.AsyncClient) -> None:
    body = {"messages": HELLO, "max_tokens": 2, "return_token_ids": True, "return_prompt_text": True}
    answer = (await http.post("/v1/chat/completions", json=body)).json()
    assert answer["prompt_text"] == "user: hello\nassistant:"
    assert bytes(answer["prompt_token_ids"]).decode() == answer["prompt_text"]
    chunks = (await http.post("/v1/chat/completions", json={**body, "stream": True})).text.split("\n\n")
    told = [json.loads(chunk.removeprefix("data: ")).get("prompt_text") for chunk in chunks if "{" in chunk]
    assert told[0] == answer["prompt_text"] and not any(told[1:])
    assert bytes(answer["choices"][0]["token_ids"]).decode() == answer["choices"][0]["message"]["content"]
    body = {
        "prompt": "ab",
        "max_tokens": 2,
        "return_token_ids": True,
        "logprobs": 0,
        "return_tokens_as_token_ids": True,
    }
    choice = (await http.post("/v1/completions", json=body)).json()["choices"][0]
    assert choice["prompt_token_ids"] == [1, 97, 98]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in choice["token_ids"]]


async def test_prompt_logprobs(http: httpx.AsyncClient) -> None:
    answer = (await http.post("/v1/completions", json={"prompt": "ab", "prompt_logprobs": 1})).json()
    first, *others = answer["choices"][0]["prompt_logprobs"]
    assert first is None and len(others) == 2
    assert others[0]["97"] == {"logprob": -9.0, "rank": 50, "decoded_token": "a"}


async def test_truncate_prompt_tokens(api: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    for extra in ({}, {"truncation_side": "right"}):
        await api.completions.create(
            model="fake",
            prompt="abcdef",
            extra_body={"truncate_prompt_tokens": 3, "add_special_tokens": False, **extra},
        )
    await api.completions.create(
        model="fake", prompt="a" * 500, max_tokens=5, extra_body={"truncate_prompt_tokens": -1}
    )
    given = [inputs["prompt_token_ids"] for _, inputs, _ in engine.seen]
    assert given[0] == list(b"def") and given[1] == list(b"abc") and len(given[2]) == MAX_MODEL_LEN - 5


async def test_streamed_completion(api: openai.AsyncOpenAI) -> None:
    texts: dict[int, str] = defaultdict(str)
    finished: dict[int, str] = {}
    usage = None
    stream = await api.completions.create(
        model="fake", prompt=["a", "b"], n=2, max_tokens=4, stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                finished[choice.index] = choice.finish_reason
    assert texts == {0: following("a", 4), 1: following("a", 4), 2: following("b", 4), 3: following("b", 4)}
    assert finished == dict.fromkeys(range(4), "length")
    assert usage is not None and (usage.prompt_tokens, usage.completion_tokens) == (4, 16)


async def test_streamed_echo_and_logprobs_equal_the_plain_ones(api: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "prompt": "abc", "max_tokens": 3, "echo": True, "logprobs": 1}
    plain = (await api.completions.create(**asked)).choices[0]
    text = ""
    joined: dict[str, list[Any]] = defaultdict(list)
    async for chunk in await api.completions.create(**asked, stream=True):
        text += chunk.choices[0].text
        assert chunk.choices[0].logprobs is not None
        for name, values in chunk.choices[0].logprobs.model_dump().items():
            joined[name] += values
    assert plain.logprobs is not None
    assert text == plain.text and joined == plain.logprobs.model_dump()


async def test_streamed_echo_of_the_prompt_alone(api: openai.AsyncOpenAI) -> None:
    stream = await api.completions.create(model="fake", prompt="abc", max_tokens=0, echo=True, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "abc"


async def test_streamed_chat(api: openai.AsyncOpenAI) -> None:
    stream = await api.chat.completions.create(
        model="fake",
        messages=HELLO,
        n=2,
        max_tokens=3,
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},  # type: ignore[typeddict-unknown-key]
    )
    chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is not None for chunk in chunks)
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 6
    for index in range(2):
        choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert choices[0].delta.role == "assistant" and all(choice.delta.role is None for choice in choices[1:])
        assert "".join(choice.delta.content or "" for choice in choices) == following(":", 3)
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["length"]


async def test_form_of_the_events(http: httpx.AsyncClient) -> None:
    body = {"prompt": "a", "max_tokens": 2, "stream": True}
    response = await http.post("/v1/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""] and all(line.startswith("data: {") for line in lines[:-2])
    assert "usage" not in response.text


async def test_models(api: openai.AsyncOpenAI) -> None:
    cards = [card async for card in await api.models.list()]
    assert [card.id for card in cards] == ["fake", "alias", "poet"]
    assert cards[0].owned_by == "vllm" and cards[0].max_model_len == MAX_MODEL_LEN  # type: ignore[attr-defined]
    assert (await api.models.retrieve("alias")).root == "fake/model"  # type: ignore[attr-defined]
    adapter = await api.models.retrieve("poet")
    assert (adapter.root, adapter.parent) == ("/adapters/poet", "fake")  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        await api.models.retrieve("other")


async def test_an_adapter_is_asked_for_by_its_name(api: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    for model in ("poet", "alias"):
        answer = await api.completions.create(model=model, prompt="a", max_tokens=2)
        assert answer.model == ("poet" if model == "poet" else "fake")
    stream = await api.chat.completions.create(
        model="poet", messages=[{"role": "user", "content": "a"}], max_tokens=1, stream=True
    )
    assert {chunk.model async for chunk in stream} == {"poet"}
    assert engine.adapters_asked == ["poet", None, "poet"]


async def test_tokenize(http: httpx.AsyncClient) -> None:
    answer = (await http.post("/tokenize", json={"prompt": "ab", "return_token_strs": True})).json()
    expected = {
        "count": 3,
        "max_model_len": MAX_MODEL_LEN,
        "tokens": [1, 97, 98],
        "token_strs": ["<1>", "<97>", "<98>"],
    }
    assert answer == expected
    assert (await http.post("/tokenize", json={"prompt": "ab", "add_special_tokens": False})).json()["count"] == 2
    chat = (await http.post("/tokenize", json={"messages": HELLO})).json()
    assert bytes(chat["tokens"]).decode() == "user: hello\nassistant:"
    assert (await http.post("/detokenize", json={"tokens": chat["tokens"]})).json() == {
        "prompt": "user: hello\nassistant:"
    }
    for tokens in ([256], [-1], ["a"], [1.5], [10**30]):
        assert (await http.post("/detokenize", json={"tokens": tokens})).status_code == 400
    assert (await http.post("/tokenize", json={})).status_code == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "ab", "max_tokens": 3}),
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 3}),
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 3, "stream": True}),
    ],
)
async def test_invocations_are_chats_or_completions(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    own, invoked = [await http.post(where, json=body) for where in (path, "/invocations")]
    assert invoked.status_code == 200 and invoked.headers["content-type"] == own.headers["content-type"]
    volatile = re.compile(r'"(id|created)":\s?("[^"]*"|\d+)')
    assert volatile.sub("", invoked.text) == volatile.sub("", own.text)


async def test_invocations_that_are_neither(http: httpx.AsyncClient) -> None:
    for body, param in (
        ({}, "prompt"),
        ({"messages": 1}, "messages"),
        ({"prompt": "a", "max_tokens": "x"}, "max_tokens"),
    ):
        response = await http.post("/invocations", json=body)
        assert response.status_code == 400 and response.json()["error"]["param"] == param


async def test_small_routes(http: httpx.AsyncClient) -> None:
    from vllm.version import __version__

    assert (await http.get("/health")).status_code == 200
    assert (await http.get("/ping")).status_code == (await http.post("/ping")).status_code == 200
    assert (await http.get("/version")).json() == {"version": __version__}
    assert (await http.get("/load")).json() == {"server_load": 0}
    metrics = (await http.get("/metrics")).text
    assert 'http_requests_total{handler="/version",method="GET",status="2xx"}' in metrics


async def test_request_ids(make_client: Callable[..., Any], engine: FakeEngine) -> None:
    http = await make_client("--enable-request-id-headers")
    for _ in range(2):
        response = await http.post("/v1/completions", json={"prompt": "a"}, headers={"X-Request-Id": "mine"})
        assert response.json()["id"] == "cmpl-mine" and response.headers["X-Request-Id"] == "mine"
    assert len({request_id for request_id, *_ in engine.seen}) == 2
    response = await http.post("/v1/completions", json={"prompt": "a", "request_id": "body"})
    assert response.json()["id"] == "cmpl-body" and response.headers["X-Request-Id"] == "body"
    response = await http.post("/v1/completions", json={"prompt": "a"}, headers={"X-Request-Id": "a b\tc"})
    assert " " not in response.json()["id"]


async def test_options_about_answers(make_client: Callable[..., Any]) -> None:
    http = await make_client(
        "--enable-force-include-usage",
        "--enable-prompt-tokens-details",
        "--response-role",
        "bot",
        "--return-tokens-as-token-ids",
    )
    stream = (await http.post("/v1/completions", json={"prompt": "a", "stream": True, "max_tokens": 1})).text
    assert '"cached_tokens":2' in stream and '"choices":[]' in stream
    chat = (await http.post("/v1/chat/completions", json={"messages": HELLO, "logprobs": True, "max_tokens": 1})).json()
    assert chat["choices"][0]["message"]["role"] == "bot"
    assert chat["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert chat["choices"][0]["logprobs"]["content"][0]["token"].startswith("token_id:")


PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/plain", "application/openmetrics-text", PROMETHEUS_2, PROMETHEUS_3]
)
async def test_metrics_have_the_same_names_in_every_format(
    http: httpx.AsyncClient, engine: FakeEngine, accept: str
) -> None:  # E41
    Gauge("vllm:num_requests_running", "Running.", registry=engine.metrics.registry).set(3)
    answer = await http.get("/metrics", headers={"Accept": accept})
    media_type, *parameters = answer.headers["content-type"].split("; ")
    is_open = accept == PROMETHEUS_3
    assert media_type == ("application/openmetrics-text" if is_open else "text/plain")
    assert ("version=1.0.0" if is_open else "version=0.0.4") in parameters
    families = {family.name: family for family in parser_of(media_type)(answer.text)}
    assert families["vllm:num_requests_running"].type == "gauge"
    assert [sample.value for sample in families["vllm:num_requests_running"].samples] == [3]


def parser_of(media_type: str) -> Callable[[str], Any]:
    parsers: dict[str, Callable[[str], Any]] = {"text/plain": prometheus_client.parser.text_string_to_metric_families}
    return parsers.get(media_type, prometheus_client.openmetrics.parser.text_string_to_metric_families)
