"""Writing with a model: what the page sends and shows, compared with what the server answers without the page."""

import math
import os
from typing import TYPE_CHECKING, Any

import pytest
from browser.server import Post

if TYPE_CHECKING:
    from browser.page import Page

pytestmark = pytest.mark.skipif(os.environ.get("BROWSER_TESTS") != "1", reason="run by make browser")

CONTROL, SHIFT, ALT = "\ue009", "\ue008", "\ue00a"
ENTER, ESCAPE, DELETE, UP, DOWN = "\ue007", "\ue00c", "\ue017", "\ue013", "\ue015"
TEXT = ".paper textarea"


def ids_of(post: Post, text: str, model: str = "tiny") -> list[int]:
    return [token["id"] for token in post("/api/tokenize", {"model": model, "text": text})["tokens"]]


def written(post: Post, request: dict[str, Any]) -> str:
    """What the model writes in answer to a request of the page."""
    text: str = post("/v1/completions", request | {"stream": False})["choices"][0]["text"]
    return text.replace("\r", "")  # as in a textarea


def test_what_is_typed_is_continued(page: "Page", post: Post) -> None:
    page.type("The cat")
    with page.writing():
        page.press(CONTROL, ENTER)
    (request,) = page.continuations()
    assert request["prompt"] == ids_of(post, "The cat")
    assert request["seed"] == page.seed()
    assert request["max_tokens"] == 32 - len(request["prompt"])  # the context is shorter than the length
    assert page.text == "The cat" + written(post, request)
    assert len(page.text) > len("The cat")


def test_a_text_can_begin_with_the_model(page: "Page", post: Post) -> None:
    page.write()
    assert page.text == written(post, page.continuations()[0])


def test_the_settings_are_sent(page: "Page") -> None:
    page.type("The")
    page.set(temperature=0.4, top_k=7, top_p=0.5, min_p=0.1, max_tokens=3)
    page.keep_seed(42)
    page.write()
    page.write()
    expected = {"temperature": 0.4, "top_k": 7, "top_p": 0.5, "min_p": 0.1, "max_tokens": 3, "seed": 42}
    assert all(expected.items() <= request.items() for request in page.continuations())


def test_a_kept_seed_gives_the_same_text(page: "Page") -> None:
    page.type("The cat")
    page.write()
    first = page.text
    page["#restart"].click()
    page.until(lambda: page.text == "The cat")
    page["#keep-seed"].click()
    page.write()
    assert page.text == first


def test_escape_stops_and_continue_continues(page: "Page", post: Post) -> None:
    choose_long(page)
    page.type("The cat")
    with page.writing():
        page["#go"].click()
        page.until(lambda: len(page.text) > 30)
        page.press(ESCAPE)
    assert page.status == "Stopped."
    page.slow(False)
    page.settled()
    stopped, tokens = page.text, page.texts(".count")[0]
    page.set(max_tokens=4)
    page.write()
    assert page.text.startswith(stopped)
    assert page.text != stopped
    first, second = page.continuations()
    assert written(post, {**first, "max_tokens": len(second["prompt"]) - len(first["prompt"])}) == stopped[7:]
    assert tokens == f"{len(second['prompt']):,} of 2,048 tokens"


def choose_long(page: "Page") -> None:
    """Take the model with the long context, far from here. At temperature 0, its text does not end."""
    page.choose_model("long")
    page.set(temperature=0, max_tokens=2000)
    page.slow()


def test_the_stop_button_stops(page: "Page") -> None:
    choose_long(page)
    page.type("The cat")
    with page.writing():
        page["#go"].click()
        page.until(lambda: page["#go"].text == "Stop" and len(page.text) > 30)
        page["#go"].click()
    assert page.status == "Stopped."
    page.until(lambda: page["#go"].text == "Continue")


def test_undo_and_redo(page: "Page") -> None:
    page.type("The cat")
    page.set(max_tokens=5)
    page.write()
    first = page.text
    page.write()
    second = page.text
    for expected in (first, "The cat", ""):
        page["#undo"].click()
        page.until(lambda expected=expected: page.text == expected)
    page.until(lambda: page["#undo"].get_attribute("aria-disabled") == "true")
    page["#redo"].click()
    page.until(lambda: page.text == "The cat")
    page[TEXT].click()
    page.press(CONTROL, SHIFT, "z")
    page.until(lambda: page.text == first)
    page.press(CONTROL, SHIFT, "z")
    page.until(lambda: page.text == second)
    page.press(CONTROL, "z")
    page.until(lambda: page.text == first)


