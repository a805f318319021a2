"""Ask through the official OpenAI client, whole and streamed: `python examples/openai_client.py [question]`."""

from __future__ import annotations

import os
import sys

from openai import OpenAI

BASE_URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
QUESTION = "What is the capital of France?"


def whole(client: OpenAI, question: str) -> str:
    """Wait for the whole answer; the raw response also tells which version gave it."""
    raw = client.chat.completions.with_raw_response.create(
        model="chat", messages=[{"role": "user", "content": question}], max_tokens=64, temperature=0
    )
    answer = raw.parse().choices[0].message.content or ""
    return f"{answer}   [version {raw.headers.get('x-tidegate-version', 'not told')}]"


def streamed(client: OpenAI, question: str) -> None:
    """Print the answer as it comes."""
    stream = client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": question}], max_tokens=64, temperature=0, stream=True
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


def main() -> None:
    question = " ".join(sys.argv[1:]) or QUESTION
    client = OpenAI(base_url=BASE_URL, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    print(whole(client, question))
    streamed(client, question)


if __name__ == "__main__":
    main()
