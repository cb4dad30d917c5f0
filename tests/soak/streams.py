"""`python -m tests.soak.streams`: many streams over few rows, each text held against its solo run; the official client.

By default 256 streams over 8 rows of SmolLM2 on the `cpu` target. Ends in one JSON line; exit status 1 if a stream was
lost, a text differs, or anything is still held at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

import openai

from tests.server.process import ServerProcess, serve, wait_until

MODEL = "test-model"


async def complete(client: openai.AsyncOpenAI, i: int) -> str:
    """Greedy and drawn, short and longer, chat and completions."""
    drawn = {"temperature": 0.8, "seed": i, "max_tokens": 4 + i % 9} if i % 2 else {"temperature": 0, "max_tokens": 8}
    if i % 3 == 0:
        question = [{"role": "user", "content": f"What is {i} plus {i + 1}?"}]
        chunks = await client.chat.completions.create(model=MODEL, messages=question, stream=True, **drawn)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
    prompt = f"Fact number {i}: " + "the sea is deep and " * (i % 5)
    stream = await client.completions.create(model=MODEL, prompt=prompt, stream=True, **drawn)
    return "".join([chunk.choices[0].text async for chunk in stream])


async def run(server: ServerProcess, num_streams: int) -> dict[str, object]:
    url = f"{server.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=900) as client:
        began = time.monotonic()
        alone = [await complete(client, i) for i in range(num_streams)]
        between = time.monotonic()
        together = await asyncio.gather(*(complete(client, i) for i in range(num_streams)), return_exceptions=True)
        ended = time.monotonic()
    await asyncio.to_thread(wait_until, server.is_idle)
    lost = [repr(text)[:200] for text in together if isinstance(text, BaseException)]
    differ = [i for i, pair in enumerate(zip(alone, together, strict=True)) if pair[0] != pair[1]]
    return {
        "streams": num_streams,
        "lost": len(lost),
        "differ": len(differ) - len(lost),
        "seconds_one_by_one": round(between - began, 1),
        "seconds_together": round(ended - between, 1),
        "wrong": lost[:5] + [f"stream {i}: {alone[i]!r} alone, {together[i]!r}" for i in differ[:5]],
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--device", default="cpu", choices=["cpu", "null"])
    parser.add_argument("--model", type=Path, default=None, help="Default: SmolLM2 out of its package.")
    args = parser.parse_args(argv)
    if args.model is None:
        from examples.smollm2 import smollm2_path

        args.model = smollm2_path()
    words = ["--max-model-len", "256", "--max-num-seqs", str(args.rows), "--disable-uvicorn-access-log"]
    with serve(args.model, *words, device=args.device) as server:
        found = asyncio.run(run(server, args.streams))
    print(json.dumps({"device": args.device, "rows": args.rows, **found}))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