def test_undo_after_a_change_of_the_model(page: "Page", post: Post) -> None:
    text = "They met 3 days later."
    assert ids_of(post, text) != ids_of(post, text, "chatty")
    page.type(text)
    page.settled()
    page.set(max_tokens=3)
    page.write()
    page.choose_model("chatty")
    page["#undo"].click()
    page.until(lambda: page.text == text)
    page.write()
    assert page.continuations()[1]["prompt"] == ids_of(post, text, "chatty")


def test_a_text_edited_in_the_middle_is_continued_as_it_reads(page: "Page", post: Post) -> None:
    page.type("The cat saw a dog.")
    page.set(max_tokens=6)
    page.write()
    end = page.text.removeprefix("The cat saw a dog.")
    page.select(14, 17)
    page.type("big pig")
    assert page.text == "The cat saw a big pig." + end
    page.write()
    request = page.continuations()[1]
    assert request["prompt"] == ids_of(post, "The cat saw a big pig." + end)
    assert page.text == "The cat saw a big pig." + end + written(post, request)


def test_after_a_deletion_the_text_is_split_anew(page: "Page", post: Post) -> None:
    assert ids_of(post, "The c") + ids_of(post, "at saw") != ids_of(post, "The cat saw")
    page.type("The c\nat saw")
    page.settled()
    page.select(5, 6)
    page.press(DELETE)
    assert page.text == "The cat saw"
    page.settled()
    probability = 100 * math.exp(scores(post, "The cat saw")[-1]["logprob"])
    page.select(11, 11)
    page[TEXT].send_keys(ALT + DOWN)
    page.until(lambda: page["#choices"].is_displayed())
    assert float(page.texts("#choices .head span")[0].strip("<%")) == pytest.approx(probability, rel=0.06)
    page.press(ESCAPE)
    page.write()
    assert page.continuations()[0]["prompt"] == ids_of(post, "The cat saw")


def test_without_an_edit_the_models_own_tokens_are_continued(page: "Page", post: Post) -> None:
    """Also where the tokenizer would split the text differently."""
    page.type("The")
    page.set(temperature=2, top_p=1, max_tokens=10)
    page.write()
    first_text = page.text
    page.write()
    first, second = page.continuations()
    tokens = post("/v1/completions", first | {"stream": False})["choices"][0]["tokens"]
    while not tokens[-1]["text"]:  # a part of a character
        tokens.pop()
    assert second["prompt"] == first["prompt"] + [token["id"] for token in tokens]
    assert second["prompt"] != ids_of(post, first_text)


def test_rewriting_from_the_cursor(page: "Page", post: Post) -> None:
    page.type("The cat saw a dog. The owl ran home.")
    page.set(max_tokens=5)
    page.select(18, 18)
    with page.writing():
        page.press(CONTROL, SHIFT, ENTER)
    (request,) = page.continuations()
    assert request["prompt"] == ids_of(post, "The cat saw a dog.")
    assert page.text == "The cat saw a dog." + written(post, request)
    page["#undo"].click()
    page.until(lambda: page.text == "The cat saw a dog. The owl ran home.")


def scores(post: Post, text: str) -> list[Any]:
    body = {"prompt": ids_of(post, text), "echo": True, "max_tokens": 0, "logprobs": 8, "return_tokens": True}
    tokens = post("/v1/completions", body)["choices"][0]["tokens"]
    assert isinstance(tokens, list)
    return tokens


def test_pointing_at_a_token_shows_its_probability_and_alternatives(page: "Page", post: Post) -> None:
    page.type("The cat saw a dog.")
    page.settled()
    page.point_at(" saw")
    page.until(lambda: page["#choices"].is_displayed())
    names = [token["text"] for token in post("/api/tokenize", {"text": "The cat saw a dog."})["tokens"]]
    token = scores(post, "The cat saw a dog.")[names.index(" saw")]
    probability = 100 * math.exp(token["logprob"])
    assert float(page.texts("#choices .head span")[0].strip("<%")) == pytest.approx(probability, rel=0.06)
    shown = page.texts("#choices .choice .piece")
    expected = [each["text"].replace(" ", "·").replace("\n", "↵") for each in token["alternatives"]]
    assert shown[: len(expected)] == expected


