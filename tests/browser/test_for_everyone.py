"""The page for everyone: in two languages, light and dark, narrow, without a mouse, without eyes; and when it fails."""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser.server import serving

import lit_lm

if TYPE_CHECKING:
    from browser.page import Page
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.skipif(os.environ.get("BROWSER_TESTS") != "1", reason="run by make browser")

CONTROL, ENTER, ESCAPE, TAB = "\ue009", "\ue007", "\ue00c", "\ue004"
TEXT = ".paper textarea"
VIEWS = ("write", "tokens", "attention", "chat")
IN_SIGHT = """
const inSight = [...document.querySelectorAll("button, select, input, textarea, summary, .chip[tabindex='0']")]
  .filter((each) => each.checkVisibility() && each.tabIndex >= 0);
"""


def test_every_name_has_words_in_both_languages() -> None:
    page = Path(lit_lm.__file__).parent / "serve" / "page"
    strings = (page / "strings.js").read_text(encoding="utf-8")
    english, chinese = (re.findall(r'^  "?([\w-]+)"?:', part, re.MULTILINE) for part in strings.split("const chinese"))
    assert english == chinese
    used = set(re.findall(r'data-\w+="([\w-]+)"', (page / "index.html").read_text(encoding="utf-8")))
    used -= set(VIEWS)
    script = (page / "page.js").read_text(encoding="utf-8")
    used |= set(re.findall(r'\b(?:say|show)\("([\w-]+)"', script)) | {"busy", "refused", "failed", "lost", "locked"}
    assert used <= set(english)
    used |= {f"{name}-hint" for name in english}
    assert [name for name in english if name not in used and not re.search(rf"\b{name}\b", script)] == []


def test_it_speaks_the_browsers_language_and_the_other_one(page: "Page") -> None:
    assert page["#go"].text == "Continue"
    page["#language"].click()
    assert page["#go"].text == "续写"
    assert page.run("return document.documentElement.lang") == "zh-CN"
    left = page.run("return document.body.innerText")
    names = "lit lm tiny long chatty English Top Min Ctrl Enter Esc Alt serve"
    assert set(re.findall(r"[A-Za-z]{2,}", left)) <= set(names.split())
    page.reload()
    assert page["#go"].text == "续写"
    page["#language"].click()
    assert page["#go"].text == "Continue"


def test_a_chinese_browser_gets_chinese(page: "Page") -> None:
    agent = {"userAgent": page.run("return navigator.userAgent"), "acceptLanguage": "zh-CN"}
    page.driver.execute_cdp_cmd("Emulation.setUserAgentOverride", agent)
    page.reload()
    assert page["#go"].text == "续写"
    page.driver.execute_cdp_cmd("Emulation.setUserAgentOverride", agent | {"acceptLanguage": "en-US"})


def test_light_and_dark(page: "Page") -> None:
    def is_dark() -> bool:
        color = page.run("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", color)[:3])) < 384

    for scheme in ("dark", "light"):
        page.prefer(scheme)
        page.until(lambda scheme=scheme: is_dark() == (scheme == "dark"))
    page["#theme"].click()
    assert is_dark()
    page.reload()
    assert is_dark()
    page["#theme"].click()
    assert not is_dark()


def test_settings_are_remembered_and_texts_are_not(page: "Page") -> None:
    page.type("The cat")
    page.set(temperature=0.3)
    page.write()
    page.reload()
    assert page.text == ""
    assert page["#temperature"].get_property("value") == "0.3"
    kept = "[{...localStorage}, {...sessionStorage}, location.href, document.cookie]"
    assert "cat" not in page.run(f"return JSON.stringify({kept})")
    page["#defaults"].click()
    assert page["#temperature"].get_property("value") == "0.8"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_narrow_window(language: str, page: "Page") -> None:
    page.narrow(360)
    if language == "zh":
        page["#language"].click()
    page.type("The cat saw a dog.")
    page.write()
    page["#compare"].click()
    page["#settings summary"].click() if not page["#temperature"].is_displayed() else None
    for view in VIEWS:
        page.view(view)
        page.settled()
        assert page.run("return document.documentElement.scrollWidth") == 360
        outside = (
            IN_SIGHT
            + """
        return inSight.filter((each) => {
          each.scrollIntoView({block: "center"});
          const {left, right, top, bottom} = each.getBoundingClientRect();
          const hit = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
          const reached = each.contains(hit) || hit?.closest("label")?.contains(each);
          return left < 0 || right > 360 || !reached;
        }).map((each) => each.outerHTML)"""
        )
        assert page.run(outside) == []


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("text", ["It was a long day. " * 40, "从前有一只小狗。" * 40, "line\n\n" * 9, "x" * 500])
def test_the_text_lies_where_its_shades_lie(width: int, text: str, page: "Page") -> None:
    """The textarea breaks lines like the mirror behind it: its own height, without that of the mirror, is the same."""
    page.narrow(width)
    page.choose_model("long")
    page.paste(text)
    page.settled()
    heights = """
    const [area, mirror] = [document.querySelector(".paper textarea"), document.querySelector(".mirror")];
    area.style.height = "1px"; // so that its scroll height is that of its text
    mirror.style.height = "auto";
    mirror.style.alignSelf = "start";
    return [area.scrollHeight, mirror.offsetHeight]"""
    assert page.run("return document.documentElement.scrollWidth") == width
    area, mirror = page.run(heights)
    assert area == mirror


