"""Tool calls: read in whatever pieces they come, in the forms of the published families; demanded ones follow their schemas."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import openai
import pytest

from jakiro_runtime import Engine
from jakiro_serve.tool_calls import CallArguments, CallStart, ToolCallReader, tool_format
from scripted import client_of, say, with_template

BODY = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|end|>{% endfor %}"
)
HERMES = "{% if tools %}{{ tools | tojson }} Answer with <tool_call>{...}</tool_call>{% endif %}" + BODY
LLAMA = '{% if tools %}{{ tools | tojson }} ipython {"name": ..., "parameters": ...}{% endif %}' + BODY
MISTRAL = "{% if tools %}{{ tools | tojson }}{% endif %}" + BODY + "{# [TOOL_CALLS] #}"
NEW_MISTRAL = MISTRAL + "{# [ARGS] #}"
ARGUMENTS = {"city": 'Aix "en" {Provence}', "days": [1, 2]}
SUN = {"name": "sun", "description": "Sunshine", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
MILLIMETRES = {"type": "object", "properties": {"mm": {"enum": [1, 2]}}, "required": ["mm"], "additionalProperties": False}
RAIN = {"name": "rain.at", "parameters": MILLIMETRES}
TOOLS = [{"type": "function", "function": SUN}, {"type": "function", "function": RAIN}]
TALK = [{"role": "user", "content": "Will it rain?"}]


def call(name: str, key: str = "arguments", arguments: Any = ARGUMENTS) -> str:
    return json.dumps({"name": name, key: arguments})


BOTH = [("sun", ARGUMENTS), ("rain.at", ARGUMENTS)]
ANSWERS = [  # template, answer, its text, its calls
    (HERMES, f"Let me see.\n<tool_call>\n{call('sun')}\n</tool_call>", "Let me see.\n", [("sun", ARGUMENTS)]),
    (HERMES, f"<tool_call>{call('sun')}</tool_call>\n<tool_call>{call('rain.at')}</tool_call>", "", BOTH),
    (HERMES, '<tool_call>{"arguments": {"a": {}}, "name": "sun"}</tool_call> Done.', "Done.", [("sun", {"a": {}})]),
    (HERMES, '<tool_call>{"name": "sun"}</tool_call>', "", [("sun", {})]),
    (HERMES, '<tool_call>{"name": "sun", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("sun", {"a": 1})]),
    (HERMES, "1 < 2, <tool> and <tool_cal", "1 < 2, <tool> and <tool_cal", []),
    (HERMES, "<tool_call>no call</tool_call>!", "<tool_call>no call</tool_call>!", []),
    (HERMES, '<tool_call>{"name": "su', '<tool_call>{"name": "su', []),
    (HERMES, '<tool_call>{"name": 3, "arguments": {}}</tool_call>', '<tool_call>{"name": 3, "arguments": {}}</tool_call>', []),
    (LLAMA, call("sun", "parameters"), "", [("sun", ARGUMENTS)]),
    (LLAMA, f"<|python_tag|>{call('sun', 'parameters')}; {call('rain.at', 'parameters')}", "", BOTH),
    (LLAMA, '{"type": "function", "name": "sun", "parameters": {}}', "", [("sun", {})]),
    (LLAMA, '{"answer": {"name": "sun"}}', '{"answer": {"name": "sun"}}', []),
    (LLAMA, '{"name": "moon", "parameters": {}}', '{"name": "moon", "parameters": {}}', []),
    (LLAMA, 'It is {"name": "sun"}', 'It is {"name": "sun"}', []),
    (MISTRAL, f"Wait.[TOOL_CALLS][{call('sun')}, {call('rain.at')}]", "Wait.", BOTH),
    (MISTRAL, f"[TOOL_CALLS] [{call('sun')}]", "", [("sun", ARGUMENTS)]),
    (NEW_MISTRAL, "[TOOL_CALLS]sun[ARGS]{}[TOOL_CALLS]rain.at[CALL_ID]a1[ARGS]{}", "", [("sun", {}), ("rain.at", {})]),
]


def read(template: str, pieces: Sequence[str], most: int | None = None) -> tuple[str, list[tuple[str, Any]]]:
    form = tool_format(template)
    assert form is not None
    reader, text, calls = ToolCallReader(form, ["sun", "rain.at"], most), "", []
    for piece in [found for each in pieces for found in reader.push(each)] + reader.finish():
        if isinstance(piece, CallStart):
            calls.append([piece.name, ""])
        elif isinstance(piece, CallArguments):
            calls[piece.number][1] += piece.text
        else:
            text += piece
    return text, [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize(("template", "answer", "text", "calls"), ANSWERS)
def test_calls_are_read_in_whatever_pieces_they_come(template: str, answer: str, text: str, calls: list[tuple[str, Any]]) -> None:
    for size in (1, 2, 3, 7, len(answer)):
        pieces = [answer[place : place + size] for place in range(0, len(answer), size)]
        assert read(template, pieces) == (text, calls), size


def test_arguments_come_while_they_are_written() -> None:
    form = tool_format(HERMES)
    assert form is not None
    reader = ToolCallReader(form, [])
    begun = reader.push('<tool_call>{"name": "write", "arguments": {"text": "Once')
    assert isinstance(begun[0], CallStart)
    assert begun[1] == CallArguments(0, '{"text": "Once')
    assert reader.push(" upon}") == [CallArguments(0, " upon}")]
    assert reader.push('"}}</tool_call>') == [CallArguments(0, '"}')]


def test_no_more_calls_than_are_wanted() -> None:
    assert read(HERMES, [ANSWERS[1][1]], most=1) == ("", [("sun", ARGUMENTS)])


@pytest.mark.parametrize("template", ["no such thing", "{{ tools }} in words", "{{ tools }}<tool_call><function=f>"])
def test_templates_of_other_forms_are_not_guessed_at(template: str) -> None:
    assert tool_format(template) is None


def ask(client: openai.OpenAI, **options: Any) -> Any:
    model = client.models.list().data[0].id
    return client.chat.completions.create(**{"model": model, "messages": TALK, "tools": TOOLS, **options})


@pytest.mark.parametrize(("template", "answer", "text", "calls"), [ANSWERS[n] for n in (1, 5, 9, 15, 17)])
def test_a_client_gets_calls_whole_and_streamed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, template: str, answer: str, text: str, calls: list[tuple[str, Any]]
) -> None:
    say(monkeypatch, answer)
    special = ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>"]
    with client_of(with_template(engine, template, special)) as client:
        choice = ask(client).choices[0]
        made = choice.message.tool_calls or []
        assert [(each.function.name, json.loads(each.function.arguments)) for each in made] == calls
        assert len({each.id for each in made}) == len(calls)
        assert (choice.message.content or "") == text
        assert choice.finish_reason == ("tool_calls" if calls else "stop")
        streamed: dict[int, list[str]] = {}
        said, reasons = "", []
        for chunk in ask(client, stream=True):
            delta = chunk.choices[0].delta
            said += delta.content or ""
            reasons.append(chunk.choices[0].finish_reason)
            for each in delta.tool_calls or []:
                if each.id:
                    streamed[each.index] = [each.function.name, ""]
                streamed[each.index][1] += each.function.arguments or ""
        assert [(name, json.loads(arguments)) for name, arguments in streamed.values()] == calls
        assert (said, reasons[-1]) == (text, choice.finish_reason)


def test_the_template_gets_the_tools_and_the_calls_made_before(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = with_template(engine, HERMES)
    prompts: list[str] = []
    encode = type(engine).chat_prompt

    def noted(self: Engine, *given: Any, **options: Any) -> list[int]:
        ids = encode(self, *given, **options)
        prompts.append(self.bundle.tokenizer.decode(ids, skip_special_tokens=False))
        return ids

    monkeypatch.setattr(Engine, "chat_prompt", noted)
    say(monkeypatch, "Yes.")
    made = {"id": "a", "type": "function", "function": {"name": "sun", "arguments": '{"city": "Aix"}'}}
    past = [*TALK, {"role": "assistant", "tool_calls": [made]}, {"role": "tool", "tool_call_id": "a", "content": "No sun"}]
    with client_of(engine) as client:
        ask(client, messages=past)
        ask(client, tool_choice="none")
    assert '"name": "sun"' in prompts[0].split("<|start|>")[0]
    assert '"arguments": {"city": "Aix"}' in prompts[0]
    assert "sun" not in prompts[1]


FORMS = [
    (HERMES, []),
    (HERMES, ["<tool_call>"]),
    (LLAMA, []),
    (MISTRAL, ["[TOOL_CALLS]"]),
    (NEW_MISTRAL, ["[TOOL_CALLS]", "[ARGS]"]),
]


@pytest.mark.parametrize(("template", "special"), FORMS)
def test_a_call_that_is_demanded_is_made(engine: Engine, template: str, special: list[str]) -> None:
    named = {"type": "function", "function": {"name": "rain.at"}}
    with client_of(with_template(engine, template, special)) as client:
        choice = ask(client, tool_choice=named, max_tokens=200).choices[0]
        (made,) = choice.message.tool_calls
        assert (made.function.name, choice.finish_reason, choice.message.content) == ("rain.at", "tool_calls", None)
        assert json.loads(made.function.arguments)["mm"] in (1, 2)
        shut = {"type": "object", "properties": {"a": {"enum": [1]}}, "additionalProperties": False}
        tools = [{"type": "function", "function": {**RAIN, "parameters": shut}}]
        demanded = ask(client, tools=tools, tool_choice="required", parallel_tool_calls=False, temperature=2, seed=3)
        assert [each.function.name for each in demanded.choices[0].message.tool_calls] == ["rain.at"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "moon"}}}, "no function 'moon'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name is not valid"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type is not valid"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 3}}}], "tool_choice": "required"},
            "compile",
        ),
    ],
)
def test_wrong_tools_are_refused(engine: Engine, options: dict[str, Any], sentence: str) -> None:
    with client_of(with_template(engine, HERMES)) as client, pytest.raises(openai.BadRequestError, match=sentence):
        ask(client, **options)


def test_a_model_without_tools_refuses_them(engine: Engine) -> None:
    with client_of(engine) as client, pytest.raises(openai.BadRequestError, match="chat template has no tools"):
        ask(client)
