"""OpenAI's Agents SDK, on responses and on chats."""

from typing import Any, Literal

import agents
import openai
import pydantic
from asked import KEY, MODEL, SAY, TURNS, URL, get_weather, run, tools

agents.set_tracing_disabled(True)
client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
MODELS: dict[str, Any] = {
    "responses": agents.OpenAIResponsesModel(MODEL, client),
    "chats": agents.OpenAIChatCompletionsModel(MODEL, client),
}
HINTS: dict[str, Any] = {
    "responses": agents.ModelSettings(
        truncation="auto", verbosity="low", response_include=["reasoning.encrypted_content"], store=False
    ),
    "chats": agents.ModelSettings(verbosity="low", store=True),
}


class Weather(pydantic.BaseModel):
    city: Literal["Oslo", "Rome"]


def _agent(kind: str, **options: Any) -> Any:
    return agents.Agent(name="one", model=MODELS[kind], model_settings=HINTS[kind], **options)


async def _answer(kind: str) -> str:
    return (await agents.Runner.run(_agent(kind), SAY)).final_output


async def _stream(kind: str) -> list[str]:
    result = agents.Runner.run_streamed(_agent(kind), SAY)
    return [
        event.data.delta
        async for event in result.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]


async def _tools(kind: str) -> Any:
    agent = _agent(kind, tools=[agents.function_tool(get_weather)])
    history: list[Any] = []
    texts = []
    for turn in TURNS:
        result = await agents.Runner.run(agent, [*history, {"role": "user", "content": turn}])
        history = result.to_input_list()
        texts.append(result.final_output)
    return tools(*texts)


async def _streamed_tools(kind: str) -> Any:
    agent = _agent(kind, tools=[agents.function_tool(get_weather)])
    history: list[Any] = []
    texts = []
    for turn in TURNS:
        result = agents.Runner.run_streamed(agent, [*history, {"role": "user", "content": turn}])
        async for _ in result.stream_events():
            pass
        history = result.to_input_list()
        texts.append(result.final_output)
    return tools(*texts)


async def _object(kind: str) -> Any:
    return (await agents.Runner.run(_agent(kind, output_type=Weather), "?")).final_output.model_dump()


run(
    "openai-agents",
    answer=lambda: _answer("responses"),
    stream=lambda: _stream("responses"),
    tools=lambda: _tools("responses"),
    tools_streamed=lambda: _streamed_tools("responses"),
    object=lambda: _object("responses"),
    answer_of_chats=lambda: _answer("chats"),
    stream_of_chats=lambda: _stream("chats"),
    tools_of_chats=lambda: _tools("chats"),
    tools_streamed_of_chats=lambda: _streamed_tools("chats"),
    object_of_chats=lambda: _object("chats"),
)