FOCUS = """
const each = document.activeElement;
if (each === document.body) return null;
window.reached.add(nameOf(each));
const shown = each.name === "view" ? each.nextElementSibling : each.closest(".pane:has(textarea:focus)") ?? each;
const style = getComputedStyle(shown);
return [each.outerHTML, style.outlineStyle !== "none" || style.boxShadow !== "none"];
"""


def test_every_control_can_be_reached_with_the_keyboard(page: "Page") -> None:
    # all radio buttons of a name are one stop
    page.run("window.nameOf = (each) => each.name || each.id || each.classList[0] || each.tagName")
    page.type("The cat saw a dog.")
    for view in VIEWS:
        page.view(view)
        page.settled()
        expected = set(page.run(IN_SIGHT + "return inSight.map(nameOf)"))
        page.run("document.activeElement.blur(); window.reached = new Set()")
        for _ in range(len(expected) + 10):
            page.press(TAB)
            focus = page.run(FOCUS)
            assert focus is None or focus[1], f"{focus} has the focus, and nothing shows it"
        assert expected <= set(page.run("return [...window.reached]"))


def test_everything_has_a_name_and_the_new_text_is_read_once(page: "Page") -> None:
    page.type("The cat saw")
    page.write()
    assert "".join(page.texts("#spoken p")) == page.text.removeprefix("The cat saw")
    assert page["#spoken"].get_attribute("aria-live") == "polite"
    assert not page.all(".paper [aria-live]")
    controls = {"button", "slider", "combobox", "textbox", "radio", "checkbox", "spinbutton", "log", "toolbar"}
    for view in VIEWS:
        page.view(view)
        page.settled()
        nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        found = [node for node in nodes if not node["ignored"] and node["role"]["value"] in controls]
        assert len(found) > 10
        assert [node for node in found if not node.get("name", {}).get("value", "").strip()] == []


def stream(*texts: str) -> str:
    """A stream of these tokens."""
    chunks = []
    for text in texts:
        token = {"id": 1, "text": text, "logprob": -1.0, "alternatives": [{"id": 1, "text": text, "logprob": -1.0}]}
        reason = "stop" if text is texts[-1] else None
        chunks.append({"choices": [{"text": text, "index": 0, "finish_reason": reason, "tokens": [token]}]})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def test_screen_readers_get_whole_sentences(page: "Page") -> None:
    page.answer_with(stream("The dog ran.", " “Stop", "!” it", " said. ", "小狗跑", "了。小", "猫"))
    page.write()
    assert page.texts("#spoken p") == ["The dog ran.", " “Stop!”", " it said.", " 小狗跑了。", "小猫"]


def luminance(color: str) -> float:
    """Relative luminance (https://www.w3.org/TR/WCAG22/#dfn-relative-luminance)."""
    parts = [float(part) for part in re.findall(r"[\d.]+", color)][:3]
    if not color.startswith("color("):
        parts = [part / 255 for part in parts]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


