"""The Responses API through OpenAI's client: the same answers as elsewhere, whole and as events, and nothing kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from answers import plain
from jakiro_runtime import Engine
from scripted import client_of, say, with_template

TEMPLATE = (
    "{% if tools %}<tool_call>{% endif %}{% for m in messages %}"
    "{{ m.role }}: {{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}\n{% endfor %}"
)
SUN = {"type": "function", "name": "sun", "parameters": {"type": "object", "properties": {}}}
MODEL = "tiny"


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[openai.OpenAI]:
    with client_of(with_template(engine, TEMPLATE), model_name=MODEL) as made:
        yield made


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.responses.create(**{"model": MODEL, "input": "Hello", "temperature": 0, "max_output_tokens": 20, **options})


def test_an_answer_is_the_engine_s_own(client: openai.OpenAI, engine: Engine) -> None:
    prompt = with_template(engine, TEMPLATE).chat_prompt(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    )
    alone = plain(engine, prompt, 20)
    reply = ask(client, instructions="Be brief.", metadata={"a": "b"})
    assert reply.output_text == alone.text
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (len(prompt), 20)
    assert (reply.instructions, reply.metadata, reply.store) == ("Be brief.", {"a": "b"}, False)
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
    ]
    assert ask(client, input=items).output_text == alone.text


def test_events_build_up_the_whole_response(client: openai.OpenAI) -> None:
    how = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = ask(client, **how)
    events = list(ask(client, **how, stream=True))
    kinds = [event.type for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in deltas) == whole.output_text == events[-4].text
    assert events[-1].response.output[0].content == whole.output[0].content
    assert events[-1].response.usage.total_tokens == whole.usage.total_tokens
    assert len(whole.output[0].content[0].logprobs) == 20
    with client.responses.stream(model=MODEL, input="Hello", temperature=0) as stream:  # the client checks the order of events
        assert stream.get_final_response().status in ("completed", "incomplete")


def test_functions_are_called_and_their_results_read(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, 'Wait.<tool_call>{"name": "sun", "arguments": {"a": 1}}</tool_call>')
    for reply in (
        ask(client, tools=[SUN], max_output_tokens=None),
        list(ask(client, tools=[SUN], max_output_tokens=None, stream=True))[-1].response,
    ):
        assert reply.status == "completed"
        text, call = reply.output
        assert (text.content[0].text, call.name, json.loads(call.arguments)) == ("Wait.", "sun", {"a": 1})
    say(monkeypatch, "Sunny.")
    past = [{"role": "user", "content": "Sun?"}, *(item.model_dump(exclude_none=True) for item in reply.output)]
    past.append({"type": "function_call_output", "call_id": call.call_id, "output": "yes"})
    assert ask(client, input=past, tools=[SUN]).output_text == "Sunny."


def test_a_format_gives_json(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    reply = ask(
        client,
        text={"format": {"type": "json_schema", "name": "x", "schema": {**schema, "x-guidance": {"whitespace_flexible": False}}}},
    )
    assert json.loads(reply.output_text) == {"a": 1}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"previous_response_id": "resp_1"}, "keeps no responses"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "no item that this server reads"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "no text"),
        ({"input": []}, "input.*is not valid"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type is not valid"),
        ({"reasoning": {"effort": "low"}}, "reasoning is not supported"),
        ({"extra_body": {"background": True}}, "background is not valid"),
        ({"model": "other"}, "no model 'other'"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_refused(client: openai.OpenAI, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=sentence):
        ask(client, **options)
