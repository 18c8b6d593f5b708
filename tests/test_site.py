"""The website and the files of the community are complete: what can be known without building the site.

`make docs` checks the rest: it builds with warnings as errors.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mkdocs_hooks
import pytest
import yaml

import lit_lm
from lit_lm.cli import COMMANDS

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def leaves(nav: Any) -> Iterator[str]:
    """Pages of a part of the navigation."""
    if isinstance(nav, str):
        yield nav
        return
    for part in nav.values() if isinstance(nav, dict) else nav:
        yield from leaves(part)


@pytest.fixture(scope="module")
def nav() -> set[str]:
    """Pages in the navigation."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    mkdocs_hooks.fill(config["nav"])
    return set(leaves(config["nav"]))


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """All generated pages, with stand-ins for what the commands print, which takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mkdocs_hooks, "printed", lambda args: f"printed by {' '.join(args)}\n")
        return mkdocs_hooks.pages()


def test_every_page_is_in_the_navigation(nav: set[str], pages: dict[str, str]) -> None:
    written = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert not written & pages.keys(), "a generated page would replace one in docs/"
    assert nav == written | {name for name in pages if not name.startswith("source/")}


def test_every_command_has_a_page(pages: dict[str, str]) -> None:
    for command in COMMANDS:
        assert f"printed by {command} --help\n" in pages[f"commands/{command}.md"]


def test_a_page_has_what_the_command_prints() -> None:
    page = mkdocs_hooks.command_page("tokenizer")
    for command in ("train", "encode", "decode", "info"):
        assert f"## lit-lm tokenizer {command}\n" in page
        assert f"usage: lit-lm tokenizer {command} " in page


def test_a_command_that_fails_ends_the_build() -> None:
    with pytest.raises(SystemExit):
        mkdocs_hooks.printed(["tokenizer", "info"])


def test_every_config_has_a_section(pages: dict[str, str]) -> None:
    sections = re.split(r"^## ", pages["recipes.md"], flags=re.MULTILINE)[1:]
    configs = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "configs").glob("*.yaml")}
    assert sorted(section.split("\n")[0] for section in sections) == sorted(configs)
    for section in sections:
        name = section.split("\n")[0]
        (shown,) = re.findall(r"^```yaml .*?\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        assert yaml.safe_load(shown) == yaml.safe_load(configs[name])
        (about,) = re.findall(r"^# (.*)$", configs[name], re.MULTILINE)[:1]
        assert about in section
        assert about not in shown


def test_every_public_name_links_to_its_reference(pages: dict[str, str]) -> None:
    names = re.findall(r"^\| \[`(\w+)`\]\[([\w.]+)\]", pages["api/lit_lm.md"], re.MULTILINE)
    described = set(re.findall(r"^::: (\S+)", "\n".join(pages.values()), re.MULTILINE))
    assert [name for name, _ in names] == lit_lm.__all__
    assert {link.rpartition(".")[0] for _, link in names} <= described


@pytest.mark.parametrize(
    ("target", "page", "link"),
    [
        ("docs/exact.md", "index.md", "exact.md"),
        ("docs/speed.png", "zh.md", "speed.png"),
        ("README.zh-CN.md", "index.md", "zh.md"),
        ("data.md", "exact.md", "data.md"),
        ("../README.md", "exact.md", "index.md"),
        ("../lit_lm/checkpoint.py", "security.md", "source/lit_lm/checkpoint.py.md"),
        ("https://example.com/docs/exact.md", "index.md", "https://example.com/docs/exact.md"),
        ("no-such-file.md", "index.md", "no-such-file.md"),
        ("configs", "index.md", "recipes.md"),
        ("notebooks", "zh.md", "notebooks/index.md"),
        ("../docs/data.md", next(iter(mkdocs_hooks.NOTEBOOKS)), "../data.md"),
        ("../" + next(iter(mkdocs_hooks.NOTEBOOKS.values())), "data.md", next(iter(mkdocs_hooks.NOTEBOOKS))),
    ],
)
def test_links_lead_to_the_page_of_a_file(target: str, page: str, link: str) -> None:
    written = f"See [this]({target}#part) and [that]({target})."
    changed = mkdocs_hooks.on_page_markdown(written, page=_page(page), config=None, files=None)
    assert changed == f"See [this]({link}#part) and [that]({link})."


def test_bars_in_code_in_tables_are_shown_as_on_github() -> None:
    written = "| `a \\| b` | c \\| d |\n\n`a \\| b`\n"
    changed = mkdocs_hooks.on_page_markdown(written, page=_page("data.md"), config=None, files=None)
    assert changed == "| `a | b` | c \\| d |\n\n`a \\| b`\n"


def test_linked_sources_have_pages(pages: dict[str, str]) -> None:
    source = (ROOT / "lit_lm" / "checkpoint.py").read_text(encoding="utf-8")
    assert source in pages["source/lit_lm/checkpoint.py.md"]  # linked from security.md


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    links = mkdocs_hooks.LINK.findall((ROOT / name).read_text(encoding="utf-8"))
    assert all("://" in link or (ROOT / link).is_file() for link in links)


def test_version_and_date_of_the_release_are_the_same_everywhere() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## (\S+) - (\S+)$", changelog, re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert releases[0] == (VERSION, str(citation["date-released"]))
    assert citation["version"] == VERSION


def _page(name: str) -> Any:
    return SimpleNamespace(file=SimpleNamespace(src_uri=name), parent=None, meta={})
