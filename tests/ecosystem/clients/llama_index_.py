"""llama-index's models of OpenAI's kind and Anthropic's, and its agent over them."""

from typing import Any

from asked import KEY, MODEL, SAY, TURNS, URL, get_weather, run, tools
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.workflow import Context
from llama_index.llms.openai_like import OpenAILike

model = OpenAILike(
    model=MODEL,
    api_base=f"{URL}/v1",
    api_key=KEY,
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=8192,
    max_retries=0,
)


def answer() -> Any:
    return model.chat([ChatMessage(role="user", content=SAY)]).message.content


def stream() -> list[Any]:
    return [piece.delta or "" for piece in model.stream_chat([ChatMessage(role="user", content=SAY)])]


async def _tools(*, streamed: bool) -> Any:
    agent = FunctionAgent(tools=[get_weather], llm=model, streaming=streamed)
    context = Context(agent)
    return tools(*[str(await agent.run(turn, ctx=context)) for turn in TURNS])


def completion() -> bool:
    plain = model.model_copy(update={"is_chat_model": False, "temperature": 0.0, "max_tokens": 8})
    return plain.complete("once").text == plain.complete("once").text != ""


run(
    "llama-index-llms-openai-like",
    answer=answer,
    stream=stream,
    tools=lambda: _tools(streamed=False),
    tools_streamed=lambda: _tools(streamed=True),
    completion=completion,
)
