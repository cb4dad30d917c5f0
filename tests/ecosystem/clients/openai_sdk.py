"""OpenAI's SDK: completions, chats and responses."""

import json
from typing import Any

import openai
from asked import KEY, MODEL, SAY, SCHEMA, THINK, TOOL, TURNS, URL, get_weather, run, tools, tools_by

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
messages: Any = [{"role": "user", "content": SAY}]
chat_tools: Any = [{"type": "function", "function": TOOL}]
flat_tools: Any = [{"type": "function", **TOOL, "strict": True}]


def answer() -> str:
    return client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content or ""


def stream() -> list[str]:
    chunks = client.chat.completions.create(model=MODEL, messages=messages, stream=True)
    return [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]


def message_of(history: list[Any]) -> Any:
    return client.chat.completions.create(model=MODEL, messages=history, tools=chat_tools).choices[0].message


def streamed_message_of(history: list[Any]) -> Any:
    with client.chat.completions.stream(model=MODEL, messages=history, tools=chat_tools) as events:
        return events.get_final_completion().choices[0].message


def parsed() -> Any:
    form: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
    content = (
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "?"}], response_format=form)
        .choices[0]
        .message.content
    )
    return json.loads(content or "")


def response() -> str:
    return client.responses.create(model=MODEL, input=SAY).output_text


def response_stream() -> list[str]:
    events = client.responses.create(model=MODEL, input=SAY, stream=True)
    return [event.delta for event in events if event.type == "response.output_text.delta"]


def response_with_tools() -> Any:
    """With the reasoning and the calls of earlier turns sent again."""
    history: list[Any] = []
    texts = []
    for turn in TURNS:
        history.append({"role": "user", "content": f"THINK It may rain. {turn}"})
        while True:
            given = client.responses.create(
                model=MODEL, input=history, tools=flat_tools, include=["reasoning.encrypted_content"], store=False
            )
            history += [item.model_dump(exclude_none=True) for item in given.output]
            calls = [item for item in given.output if item.type == "function_call"]
            if not calls:
                break
            for call in calls:
                result = get_weather(**json.loads(call.arguments))
                history.append({"type": "function_call_output", "call_id": call.call_id, "output": result})
        texts.append(given.output_text)
    return tools(*texts)


def thinking() -> str:
    given = client.responses.create(model=MODEL, input=THINK)
    return "".join(part.text for item in given.output if item.type == "reasoning" for part in item.content or ())


run(
    "openai",
    answer=answer,
    stream=stream,
    tools=lambda: tools_by(message_of),
    tools_streamed=lambda: tools_by(streamed_message_of),
    object=parsed,
    answer_of_responses=response,
    stream_of_responses=response_stream,
    tools_of_responses=response_with_tools,
    thinking_of_responses=thinking,
)
