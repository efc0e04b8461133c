"""OpenAI's own client through the relay: `python openai_sdk.py BASE_URL MODEL`."""

import json
import sys

import openai

QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


def main(base_url: str, model: str) -> None:
    client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=60)
    asked = {"model": model, "messages": QUESTION, "temperature": 0, "seed": 1, "max_tokens": 24}

    listed = [entry.id for entry in client.models.list()]
    assert listed == [model], listed
    assert client.models.retrieve(model).id == model

    whole = client.chat.completions.create(**asked)
    text = whole.choices[0].message.content
    assert text and whole.usage.completion_tokens > 0, whole

    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == text, (streamed, text)
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens, chunks[-1]

    # A model this small calls again and again until it may not go on; the first call is what counts.
    tools = {"tools": TOOLS, "tool_choice": "required"}
    asked["max_tokens"] = 40
    call = client.chat.completions.create(**asked, **tools).choices[0].message.tool_calls[0].function
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Paris"}), call

    name, arguments = "", ""
    for chunk in client.chat.completions.create(**asked, **tools, stream=True):
        for choice in chunk.choices:
            for part in choice.delta.tool_calls or []:
                if part.index == 0:
                    name += part.function.name or ""
                    arguments += part.function.arguments or ""
    assert (name, json.loads(arguments)) == ("weather", {"city": "Paris"}), (name, arguments)

    vector = client.embeddings.create(model=model, input="a cat").data[0].embedding
    assert len(vector) > 8 and any(vector), vector

    try:
        client.chat.completions.create(model=model, messages="no list")
        raise AssertionError("nothing was wrong with it")
    except openai.BadRequestError as error:
        assert error.body["message"] == "Expected 'messages' to be an array", error.body

    try:
        client.chat.completions.create(model="absent", messages=QUESTION)
        raise AssertionError("somebody serves it")
    except openai.InternalServerError as error:
        assert (error.status_code, error.code) == (503, "no_worker"), error


main(*sys.argv[1:])
