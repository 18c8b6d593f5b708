"""Fixtures: a server with three small models, a browser, and the page in it. `make browser` installs the browser."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import pytest
from browser.server import Post, serving
from helpers.models import make
from helpers.texts import DOCUMENTS

from lit_lm.checkpoint import read_checkpoint, weights_content, write_checkpoint
from lit_lm.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from browser.page import Page
    from selenium.webdriver import Chrome

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}assistant:"


@pytest.fixture(scope="session")
def tiny(run_folder: Path) -> Path:
    """A trained model, with a context of 32 tokens."""
    return run_folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> list[Path]:
    """The trained model; the same with a longer context; and one that chats, with random weights and a tokenizer of
    its own.
    """
    folder = tmp_path_factory.mktemp("models")
    trained = read_checkpoint(tiny)
    model = trained.transformer()
    config = replace(model.config, context_length=2048)
    write_checkpoint(weights_content(config, model.state_dict(), trained.require_tokenizer()), folder / "long.ckpt")
    model = make(vocab_size=300, context_length=256)
    content = weights_content(model.config, model.state_dict(), Tokenizer.train(DOCUMENTS, 300), TEMPLATE)
    write_checkpoint(content, folder / "chatty.ckpt")
    return [tiny, folder / "long.ckpt", folder / "chatty.ckpt"]


@pytest.fixture(scope="session")
def url(checkpoints: list[Path]) -> Iterator[str]:
    with serving(*checkpoints) as (address, _):
        yield address


@pytest.fixture(scope="session")
def post(url: str) -> Post:
    """Ask the server without the page."""

    def ask(path: str, body: object) -> Any:
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(url + path, json.dumps(body).encode(), headers), timeout=60) as response:
            return json.load(response)

    return ask


@pytest.fixture(scope="session")
def driver() -> "Iterator[Chrome]":
    from browser.page import open_browser

    driver = open_browser()
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: "Chrome", url: str) -> "Iterator[Page]":
    """The page, opened anew, in a window of 1280 x 1000 pixels. The browser must have nothing to complain about."""
    from browser.page import Page

    page = Page(driver, url)
    yield page
    page.slow(False)
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert page.problems() == []
