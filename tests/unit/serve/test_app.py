"""The server through OpenAI's own client: answers as the engine alone gives them, errors in OpenAI's form, limits that hold."""

from __future__ import annotations

import json
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from answers import plain
from jakiro_runtime import Engine, Sampling
from serving import serving

KEY = "secret"
TALK = [{"role": "user", "content": "Why is the sky blue?"}]


@contextmanager
def served(engine: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with serving(["--engine", str(engine), *options], JAKIRO_API_KEY=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def url(tiny_engine: Path) -> Iterator[str]:
    limits = ("--max-running", "3", "--max-waiting", "20", "--max-body", "20000", "--body-seconds", "1")
    with served(tiny_engine, *limits, "--cors-origin", "https://a.example") as (url, _):
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def ask(client: openai.OpenAI, model: str, **options: object) -> object:
    return client.chat.completions.create(**{"model": model, "messages": TALK, "temperature": 0, "max_tokens": 30, **options})


def test_an_answer_is_the_engine_s_own(client: openai.OpenAI, model: str, engine: Engine) -> None:
    prompt = engine.chat_prompt(TALK)
    alone = plain(engine, prompt, 30)
    reply = ask(client, model)
    choice, usage = reply.choices[0], reply.usage
    assert choice.message.content == alone.text
    assert choice.finish_reason == {"eos": "stop"}.get(alone.finish_reason, alone.finish_reason)
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), len(alone.tokens))
    again = ask(client, model)
    assert again.choices[0].message.content == alone.text
    assert again.usage.prompt_tokens_details.cached_tokens == len(prompt) - 1


def test_a_stream_adds_up_to_the_answer_and_ends_with_the_usage(client: openai.OpenAI, model: str) -> None:
    how = {"temperature": 0.8, "seed": 5, "logprobs": True, "top_logprobs": 2}
    whole = ask(client, model, **how)
    chunks = list(ask(client, model, **how, stream=True, stream_options={"include_usage": True}))
    *body, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in body) == whole.choices[0].message.content
    assert body[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in body][-1] == whole.choices[0].finish_reason
    assert (last.choices, last.usage.completion_tokens) == ([], whole.usage.completion_tokens)
    found = [one for chunk in body for one in chunk.choices[0].logprobs.content]
    assert found == whole.choices[0].logprobs.content
    assert all(len(one.top_logprobs) == 2 for one in found)


def test_concurrent_requests_equal_the_same_alone(client: openai.OpenAI, model: str, engine: Engine) -> None:
    def alone(number: int) -> str:
        prompt = engine.chat_prompt([{"role": "user", "content": f"Tell me {number} things. " * (1 + number % 4)}])
        return plain(engine, prompt, 20 + number, sampling=Sampling(temperature=0.7 * (number % 2), seed=number)).text

    def served(number: int) -> str:
        messages = [{"role": "user", "content": f"Tell me {number} things. " * (1 + number % 4)}]
        how = {"messages": messages, "temperature": 0.7 * (number % 2), "seed": number, "max_tokens": 20 + number}
        if number % 3:
            return str(ask(client, model, **how).choices[0].message.content)
        return "".join(chunk.choices[0].delta.content or "" for chunk in ask(client, model, **how, stream=True))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(served, range(12)))
    assert answers == [alone(number) for number in range(12)]


def test_texts_in_parts_are_one_text(client: openai.OpenAI, model: str) -> None:
    parts = [{"type": "text", "text": "Why is the "}, {"type": "text", "text": "sky blue?"}]
    whole = ask(client, model).choices[0].message.content
    assert ask(client, model, messages=[{"role": "user", "content": parts}]).choices[0].message.content == whole


def test_n_answers_differ_by_seed_and_the_first_is_the_one_of_that_seed(client: openai.OpenAI, model: str) -> None:
    three = [choice.message.content for choice in ask(client, model, n=3, temperature=1.2, seed=7).choices]
    assert len(set(three)) == 3
    assert three[1] == ask(client, model, temperature=1.2, seed=8).choices[0].message.content