def test_choosing_an_alternative_branches_from_there(page: "Page", post: Post) -> None:
    """From exactly this token, also where the tokenizer would split the text before it differently."""
    page.type("The cat")
    page.set(temperature=2, top_p=1, max_tokens=12)
    page.write()
    (request,) = page.continuations()
    tokens = post("/v1/completions", request | {"stream": False})["choices"][0]["tokens"]
    ids = [*request["prompt"], *(token["id"] for token in tokens)]
    assert ids_of(post, page.text) != ids
    before, place = page.text, next(place for place in reversed(range(12)) if tokens[place]["text"])
    other = next(each for each in tokens[place]["alternatives"] if each["id"] != tokens[place]["id"])
    page.select(len(before) - 1, len(before) - 1)
    page[TEXT].send_keys(ALT + DOWN)
    page.until(lambda: page["#choices"].is_displayed())
    name = other["text"].replace(" ", "·").replace("\n", "↵").replace("\t", "→")
    with page.writing():
        page.all(".choice")[page.texts(".choice .piece").index(name)].click()
    branch = page.continuations()[1]
    assert branch["prompt"] == [*ids[: place - 12], other["id"]]
    start = before.removesuffix(tokens[place]["text"])
    assert page.text == start + ("" if other["text"].startswith("<") else other["text"]) + written(post, branch)
    page["#undo"].click()
    page.until(lambda: page.text == before)


def test_alternatives_with_the_keyboard(page: "Page") -> None:
    page.type("The cat saw a dog.")
    page.set(max_tokens=5)
    page.settled()
    page.select(8, 8)
    page[TEXT].send_keys(ALT + DOWN)
    page.until(lambda: page["#choices"].is_displayed())
    assert page.run("return document.activeElement.matches('.choice')")
    page.press(ESCAPE)
    page.until(lambda: not page["#choices"].is_displayed())
    assert page.driver.switch_to.active_element == page[TEXT]
    page[TEXT].send_keys(ALT + DOWN)
    page.press(UP)
    page.press(DOWN)
    chosen = page.run("return document.activeElement.querySelector('.piece').textContent")
    with page.writing():
        page.press(ENTER)
    assert page.text.startswith(("The cat" + chosen).replace("·", " ").replace("↵", "\n"))


def test_a_tap_shows_the_alternatives(page: "Page") -> None:
    page.type("The cat saw a dog.")
    page.settled()
    page.narrow()
    page.tap(" saw")
    page.until(lambda: page["#choices"].is_displayed())
    assert "·saw" in page.texts("#choices .head")[0]


def test_two_models_with_the_same_seed(page: "Page", post: Post) -> None:
    page.type("The cat")
    page["#compare"].click()
    page.until(lambda: len(page.all(TEXT)) == 2 and page.text_of(1) == "The cat")
    page.choose_model("chatty", pane=1)
    page.type(" saw", pane=1)
    page.until(lambda: page.text == "The cat saw")
    page.set(max_tokens=8)
    page.write()
    requests = sorted(page.continuations(), key=lambda request: str(request["model"]), reverse=True)
    assert [request["model"] for request in requests] == ["tiny", "chatty"]
    assert requests[0]["seed"] == requests[1]["seed"] == page.seed()
    for pane, request in enumerate(requests):
        assert request["prompt"] == ids_of(post, "The cat saw", request["model"])
        assert page.text_of(pane) == "The cat saw" + written(post, request)
    page["#restart"].click()
    page.until(lambda: [page.text_of(0), page.text_of(1)] == ["The cat saw"] * 2)
    page["#compare"].click()
    page.until(lambda: len(page.all(TEXT)) == 1)


@pytest.mark.parametrize("text", ["从前有一只小狗。🙂 é\n\n  two  spaces\t.", "<E4> <|endoftext|> <b>"])
def test_any_text_can_be_typed_and_continued(text: str, page: "Page", post: Post) -> None:
    page.paste(text)
    page.choose_model("long")
    page.set(max_tokens=5)
    page.write()
    (request,) = page.continuations()
    assert request["prompt"] == ids_of(post, text, "long")
    assert page.text.startswith(text)
    page.paste(again := page.text + "!")
    page.write()
    assert page.continuations()[1]["prompt"] == ids_of(post, again, "long")
