"""Anthropic's own client through the relay: `python anthropic_sdk.py BASE_URL MODEL`."""

import sys

import anthropic

QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOLS = [
    {
        "name": "weather",
        "description": "Tells the weather",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    }
]


def main(base_url: str, model: str) -> None:
    client = anthropic.Anthropic(base_url=base_url, api_key="none", max_retries=0, timeout=60)
    asked = {"model": model, "messages": QUESTION, "max_tokens": 24, "extra_body": {"temperature": 0}}

    listed = [entry.id for entry in client.models.list()]
    assert listed == [model], listed

    whole = client.messages.create(**asked)
    text = whole.content[0].text
    assert text and whole.usage.output_tokens > 0, whole

    with client.messages.stream(**asked) as stream:
        streamed = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert streamed == text, (streamed, text)
    assert final.stop_reason == whole.stop_reason, final

    # A model this small calls again and again until it may not go on; the first call is what counts.
    tools = {"tools": TOOLS, "tool_choice": {"type": "any"}}
    asked["max_tokens"] = 40
    used = [block for block in client.messages.create(**asked, **tools).content if block.type == "tool_use"]
    assert [(block.name, block.input) for block in used][:1] == [("weather", {"city": "Paris"})], used

    with client.messages.stream(**asked, **tools) as stream:
        used = [block for block in stream.get_final_message().content if block.type == "tool_use"]
    assert [(block.name, block.input) for block in used][:1] == [("weather", {"city": "Paris"})], used

    count = client.messages.count_tokens(model=model, messages=QUESTION)
    assert count.input_tokens > 5, count

    try:
        client.messages.create(model=model, max_tokens=5, messages=[{"role": "user"}])
        raise AssertionError("nothing was wrong with it")
    except anthropic.BadRequestError as error:
        message = "All non-assistant messages must contain 'content'"
        assert error.body["error"]["message"] == message, error.body

    try:
        client.messages.create(model="absent", max_tokens=5, messages=QUESTION)
        raise AssertionError("somebody serves it")
    except anthropic.APIStatusError as error:
        assert (error.status_code, error.body["error"]["type"]) == (503, "overloaded_error"), error


main(*sys.argv[1:])
