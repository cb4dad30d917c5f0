"""Requests that hurt servers of this kind, by class, at every door: each is the client's fault, and hurts nobody else.

docs/security.md has the classes with the faults that others had.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.server.process import ServerProcess, serve
from tests.waiting import PATIENCE, wait_until
from vllm.entrypoints.openai.protocol.chat import MAX_MESSAGES
from vllm.entrypoints.openai.reference_docs import FOREIGN_ROUTES

VOCAB_SIZE = 320
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
COMPLETIONS, CHAT, RESPONSES, MESSAGES = "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"
GENERATING: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "hello", "max_tokens": 2},
    CHAT: {"messages": HELLO, "max_tokens": 2},
    RESPONSES: {"input": "hello", "max_output_tokens": 2},
    MESSAGES: {"messages": HELLO, "max_tokens": 2},
}
DRAWING = (COMPLETIONS, CHAT, RESPONSES)
"""The doors that take all of the sampling fields."""


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[ServerProcess]:
    with serve(tiny_llama, "--max-model-len", "256", "--max-num-seqs", "4") as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_is_left_over(server: ServerProcess) -> Iterator[None]:
    """Whatever came: the engine lives, no row is held, and no fault of the server's own was logged."""
    yield
    wait_until(server.is_idle)
    assert server.get("/health").status_code == 200
    assert not [line for line in server.log if "ERROR" in line or "Traceback" in line]


def post(server: ServerProcess, path: str, **fields: Any) -> httpx.Response:
    return httpx.post(server.url + path, json={**GENERATING.get(path, {}), **fields}, timeout=PATIENCE)


def refuse(server: ServerProcess, path: str, **fields: Any) -> str:
    response = post(server, path, **fields)
    assert response.status_code == 400, (path, response.status_code, response.text[:300])
    return response.text


class TestEmptyPrompts:
    @pytest.mark.parametrize("prompt", ["", [], [[]], [""], None])
    def test_completions(self, server: ServerProcess, prompt: Any) -> None:
        refuse(server, COMPLETIONS, prompt=prompt)

    def test_others(self, server: ServerProcess) -> None:
        for path, field in ((CHAT, "messages"), (RESPONSES, "input"), (MESSAGES, "messages")):
            refuse(server, path, **{field: []})


class TestUnboundedCounts:
    @pytest.mark.parametrize("count", [10**9, 2**63, -1, 0])
    def test_outputs(self, server: ServerProcess, count: int) -> None:
        process = server.engine
        before = process.memory_info().rss
        for path in DRAWING:
            refuse(server, path, n=count, temperature=1)
        refuse(server, COMPLETIONS, best_of=max(count, 2))
        assert process.memory_info().rss < before + (64 << 20)

    def test_prompts_and_messages(self, server: ServerProcess) -> None:
        refuse(server, COMPLETIONS, prompt=["a"] * 2000)
        many = HELLO * (MAX_MESSAGES + 1)
        for path, field in (
            (CHAT, "messages"),
            (RESPONSES, "input"),
            (MESSAGES, "messages"),
            ("/tokenize", "messages"),
        ):
            assert field in refuse(server, path, **{field: many})

    @pytest.mark.parametrize("path", DRAWING)
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("bad_words", ["word"] * 1001),
            ("logit_bias", {str(i): 1 for i in range(2000)}),
            ("stop_token_ids", list(range(129))),
            ("stop", ["x" * i for i in range(1, 200)]),
            ("stop", ["x" * 10_000]),
            ("allowed_token_ids", [VOCAB_SIZE]),
            ("allowed_token_ids", []),
            ("logit_bias", {"-1": 1}),
            ("stop_token_ids", [2**40]),
            ("cache_salt", "x" * 5000),
            ("cache_salt", "\n"),
            ("cache_salt", ""),
        ],
    )
    def test_lists(self, server: ServerProcess, path: str, field: str, value: Any) -> None:
        assert field in refuse(server, path, **{field: value})

    @pytest.mark.parametrize(
        ("path", "fields"),
        [
            (COMPLETIONS, {"logprobs": -1}),
            (COMPLETIONS, {"logprobs": VOCAB_SIZE - 1}),
            (COMPLETIONS, {"prompt_logprobs": -1}),
            (CHAT, {"prompt_logprobs": VOCAB_SIZE - 1}),
            (CHAT, {"logprobs": True, "top_logprobs": -1}),
            (CHAT, {"logprobs": True, "top_logprobs": 200}),
            (RESPONSES, {"include": ["message.output_text.logprobs"], "top_logprobs": 200}),
            (COMPLETIONS, {"logprob_token_ids": list(range(129))}),
            (CHAT, {"logprob_token_ids": list(range(129))}),
        ],
    )
    def test_log_probabilities(self, server: ServerProcess, path: str, fields: dict[str, Any]) -> None:
        assert "logprob" in refuse(server, path, **fields)

    def test_parameters_of_many_outputs(self, server: ServerProcess) -> None:
        """Each output has its own, so that a short body could ask for gigabytes."""
        bias = {str(i): 1 for i in range(300)}
        assert "logit_bias" in refuse(server, COMPLETIONS, n=16_000, temperature=1, logit_bias=bias)
        assert "logit_bias" in refuse(server, CHAT, n=16_000, temperature=1, logit_bias=bias)
        ids = list(range(256)) * 3
        assert "allowed_token_ids" in refuse(server, COMPLETIONS, prompt=["a"] * 1000, allowed_token_ids=ids)

    def test_prompt_log_probabilities_of_many_prompts(self, server: ServerProcess) -> None:
        prompts = [[7] * 200] * 1000
        answer = refuse(server, COMPLETIONS, prompt=prompts, prompt_logprobs=4)
        assert "VLLM_MAX_PROMPT_LOGPROBS" in answer and "1000000" in answer
        echoed = refuse(server, COMPLETIONS, prompt=prompts, echo=True, logprobs=4)
        assert "VLLM_MAX_PROMPT_LOGPROBS" in echoed

    def test_long_prompts(self, server: ServerProcess) -> None:
        long = "a " * 100_000
        message = [{"role": "user", "content": long}]
        for path, fields in ((COMPLETIONS, {"prompt": long}), (CHAT, {"messages": message}),
                             (RESPONSES, {"input": long}), (MESSAGES, {"messages": message})):  # fmt: skip
            assert "256" in refuse(server, path, **fields)


