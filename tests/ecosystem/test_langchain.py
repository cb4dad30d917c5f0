"""langchain-openai's chat model: plain, streamed, batched, with tools, with a form."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
import pytest

from tests.server.process import ServerProcess

langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")


class Weather(pydantic.BaseModel):
    """The weather of a city."""

    city: Literal["Oslo", "Rome"]
    degrees: int = pydantic.Field(ge=0, le=40)


@pytest.fixture
def chat(server: ServerProcess) -> Any:
    return langchain.ChatOpenAI(
        model="test-model", base_url=f"{server.url}/v1", api_key="none", temperature=0, max_retries=0, max_tokens=24
    )


def test_streamed_equals_plain(chat: Any) -> None:
    plain = chat.invoke("hello")
    assert plain.content and plain.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.content for chunk in chat.stream("hello")) == plain.content


async def test_async_and_batch(chat: Any) -> None:
    answers = await chat.abatch(["a", "b", "a"])
    assert answers[0].content == answers[2].content == (await chat.ainvoke("a")).content


def test_forced_tool(chat: Any) -> None:
    answer = chat.bind_tools([Weather], tool_choice="Weather").bind(max_tokens=200).invoke("the weather in Rome?")
    (call,) = answer.tool_calls
    assert call["name"] == "Weather" and Weather(**call["args"])


def test_streamed_tool_calls_add_up(chat: Any) -> None:
    bound = chat.bind_tools([Weather], tool_choice="any").bind(max_tokens=200)
    chunks = list(bound.stream("the weather in Rome?"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert [call["args"] for call in whole.tool_calls] == [
        call["args"] for call in bound.invoke("the weather in Rome?").tool_calls
    ]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat: Any, method: str) -> None:
    chat.max_tokens = 200
    assert isinstance(chat.with_structured_output(Weather, method=method).invoke("weather in Oslo"), Weather)


def test_completions_and_log_probabilities(server: ServerProcess, chat: Any) -> None:
    model = langchain.OpenAI(
        model="test-model", base_url=f"{server.url}/v1", api_key="none", temperature=0, max_tokens=8
    )
    assert model.invoke("once") == model.invoke("once") != ""
    content = chat.bind(logprobs=True, top_logprobs=2).invoke("hello").response_metadata["logprobs"]["content"]
    assert content and all(len(token["top_logprobs"]) == 2 for token in content)
