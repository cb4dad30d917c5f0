"""instructor: objects of pydantic classes, by tools and by JSON schema."""

from typing import Any, Literal

import instructor
import openai
import pydantic
from asked import KEY, MODEL, URL, run

options: Any = {"base_url": f"{URL}/v1", "api_key": KEY, "max_retries": 0}
asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": "?"}], "max_tokens": 200, "max_retries": 0}


class Weather(pydantic.BaseModel):
    city: Literal["Oslo", "Rome"]


def _object(mode: str) -> Any:
    client = instructor.from_openai(openai.OpenAI(**options), mode=instructor.Mode[mode])
    return client.chat.completions.create(response_model=Weather, **asked).model_dump()


async def _async() -> Any:
    client = instructor.from_openai(openai.AsyncOpenAI(**options), mode=instructor.Mode.JSON_SCHEMA)
    return (await client.chat.completions.create(response_model=Weather, **asked)).model_dump()


def _partial() -> Any:
    client = instructor.from_openai(openai.OpenAI(**options), mode=instructor.Mode.TOOLS)
    return list(client.chat.completions.create_partial(response_model=Weather, **asked))[-1].model_dump()


run(
    "instructor",
    object=lambda: _object("JSON_SCHEMA"),
    object_by_tool=lambda: _object("TOOLS"),
    object_async=_async,
    object_in_parts=_partial,
)
