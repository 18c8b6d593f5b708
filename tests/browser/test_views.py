"""The views of tokens and attention, and chats, compared with what the server answers without the page."""

import os
from typing import TYPE_CHECKING

import pytest
from browser.server import Post

if TYPE_CHECKING:
    from browser.page import Page

pytestmark = pytest.mark.skipif(os.environ.get("BROWSER_TESTS") != "1", reason="run by make browser")

ALT, ESCAPE, ENTER, END, LEFT, DOWN = "\ue00a", "\ue00c", "\ue007", "\ue010", "\ue012", "\ue015"


def test_the_tokens_of_a_text(page: "Page", post: Post) -> None:
    page.type("The cat saw 小狗.\n")
    page.view("tokens")
    page.settled()
    tokens = post("/api/tokenize", {"text": "The cat saw 小狗.\n"})["tokens"]
    page.until(lambda: page.texts(".chip .number") == [str(token["id"]) for token in tokens])
    shown = [token["text"].replace(" ", "·").replace("\n", "↵") for token in tokens]
    last_bytes = [token["text"] for token in tokens if token["text"].startswith("<")][2::3]
    assert len(last_bytes) == 2
    for name, character in zip(last_bytes, "小狗", strict=True):  # the last of its bytes completes a character
        shown[shown.index(name)] = character
    assert page.texts(".chip .piece") == shown
    assert f"16 characters are {len(tokens)} tokens" in page.texts(".help")[0]


def test_tokens_appear_as_the_model_writes(page: "Page") -> None:
    page.type("The cat")
    page.view("tokens")
    page.settled()
    before = len(page.all(".chip"))
    page.set(max_tokens=7)
    page.write()
    page.until(lambda: len(page.all(".chip")) > before)
    assert page.run("return document.querySelectorAll('.chip.typed').length") == before


def test_the_alternatives_to_a_token_in_the_view_of_tokens(page: "Page") -> None:
    page.type("The cat saw")
    page.set(max_tokens=3)
    page.view("tokens")
    page.settled()
    page.until(lambda: page.all(".chip"))
    page.run("document.querySelector('.chip[tabindex=\"0\"]').focus()")
    page.press(LEFT)
    name = page.run("return document.activeElement.querySelector('.piece').textContent")
    page.press(ENTER)
    page.until(lambda: page["#choices"].is_displayed())
    assert page.texts("#choices .head strong") == [name]
    page.press(ESCAPE)
    page.until(lambda: not page["#choices"].is_displayed())
    assert page.run("return document.activeElement.querySelector('.piece').textContent") == name
    page.press(ENTER)
    page.press(DOWN)
    chosen = page.run("return document.activeElement.querySelector('.piece').textContent")
    place = page.run("return [...document.querySelectorAll('.chip')].findIndex(chip => chip.tabIndex === 0)")
    with page.writing():
        page.press(ENTER)
    page.until(lambda: page.texts(".chip .piece")[place] == chosen)


def test_what_a_token_looks_at(page: "Page", post: Post) -> None:
    page.type("The cat saw a dog.")
    page.choose_model("chatty")  # two layers of four heads
    page.view("attention")
    ids = [token["id"] for token in post("/api/tokenize", {"model": "chatty", "text": "The cat saw a dog."})["tokens"]]

    def weights(position: int) -> list[list[list[float]]]:
        body = {"model": "chatty", "ids": ids, "position": position}
        found = post("/api/attention", body)["weights"]
        assert isinstance(found, list)
        return found

    def shown() -> list[float]:
        return [float(text.strip("<% ")) / 100 for text in page.texts(".looked-at .number")]

    last = len(ids) - 1
    layers = weights(last)
    page.until(lambda: len(page.all(".looked-at")) == last + 1)
    mean = [sum(sum(head[token] for head in heads) for heads in layers) / 8 for token in range(last + 1)]
    assert shown() == pytest.approx(mean, rel=0.06, abs=1e-3)
    page.run("document.querySelector('.chip[tabindex=\"0\"]').focus()")
    page.press(LEFT)
    page.until(lambda: len(page.all(".looked-at")) == last)
    head = weights(last - 1)[1][2]
    page.choose(".layer", "2")
    page.choose(".head", "3")
    page.until(lambda: shown() == pytest.approx(head, rel=0.06, abs=1e-3))
    most = page.texts(".chip .piece")[head.index(max(head))]
    assert f"looks most at “{most}”" in page.texts(".seen")[0]
    page.choose(".head", "mean")
    mean = [sum(column) / 4 for column in zip(*weights(last - 1)[1], strict=True)]
    page.until(lambda: shown() == pytest.approx(mean, rel=0.06, abs=1e-3))


def test_a_chat(page: "Page", post: Post) -> None:
    page.view("chat")
    page.set(max_tokens=6)
    page["#message"].send_keys("Who are you?")
    page["#send"].click()
    page.until(lambda: page.texts("#status") == ["Ctrl+Enter sends, Escape stops."] and page.texts("#conversation p"))
    (request,) = page.requests("/v1/chat/completions")
    assert request["messages"] == [{"role": "user", "content": "Who are you?"}]
    answer = post("/v1/chat/completions", request | {"stream": False})["choices"][0]["message"]["content"]
    assert page.texts("#conversation span") == ["Who are you?", answer]
    page["#message"].send_keys("And now?")
    page["#send"].click()
    page.until(lambda: len(page.requests("/v1/chat/completions")) == 2)
    second = page.requests("/v1/chat/completions")[1]["messages"]
    assert [message["content"] for message in second] == ["Who are you?", answer, "And now?"]
    page.until(lambda: len(page.texts("#conversation span")) == 4 and page.texts("#send") == ["Send"])
    page["#clear"].click()
    page.until(lambda: not page.texts("#conversation p"))


def test_a_message_that_was_not_answered_can_be_sent_again(page: "Page") -> None:
    page.view("chat")
    page.set(max_tokens=6)
    too_long = "The cat " * 500
    page.run("document.querySelector('#message').value = arguments[0]", too_long)
    page["#send"].click()
    page.until(lambda: page.texts("#alert") != [""])
    page.until(lambda: page.run("return document.querySelector('#message').value") == too_long.strip())
    assert not page.texts("#conversation p")
    assert ["400 (Bad Request)" in problem for problem in page.problems()] == [True]
    page.run("document.querySelector('#message').value = 'Who are you?'")
    page["#send"].click()
    page.until(lambda: len(page.requests("/v1/chat/completions")) == 2)
    assert page.requests("/v1/chat/completions")[1]["messages"] == [{"role": "user", "content": "Who are you?"}]
    page.until(lambda: page.texts("#send") == ["Send"])