def test_sampling_options_reach_the_sampler(client: openai.OpenAI, model: str, engine: Engine) -> None:
    text = ask(client, model).choices[0].message.content
    stopped = ask(client, model, stop=[text[5:7]]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (text[: text.index(text[5:7])], "stop")
    only = ask(client, model, logit_bias={"70": 1e6}, max_tokens=4).choices[0].message.content
    assert only == engine.bundle.tokenizer.decode([70] * 4)
    unlike = ask(client, model, logit_bias={"70": 15}, presence_penalty=2, frequency_penalty=2).choices[0].message.content
    assert unlike != ask(client, model, logit_bias={"70": 15}).choices[0].message.content
    narrow = ask(client, model, temperature=5, seed=1, extra_body={"top_k": 1}).choices[0].message.content
    assert narrow == text


def test_completions_take_text_tokens_and_lists(client: openai.OpenAI, model: str, engine: Engine) -> None:
    prompts = [[5, 6, 7], [9, 8]]
    reply = client.completions.create(model=model, prompt=prompts, temperature=0, max_tokens=9, logprobs=1)
    assert [choice.text for choice in reply.choices] == [plain(engine, prompt, 9).text for prompt in prompts]
    assert len(reply.choices[0].logprobs.token_logprobs) == 9
    assert reply.usage.prompt_tokens == 5
    text = client.completions.create(model=model, prompt="The sky", temperature=0)
    assert text.choices[0].text == plain(engine, engine.encode("The sky"), 16).text


def test_response_format_gives_json(client: openai.OpenAI, model: str) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    bias = {"35": -100, "13": -100, "12": -100}  # no white space without end
    found = ask(client, model, response_format=form, max_tokens=200, logit_bias=bias).choices[0].message.content
    assert json.loads(found)["a"] in (1, 2)


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"model": "other"}, 404, "no model 'other' here"),
        ({"temperature": -1}, 400, "temperature is not valid"),
        ({"tools": [{"type": "function"}]}, 400, "tools.0.function is not valid"),
        ({"functions": []}, 400, "functions is not supported"),
        ({"messages": []}, 400, "messages is not valid"),
        ({"messages": [{"role": "user", "content": "x" * 19000}]}, 400, "context is"),
        ({"messages": [{"role": "user", "content": "x" * 30000}]}, 413, "larger than 20000 bytes"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "part that is no text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "not valid Unicode"),
        ({"\ud800": 1}, 400, "is not"),
        ({"temperature": float("nan")}, 400, "temperature is not valid"),
        ({"tools": None, "n": None, "user": "someone"}, 200, ""),
        ({"logit_bias": {"99999": 1}}, 400, "outside 0..319"),
        ({"n": 16}, 200, ""),
    ],
)
def test_a_wrong_request_gets_its_status_and_a_sentence(
    url: str, model: str, change: dict[str, object], status: int, sentence: str
) -> None:
    body = {"model": model, "messages": TALK, "max_tokens": 2, **change}
    reply = httpx.post(
        f"{url}/v1/chat/completions", content=json.dumps(body), headers={"Authorization": f"Bearer {KEY}"}, timeout=60
    )
    assert reply.status_code == status, reply.text
    if sentence:
        error = reply.json()["error"]
        assert sentence in error["message"]
        assert error["type"] == "invalid_request_error"


def test_errors_are_those_of_the_client(url: str, client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.InternalServerError, match="no embeddings"):
        client.embeddings.create(model=model, input="x")
    for raw in (b"{", b"\xff\xfe", b"[" * 5000):
        reply = httpx.post(f"{url}/v1/completions", content=raw, headers={"Authorization": f"Bearer {KEY}"})
        assert (reply.status_code, "not JSON" in reply.json()["error"]["message"]) == (400, True)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(ask, client, model, n=16, max_tokens=100) for _ in range(4)]
        refused = [call for call in calls if isinstance(call.exception(), openai.RateLimitError)]
    assert 0 < len(refused) < 4


def busy(url: str) -> int:
    """Answers that are decoded or wait."""
    text = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    return sum(int(float(re.search(rf"^jakiro_{name} (.*)$", text, re.M)[1])) for name in ("running", "waiting"))


def idle(url: str) -> bool:
    """Whether everything ends within 20 seconds."""
    until = time.monotonic() + 20
    while busy(url) and time.monotonic() < until:
        time.sleep(0.1)
    return busy(url) == 0


