"""The page of `lit-lm serve` in a real browser, and what one does with it."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import alert_is_present
from selenium.webdriver.support.ui import Select, WebDriverWait

CHROMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60  # until a condition is given up
WRITING = ("Writing …", "正在写……")
TEXT = ".paper textarea"
PREPARE = """
let seed = 0;
crypto.getRandomValues = (numbers) => numbers.fill(++seed); // the same in each run of the tests
window.requests = [];
const original = window.fetch;
window.fetch = (path, options) => {
  window.requests.push([path, JSON.parse(options.body ?? null)]);
  return original(path, options);
};
"""
T = TypeVar("T")


def open_browser() -> webdriver.Chrome:
    """A Chromium without a window. It speaks English."""
    options = webdriver.ChromeOptions()
    if chromes := list(filter(None, map(shutil.which, CHROMES))):
        options.binary_location = chromes[0]  # else where chromedriver looks for it
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "lang=en-US", "window-size=1280,1000"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_script_timeout(SECONDS)
    driver.execute_cdp_cmd("Network.enable", {})
    return driver


class Page:
    """The page, opened anew."""

    def __init__(self, driver: webdriver.Chrome, url: str, *, key: str | None = None) -> None:
        self.driver, self.url = driver, url
        driver.get(f"{url}/health")  # the same origin, without the page
        driver.execute_script("localStorage.clear()")
        self.reload(key=key)

    def reload(self, *, key: str | None = None) -> None:
        """Open it anew; if the server needs a key, give a wrong one first."""
        self.driver.get(self.url)
        for answer in ("wrong", key) if key else ():
            prompt = WebDriverWait(self.driver, SECONDS).until(alert_is_present())
            prompt.send_keys(answer)
            prompt.accept()
        self.until(lambda: self.all(TEXT))
        self.run(PREPARE)

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def __getitem__(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """The text of each element, also of those that are not in sight."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return [str(text) for text in self.run(script, selector)]

    def until(self, condition: Callable[[], T]) -> T:
        """Wait until a condition holds, and return its value."""
        wait = WebDriverWait(self.driver, SECONDS, 0.02, [StaleElementReferenceException])
        found: T = wait.until(lambda _: condition())
        return found

    @property
    def text(self) -> str:
        """The text of the first pane."""
        return self.text_of(0)

    def text_of(self, pane: int) -> str:
        return str(self.all(TEXT)[pane].get_property("value"))

    @property
    def status(self) -> str:
        return str(self.run("return document.querySelector('#status').textContent"))

    def seed(self) -> int:
        return int(self["#seed"].get_property("value"))

    def requests(self, path: str) -> list[Any]:
        """What the page has sent to a path."""
        return [body for to, body in self.run("return window.requests") if to == path]

    def continuations(self) -> list[Any]:
        """The requests to write on."""
        return [body for body in self.requests("/v1/completions") if body.get("stream")]

    def type(self, text: str, pane: int = 0) -> None:
        self.all(TEXT)[pane].send_keys(text)

    def select(self, start: int, end: int) -> None:
        """Put the cursor into the text of the first pane, or select a part of it."""
        script = "arguments[0].focus(); arguments[0].setSelectionRange(arguments[1], arguments[2])"
        self.run(script, self[TEXT], start, end)

    def paste(self, text: str) -> None:
        """Replace the text of the first pane at once, which also works for characters that no key has."""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.run(script, self[TEXT], text)

    def drawn(self) -> None:
        """Wait until the page shows what it knows."""
        self.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")

    def settled(self) -> None:
        """Wait until every token has an id and a probability."""
        self.drawn()
        self.until(lambda: not self.all(".count[aria-busy=true]") and all(self.texts(".count")))

    def press(self, *keys: str) -> None:
        """Press keys, all but the last held down, wherever the focus is."""
        actions = ActionChains(self.driver)
        for key in keys[:-1]:
            actions = actions.key_down(key)
        actions = actions.send_keys(keys[-1])
        for key in keys[-2::-1]:
            actions = actions.key_up(key)
        actions.perform()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Wait until what the block has begun to write has ended."""
        self.run("document.querySelector('#status').textContent = ''")
        yield
        self.until(lambda: self.status not in ("", *WRITING))
        self.drawn()

    def write(self) -> None:
        with self.writing():
            self["#go"].click()

    def set(self, **settings: float) -> None:
        """Move sliders."""
        for name, value in settings.items():
            script = "const s = arguments[0]; s.value = arguments[1]; s.dispatchEvent(new Event('input'))"
            self.run(script, self[f"#{name}"], value)

    def keep_seed(self, seed: int) -> None:
        self["#seed"].clear()
        self["#seed"].send_keys(str(seed), Keys.ENTER)

    def choose_model(self, name: str, pane: int = 0) -> None:
        Select(self.all(".models")[pane]).select_by_visible_text(name)

    def choose(self, selector: str, name: str) -> None:
        Select(self[selector]).select_by_visible_text(name)

    def prefer(self, scheme: str) -> None:
        """What the system prefers: light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def view(self, name: str) -> None:
        self[f"input[name=view][value={name}]"].click()

    def point_at(self, word: str) -> None:
        """Move the mouse onto a word of the first pane."""
        x, y = self.run(PLACE, word)
        actions = ActionChains(self.driver)
        actions.w3c_actions.pointer_action.move_to_location(int(x) - 2, int(y) + 2)
        actions.w3c_actions.pointer_action.move_to_location(int(x), int(y))
        actions.perform()

    def tap(self, word: str) -> None:
        """Tap on a word of the first pane with a finger."""
        x, y = self.run(PLACE, word)
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
        self.driver.execute_cdp_cmd(
            "Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]}
        )
        self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})

    def narrow(self, width: int = 360) -> None:
        """A telephone's window."""
        size = {"width": width, "height": 740, "deviceScaleFactor": 2, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def slow(self, is_slow: bool = True) -> None:
        """Let a long text take a long time on its way from the server: 40 tokens or so in a second."""
        rate = 64 * 1024 if is_slow else -1
        conditions = {"offline": False, "latency": 0, "downloadThroughput": rate, "uploadThroughput": -1}
        self.driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)

    def answer_with(self, body: object, status: int = 200, **headers: str) -> None:
        """Stand in for the server from now on."""
        script = "const [b, s, h] = arguments; window.fetch = async () => new Response(b, {status: s, headers: h})"
        self.run(script, body if isinstance(body, str) else json.dumps(body), status, headers)

    def problems(self) -> list[str]:
        """What the browser has complained about, such as scripts that the server's policy forbids."""
        log: Sequence[Any] = self.driver.get_log("browser")
        return [entry["message"] for entry in log if "favicon" not in entry["message"]]


PLACE = """
const text = document.querySelector(".mirror").firstChild;
const range = document.createRange();
const start = text.data.indexOf(arguments[0]);
range.setStart(text, start);
range.setEnd(text, start + arguments[0].length);
const {left, top, width, height} = range.getBoundingClientRect();
return [left + width / 2, top + height / 2];
"""