class TestContradictions:
    def test_min_and_max_tokens(self, server: ServerProcess) -> None:
        for path in DRAWING:
            for fields in ({"min_tokens": 2000, "max_tokens": None}, {"min_tokens": 9, "max_tokens": 3}):
                renamed = {"max_output_tokens" if path == RESPONSES and name == "max_tokens" else name: value
                           for name, value in fields.items()}  # fmt: skip
                assert "min_tokens" in refuse(server, path, **renamed)

    @pytest.mark.parametrize("path", DRAWING)
    def test_every_penalty_with_every_constraint(self, server: ServerProcess, path: str) -> None:
        """Together they may leave no token; whatever comes of it, it is no fault of the server."""
        for constraint in ({"regex": "a"}, {"choice": ["a"]}, {"json_object": True}):
            for fields in ({"presence_penalty": 2}, {"repetition_penalty": 2}, {"min_tokens": 2}, {"min_p": 1},
                           {"logit_bias": {"2": -100}}, {"allowed_token_ids": [5]}, {"bad_words": ["a"]}):  # fmt: skip
                response = post(server, path, structured_outputs=constraint, temperature=1, **fields)
                assert response.status_code in (200, 400), response.text


class TestTemplates:
    def test_requests_bring_none(self, server: ServerProcess) -> None:
        for path in (CHAT, "/tokenize"):
            refuse(server, path, messages=HELLO, chat_template="{{ messages }}")

    @pytest.mark.parametrize("path", [CHAT, "/tokenize", RESPONSES, MESSAGES, "/v1/messages/count_tokens"])
    @pytest.mark.parametrize("name", ["tokenize", "chat_template", "messages", "tools", "return_tensors", "self"])
    def test_reserved_names(self, server: ServerProcess, path: str, name: str) -> None:
        given = {"input": "a"} if path == RESPONSES else {"messages": HELLO}
        assert name in refuse(server, path, **given, chat_template_kwargs={name: True})


