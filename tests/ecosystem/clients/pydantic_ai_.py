"""pydantic-ai's agent on chats, responses and messages."""

from typing import Any, Literal

import anthropic
import pydantic
from asked import KEY, MODEL, SAY, TURNS, URL, get_weather, run, tools
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

openai_ = OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY)
MODELS: dict[str, Any] = {
    "chats": OpenAIChatModel(MODEL, provider=openai_),
    "responses": OpenAIResponsesModel(MODEL, provider=openai_),
    "anthropic": AnthropicModel(
        MODEL,
        provider=AnthropicProvider(anthropic_client=anthropic.AsyncAnthropic(base_url=URL, api_key=KEY)),
    ),
}


class Weather(pydantic.BaseModel):
    city: Literal["Oslo", "Rome"]


async def _answer(kind: str) -> str:
    return (await Agent(MODELS[kind]).run(SAY)).output


async def _stream(kind: str) -> list[str]:
    async with Agent(MODELS[kind]).run_stream(SAY) as result:
        return [piece async for piece in result.stream_text(delta=True, debounce_by=None)]


async def _tools(kind: str) -> Any:
    agent = Agent(MODELS[kind], tools=[get_weather])
    history: Any = None
    texts = []
    for turn in TURNS:
        result = await agent.run(turn, message_history=history)
        history = result.all_messages()
        texts.append(result.output)
    return tools(*texts)


async def _streamed_tools(kind: str) -> Any:
    agent = Agent(MODELS[kind], tools=[get_weather])
    history: Any = None
    texts = []
    for turn in TURNS:
        async with agent.run_stream(turn, message_history=history) as result:
            texts.append(await result.get_output())
            history = result.all_messages()
    return tools(*texts)


async def _object(kind: str, form: Any) -> Any:
    return (await Agent(MODELS[kind], output_type=form).run("?")).output.model_dump()


run(
    "pydantic-ai-slim",
    answer=lambda: _answer("chats"),
    stream=lambda: _stream("chats"),
    tools=lambda: _tools("chats"),
    tools_streamed=lambda: _streamed_tools("chats"),
    object=lambda: _object("chats", NativeOutput(Weather)),
    object_by_tool=lambda: _object("chats", Weather),
    answer_of_responses=lambda: _answer("responses"),
    stream_of_responses=lambda: _stream("responses"),
    tools_of_responses=lambda: _tools("responses"),
    answer_of_anthropic=lambda: _answer("anthropic"),
    stream_of_anthropic=lambda: _stream("anthropic"),
    tools_of_anthropic=lambda: _tools("anthropic"),
    object_by_tool_of_anthropic=lambda: _object("anthropic", Weather),
)
