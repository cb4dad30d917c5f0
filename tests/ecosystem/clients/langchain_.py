"""LangChain's models of OpenAI and Anthropic, and its agent over them."""

from typing import Any, Literal

import pydantic
from asked import KEY, MODEL, SAY, TURNS, URL, get_weather, run, tools
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI, OpenAI

common: Any = {"model": MODEL, "api_key": KEY, "max_retries": 0}
MODELS: dict[str, Any] = {
    "openai": ChatOpenAI(base_url=f"{URL}/v1", **common),
    "responses": ChatOpenAI(base_url=f"{URL}/v1", use_responses_api=True, **common),
    "anthropic": ChatAnthropic(base_url=URL, max_tokens=512, **common),
}


class Weather(pydantic.BaseModel):
    """The weather of a city."""

    city: Literal["Oslo", "Rome"]


def _answer(kind: str) -> str:
    return MODELS[kind].invoke(SAY).text


def _stream(kind: str) -> list[str]:
    return [chunk.text for chunk in MODELS[kind].stream(SAY)]


def _tools(kind: str, *, streamed: bool = False) -> Any:
    agent = create_agent(MODELS[kind], tools=[get_weather])
    messages: list[Any] = []
    texts = []
    for turn in TURNS:
        state: Any = {"messages": [*messages, {"role": "user", "content": turn}]}
        if streamed:
            (*_, last) = agent.stream(state, stream_mode="values")
            messages = last["messages"]
        else:
            messages = agent.invoke(state)["messages"]
        texts.append(messages[-1].text)
    return tools(*texts)


def _object(kind: str, method: str) -> Any:
    return MODELS[kind].with_structured_output(Weather, method=method).invoke("?").model_dump()


async def batch() -> list[Any]:
    return [answer.text for answer in await MODELS["openai"].abatch([SAY, SAY])]


def logprobs() -> bool:
    content = MODELS["openai"].bind(logprobs=True, top_logprobs=2).invoke(SAY).response_metadata["logprobs"]["content"]
    return all(len(token["top_logprobs"]) == 2 for token in content)


def completion() -> bool:
    model = OpenAI(base_url=f"{URL}/v1", **common, temperature=0, max_tokens=8)
    return model.invoke("once") == model.invoke("once") != ""


run(
    "langchain-openai",
    answer=lambda: _answer("openai"),
    stream=lambda: _stream("openai"),
    tools=lambda: _tools("openai"),
    tools_streamed=lambda: _tools("openai", streamed=True),
    object=lambda: _object("openai", "json_schema"),
    object_by_tool=lambda: _object("openai", "function_calling"),
    batch=batch,
    logprobs=logprobs,
    completion=completion,
    answer_of_responses=lambda: _answer("responses"),
    stream_of_responses=lambda: _stream("responses"),
    tools_of_responses=lambda: _tools("responses"),
    answer_of_anthropic=lambda: _answer("anthropic"),
    stream_of_anthropic=lambda: _stream("anthropic"),
    tools_of_anthropic=lambda: _tools("anthropic"),
    object_of_anthropic=lambda: _object("anthropic", "function_calling"),
)
