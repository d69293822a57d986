"""The page in a real browser: what a person does with it, and what it must never do.

Skipped where Chromium is missing; `make page-packages` installs Debian's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright import sync_api as playwright

from serving import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: make page-packages")]


@pytest.fixture(scope="module")
def url(tiny_engine: Path) -> Iterator[str]:
    with serving(["--engine", str(tiny_engine)]) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """The page, in a browser that has never seen it; what it asks of others, and its errors, fail the test."""
    context = browser.new_context()
    opened, wrong = context.new_page(), []
    opened.set_default_timeout(20_000)
    opened.on("request", lambda request: request.url.startswith((url, "data:")) or wrong.append(request.url))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.goto(url)
    yield opened
    context.close()
    assert wrong == []


def answer_with(page: Any, text: str) -> None:
    """Let the server's next answers be this text, in two chunks."""
    chunks = [{"choices": [{"delta": {"content": part}}]} for part in (text[:5], text[5:])]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))


def say(page: Any, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_role("button", name="Send").click()


def done(page: Any) -> None:
    """Wait until the answer has ended."""
    playwright.expect(page.get_by_role("button", name="Send")).to_be_enabled()


def test_an_answer_comes_with_its_trees(page: Any) -> None:
    page.get_by_text("Settings").click()
    page.get_by_label("Most tokens").fill("30")
    say(page, "Hello")
    done(page)
    assert page.locator("article.user").inner_text().endswith("Hello")
    assert page.locator("article.assistant").count() == 1
    assert "30 tokens" in page.get_by_role("status").inner_text()
    assert page.locator("#tree text.lit").count() >= 1
    assert page.locator("#tau polyline").get_attribute("points").count(",") > 1
    assert "ms a round" in page.locator("#ms-now").inner_text()


def test_stop_ends_an_answer_and_what_came_stays(page: Any) -> None:
    page.get_by_text("Settings").click()
    page.get_by_label("Most tokens").fill("900")
    page.get_by_label("Message").fill("Go on")
    page.get_by_label("Message").press("Enter")
    page.locator("#rounds").wait_for()
    page.keyboard.press("Escape")
    done(page)
    assert page.get_by_role("status").inner_text() == "stopped"


def test_both_ways_side_by_side_give_the_same(page: Any) -> None:
    page.get_by_text("Settings").click()
    page.get_by_label("Most tokens").fill("40")
    page.get_by_label("side by side").check()
    say(page, "Hello")
    done(page)
    assert page.get_by_role("status").inner_text() == "Both answers are the same."
    assert page.locator(".pair article").count() == 2
    assert "tau 1.00" in page.locator(".pair article").nth(1).inner_text()


def test_a_message_is_edited_and_sent_again(page: Any) -> None:
    answer_with(page, "one two")
    for text in ("first", "second"):
        say(page, text)
        done(page)
    page.get_by_role("button", name="Edit").first.click()
    assert page.get_by_label("Message").input_value() == "first"
    assert page.locator("article").count() == 0
    say(page, "another")
    done(page)
    assert [each.split("\n")[-1] for each in page.locator("article.user").all_inner_texts()] == ["another"]


def test_markdown_is_shown_and_html_is_text(page: Any) -> None:
    attack = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    answer_with(
        page,
        f"# Title\n\n**bold** `code` {attack}\n\n- one\n- two\n\n```\nfenced <b>\n```\n[bad](javascript:alert(1)) [good](https://x.y/)",
    )
    say(page, attack)
    done(page)
    shown = page.locator("article.assistant")
    assert shown.locator("strong").inner_text() == "bold"
    assert shown.locator("li").all_inner_texts() == ["one", "two"]
    assert shown.locator("pre code").inner_text() == "fenced <b>"
    assert [link.get_attribute("href") for link in shown.locator("a").all()] == ["https://x.y/"]
    assert page.locator("article img, article script, article b").count() == 0
    assert page.title() == "Jakiro"
    assert attack in page.locator("article.user").inner_text()


def test_a_reload_keeps_the_conversation_and_not_the_key(page: Any) -> None:
    answer_with(page, "an answer")
    page.get_by_text("Settings").click()
    page.get_by_label("System prompt").fill("Be kind.")
    page.get_by_label("API key").fill("secret")
    say(page, "a question")
    done(page)
    page.reload()
    assert page.locator("article").count() == 2
    page.get_by_text("Settings").click()
    assert page.get_by_label("System prompt").input_value() == "Be kind."
    assert page.get_by_label("API key").input_value() == ""
    assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
    page.get_by_role("button", name="New conversation").click()
    page.reload()
    assert page.locator("article").count() == 0


def test_what_the_server_refuses_is_said(page: Any) -> None:
    page.get_by_text("Settings").click()
    page.get_by_label("Temperature").evaluate("field => { field.value = 1000; }")
    say(page, "Hello")
    done(page)
    assert "temperature" in page.locator("article.error").inner_text()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill("4")
    say(page, "Again")
    done(page)
    assert page.locator("article.assistant").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_has_names_for_everything(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 640})
    answer_with(page, "word" * 200 + "\n\n```\n" + "long " * 100 + "\n```")
    say(page, "x" * 500)
    done(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    unnamed = "[...document.querySelectorAll('input, textarea')].filter((field) => !field.labels.length).length"
    assert page.evaluate(unnamed) == 0