COLORS = """
const found = [];
for (const each of document.querySelectorAll("body *:not(textarea, option)")) {
  const own = [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !each.checkVisibility() || each.closest(".unseen, .mirror")) continue;
  let behind = each;
  const background = () => getComputedStyle(behind).backgroundColor;
  while (/^rgba\\(.*, 0\\)$/.test(background())) behind = behind.parentElement;
  found.push([each.outerHTML.slice(0, 80), getComputedStyle(each).color, background()]);
}
const probe = document.body.appendChild(document.createElement("i"));
const named = (name) => { probe.style.color = `var(--${name})`; return getComputedStyle(probe).color; };
for (const ink of ["ink", "typed"]) {
  for (const paper of ["paper", "shade-1", "shade-2", "shade-3", "shade-4"]) {
    found.push([`${ink} on ${paper}`, named(ink), named(paper)]);
  }
}
found.push(["placeholder", named("quiet"), named("paper")]);
probe.remove();
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme: str, page: "Page") -> None:
    page.prefer(scheme)
    page.type("The cat saw a dog.")
    page.choose_model("chatty")
    for view in VIEWS:
        page.view(view)
        page.settled()
        if view == "attention":
            page.until(lambda: page.all(".looked-at"))
        pairs: list[Any] = page.run(COLORS)
        assert len(pairs) > 20
        assert [pair for pair in pairs if contrast(pair[1], pair[2]) < 4.5] == []


def test_what_a_model_writes_is_text(page: "Page") -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(1)</script>"
    page.answer_with(stream(evil, evil + "!"))
    page.write()
    assert page.status == "The model has ended the text."
    page.until(lambda: page.text == f"{evil}{evil}!")
    page.view("tokens")
    page.until(lambda: page.all(".chip"))
    page.all(".chip")[1].click()
    page.until(lambda: page["#choices"].is_displayed())
    assert page.texts(".choice .piece") == [evil.replace(" ", "·") + "!"]
    assert page.all("img, main script") == []


def test_a_busy_server(page: "Page") -> None:
    page.answer_with({}, 429, **{"Retry-After": "7"})
    page.write()
    assert "Try again in 7 s." in page["#alert"].text
    assert page.status == "Stopped."
    page["#alert button"].click()
    assert page["#alert"].text == ""


def test_a_request_that_the_server_refuses(page: "Page") -> None:
    page.answer_with({"error": {"message": "the moon is full"}}, 400)
    page.type("The cat")
    page.write()
    assert "The server refused the request: the moon is full" in page["#alert"].text
    assert page.text == "The cat"
    page.answer_with('data: {"error": {"message": "the model failed"}}\n\n')
    page.paste("")
    page.write()
    assert "the model failed" in page["#alert"].text


def test_a_stream_that_breaks_off(page: "Page") -> None:
    page.answer_with(stream("The dog", " ran").removesuffix("data: [DONE]\n\n"))
    page.write()
    assert "The connection to the server was lost." in page["#alert"].text
    page.until(lambda: page.text == "The dog ran")


def test_a_text_that_does_not_fit(page: "Page") -> None:
    page.type("The cat saw a dog. " * 10)
    page.write()
    assert "The context of 32 tokens is full." in page.status


def test_the_connection_is_lost_while_the_model_writes(driver: "Chrome", checkpoints: list[Path]) -> None:
    from browser.page import Page

    with serving(checkpoints[1], slow=True) as (address, process):
        page = Page(driver, address)
        page.type("The cat")
        page.set(temperature=0, max_tokens=2000)
        with page.writing():
            page["#go"].click()
            page.until(lambda: len(page.text) > 30)
            process.kill()
        assert "The connection to the server was lost." in page["#alert"].text
        assert len(page.text) > 30
        page.write()
        assert "The connection to the server was lost." in page["#alert"].text
        assert page.problems() != []  # the browser says so, too


def test_one_model_that_does_not_chat(driver: "Chrome", tiny: Path) -> None:
    """There is nothing to compare it with, and no chat."""
    from browser.page import Page

    with serving(tiny) as (address, _):
        page = Page(driver, address)
        page.until(lambda: "tiny: " in page.texts(".facts")[0])
        for selector in ("#compare", "#chat-view", ".models"):
            assert not page[selector].is_displayed()


def test_a_server_with_a_key(driver: "Chrome", tiny: Path) -> None:
    from browser.page import Page

    with serving(tiny, "--api_key=open-sesame") as (address, _):
        page = Page(driver, address, key="open-sesame")
        page.type("The cat")
        page.write()
        assert len(page.text) > len("The cat")
        assert "sesame" not in page.run("return JSON.stringify([{...localStorage}, {...sessionStorage}])")
        assert all("401" in problem for problem in page.problems())


def test_nothing_comes_from_elsewhere(page: "Page") -> None:
    page.write()
    sources = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(sources) > 4
    assert all(source.startswith(page.url) for source in sources)