class TestMedia:
    """Nothing that a request names is fetched or read."""

    @pytest.mark.parametrize(
        "url",
        ["http://127.0.0.1:{port}/", "http://ok\\@127.0.0.1:{port}/", "file:///etc/passwd", "data:image/png;base64,AA"],
    )
    def test_nothing_is_fetched(self, server: ServerProcess, url: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as trap:
            trap.settimeout(0.05)
            url = url.replace("{port}", str(trap.getsockname()[1]))
            for kind in ("image_url", "input_image", "video_url", "input_audio", "file", "image", "document"):
                part = {"type": kind, kind: {"url": url}, "image_url": url, "source": {"type": "url", "url": url}}
                message = [{"role": "user", "content": [part]}]
                for path, field in ((CHAT, "messages"), (RESPONSES, "input"), (MESSAGES, "messages")):
                    assert "not supported" in refuse(server, path, **{field: message})
            with pytest.raises(TimeoutError):
                trap.accept()

    def test_embeddings_of_prompts(self, server: ServerProcess) -> None:
        for path in DRAWING:
            assert "prompt_embeds" in refuse(server, path, prompt_embeds="AAAA")


class TestTokensFromClients:
    @pytest.mark.parametrize("prompt", [[VOCAB_SIZE], [-1], [2**63], [1.5], [True], [[1], [VOCAB_SIZE]], ["a", 1]])
    def test_ids_are_of_the_vocabulary(self, server: ServerProcess, prompt: Any) -> None:
        refuse(server, COMPLETIONS, prompt=prompt)
        if isinstance(prompt[0], int):
            refuse(server, "/detokenize", tokens=prompt)


class TestIdsOfRequests:
    async def test_equal_ids_share_nothing(self, server: ServerProcess) -> None:
        """Twenty requests of one id, at once: each has its own answer."""
        async with httpx.AsyncClient(base_url=server.url, headers={"X-Request-Id": "same"}, timeout=PATIENCE) as client:

            async def ask(i: int, **more: Any) -> str:
                body = {"prompt": f"Prompt {i}", "max_tokens": 20, "temperature": 0, "request_id": "same", **more}
                return str((await client.post(COMPLETIONS, json=body)).json()["choices"][0]["text"])

            alone = [await ask(i) for i in range(20)]
            assert await asyncio.gather(*(ask(i) for i in range(20))) == alone
            assert len(set(alone)) > 10

    @pytest.mark.parametrize("name", ["a\nb", "x" * 5000, "\u2603", ""])
    def test_odd_ids(self, server: ServerProcess, name: str) -> None:
        refuse(server, COMPLETIONS, request_id=name)


class TestGrammars:
    def test_bad_after_good_and_good_after_bad(self, server: ServerProcess) -> None:
        good, bad = {"regex": "[ab]{2}"}, ({"regex": "["}, {"choice": []}, {"json": "{"}, {"grammar": "start: nothing"})
        for path in DRAWING:
            for constraint in bad:
                assert post(server, path, structured_outputs=good).status_code == 200
                refuse(server, path, structured_outputs=constraint)
        assert post(server, CHAT, structured_outputs=good).status_code == 200

    def test_many_of_them_leave_memory_flat(self, server: ServerProcess) -> None:
        def memory() -> int:
            front = psutil.Process(server.process.pid)
            return sum(process.memory_info().rss for process in (front, *front.children(recursive=True)))

        def ask(numbers: range) -> None:
            for i in numbers:
                schema = {"enum": [f"{i}{j}" for j in range(200)]}
                assert post(server, COMPLETIONS, structured_outputs={"json": schema}).status_code == 200

        ask(range(300))  # more than the caches hold
        before = memory()
        ask(range(300, 600))
        assert memory() < before + (16 << 20)

    def test_tools_are_schemas_too(self, server: ServerProcess) -> None:
        for parameters in ({"type": "nothing"}, {"properties": {"a": {"pattern": "["}}}, {"$ref": "#/nowhere"}):
            tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
            refuse(server, CHAT, tools=[tool], tool_choice="required")
            refuse(server, RESPONSES, tools=[{"type": "function", **tool["function"]}], tool_choice="required")  # type: ignore[dict-item]
            tool = {"name": "f", "input_schema": parameters}
            refuse(server, MESSAGES, tools=[tool], tool_choice={"type": "any"})

    @pytest.mark.parametrize(
        "schema",
        [
            {"$ref": "#/$defs/0", "$defs": {str(i): {"oneOf": [{"$ref": f"#/$defs/{i + 1}"}] * 4} for i in range(40)}},
            {"type": "array", "minItems": 10**9},
            {"type": "string", "pattern": "(a{1,500}){1,500}"},
            {"anyOf": [{"const": "x" * 1000}] * 400},
        ],
    )
    def test_those_that_explode(self, server: ServerProcess, schema: dict[str, Any]) -> None:
        """Refused, or harmless: either way an answer, and the next request has one, too."""
        for path in DRAWING:
            assert post(server, path, structured_outputs={"json": schema}).status_code in (200, 400)
            assert post(server, path).status_code == 200


class TestBodies:
    @pytest.mark.parametrize("path", [*GENERATING, "/tokenize", "/detokenize", "/v1/messages/count_tokens"])
    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[]", b"null", b'"a"', b'{"a": NaN}', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000]
    )
    def test_no_json(self, server: ServerProcess, path: str, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        assert httpx.post(server.url + path, content=body, headers=headers, timeout=PATIENCE).status_code == 400

    @pytest.mark.parametrize("path", [*GENERATING, "/tokenize", "/detokenize", "/v1/messages/count_tokens"])
    def test_other_types(self, server: ServerProcess, path: str) -> None:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/x-pickle"):
            content = json.dumps(GENERATING.get(path, {}))
            response = httpx.post(server.url + path, content=content, headers={"Content-Type": kind}, timeout=PATIENCE)
            assert response.status_code == 400


class TestProcesses:
    def test_only_the_port_listens(self, server: ServerProcess) -> None:
        """No other TCP socket, in any process of the server, and that one is of this machine alone."""
        parent = psutil.Process(server.process.pid)
        processes = [parent, *parent.children(recursive=True)]
        listening = {c.laddr for p in processes for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        assert {(address.ip, address.port) for address in listening} == {
            ("127.0.0.1", int(server.url.rpartition(":")[2]))
        }

    @pytest.mark.parametrize("path", ["/reset_prefix_cache", *" ".join(FOREIGN_ROUTES).split()])
    def test_doors_that_are_not_there(self, server: ServerProcess, path: str) -> None:
        assert httpx.post(server.url + path, json={}, timeout=PATIENCE).status_code == 404