def test_a_client_that_leaves_ends_its_answer(url: str, client: openai.OpenAI, model: str) -> None:
    forever = {"max_tokens": None, "logit_bias": {"2": -1e9}, "n": 6}
    stream = ask(client, model, **forever, stream=True)
    next(iter(stream))
    assert busy(url) == 6
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=0.3), model, **forever)
    assert idle(url)


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 10)


def request_bytes(body: bytes, length: int | None = None) -> bytes:
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: a",
        f"Authorization: Bearer {KEY}",
        f"Content-Length: {length or len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def test_clients_that_leave_at_once_leave_nothing_behind(url: str, client: openai.OpenAI, model: str) -> None:
    """Whenever they leave: before the server has read them, before its first event, or after; by FIN or by RST."""
    forever = {"messages": TALK, "logit_bias": {"2": -1e9}, "n": 3}
    for attempt in range(60):
        sent = request_bytes(json.dumps({**forever, "stream": attempt % 3 > 0}).encode())
        with connect(url) as one:
            if attempt % 2:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.sendall(sent)
            time.sleep(0.001 * (attempt % 12))
    assert idle(url)
    calls = [ask(client, model, n=16), ask(client, model)]  # 23 places, none is lost
    assert [len(call.choices) for call in calls] == [16, 1]
    with ThreadPoolExecutor(23) as pool:
        assert all(pool.map(lambda _: ask(client, model, max_tokens=3).choices, range(23)))


def test_a_slow_body_is_refused(url: str) -> None:
    with connect(url) as one:
        one.sendall(request_bytes(b'{"messages"', 1000))
        begun = time.monotonic()
        reply = ""
        while not reply.endswith("}}"):
            reply += one.recv(4096).decode()
    assert reply.startswith("HTTP/1.1 408 ")
    assert "did not arrive within 1 seconds" in reply
    assert 0.8 < time.monotonic() - begun < 10


def test_only_pages_of_allowed_origins_may_call(url: str) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    allowed, other = (
        httpx.options(f"{url}/v1/chat/completions", headers={"Origin": origin, **asked})
        for origin in ("https://a.example", "https://b.example")
    )
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://a.example")
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    assert (other.status_code, other.headers.get("access-control-allow-origin")) == (400, None)
    read = httpx.get(f"{url}/health", headers={"Origin": "https://a.example"})
    assert read.headers["access-control-allow-origin"] == "https://a.example"


def test_a_stream_shows_the_tree_of_each_round_on_request(client: openai.OpenAI, model: str) -> None:
    chunks = list(ask(client, model, stream=True, extra_body={"draft_trees": True}))
    trees = [chunk.draft_tree for chunk in chunks]
    assert trees[0] is None, "the prompt's pass has no tree"
    for tree in trees[1:]:
        assert len(tree["texts"]) == len(tree["parents"]) > 0
        assert tree["accepted"][0] == 0
        assert all(parent in (0, *tree["accepted"]) for parent in (tree["parents"][row - 1] for row in tree["accepted"][1:]))
    assert trees[-1]["tau"] == 29 / (len(chunks) - 1)


def test_the_page_asks_nobody_else(url: str) -> None:
    page = httpx.get(url)
    assert page.headers["content-type"].startswith("text/html")
    assert "<main" in page.text
    assert not re.search(r"(src|href)=|https?://(?!www.w3.org/2000/svg)|@import", page.text)


def test_sigterm_lets_a_begun_answer_end(tiny_engine: Path) -> None:
    with served(tiny_engine) as (url, process):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        model = client.models.list().data[0].id
        stream = iter(ask(client, model, max_tokens=200, logit_bias={"2": -1e9}, stream=True))
        next(stream)
        process.send_signal(signal.SIGTERM)
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
        assert process.wait(30) == 0


def test_a_request_may_ask_for_no_speculation_beside_others_that_have_it(client: openai.OpenAI, model: str) -> None:
    """The answer is the same, no node is verified for it, and its neighbour still speculates."""
    with ThreadPoolExecutor(2) as pool:
        plain_, other = pool.map(
            lambda speculate: ask(client, model, max_tokens=60, extra_body={"speculate": speculate}), (False, True)
        )
    assert plain_.choices[0].message.content == other.choices[0].message.content
    details = plain_.usage.completion_tokens_details
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (0, 0)
    assert other.usage.completion_tokens_details.rejected_prediction_tokens > 0
