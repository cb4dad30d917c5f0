"""Talk to a running server with the official client: pip install openai

    vllm serve MODEL                                        in one terminal (or: make serve)
    python examples/online_serving/openai_client.py         in another

Options: --url http://localhost:8000/v1, --api-key KEY, --max-tokens N.
"""

import argparse

from openai import OpenAI

PROMPT = "Hello, my name is"
QUESTION = "Which planet is closest to the sun? Answer in one sentence."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:8000/v1")
    parser.add_argument("--api-key", default="EMPTY")
    parser.add_argument("--max-tokens", type=int, default=48)
    args = parser.parse_args()
    client = OpenAI(api_key=args.api_key, base_url=args.url)

    names = [model.id for model in client.models.list()]
    print("Models:", ", ".join(names))

    # What is not part of OpenAI's API, such as top_k, goes through extra_body.
    sampling = {"temperature": 0.8, "top_p": 0.95, "extra_body": {"top_k": 50}}

    completion = client.completions.create(model=names[0], prompt=PROMPT, max_tokens=args.max_tokens, **sampling)
    print(f"Completion: {PROMPT}{completion.choices[0].text}")

    messages = [{"role": "user", "content": QUESTION}]
    chat = client.chat.completions.create(
        model=names[0], messages=messages, max_completion_tokens=args.max_tokens, **sampling
    )
    print("Chat:", chat.choices[0].message.content)

    print("Streamed: ", end="")
    stream = client.chat.completions.create(
        model=names[0], messages=messages, max_completion_tokens=args.max_tokens, stream=True, **sampling
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
