"""Hooks of MkDocs (mkdocs.yml): pages made from files outside of docs/ and from the code, and the links to them.

Links are written for a reader of the repository. On the site, a link out of docs/ leads to the page made from the file:
the start page for README.md, else a page with the source.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import posixpath
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from urllib.parse import unquote

import lit_lm
from lit_lm.__main__ import main
from lit_lm.cli import COMMANDS, data, tokenizer

if TYPE_CHECKING:  # the tests run without mkdocs
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = {f"notebooks/{path.stem}.md": f"notebooks/{path.name}" for path in sorted(ROOT.glob("notebooks/*.ipynb"))}
COPIES = {
    "index.md": "README.md",
    "zh.md": "README.zh-CN.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    **NOTEBOOKS,
}
"""Pages that are files outside of docs/."""
FOLDERS = {"recipes.md": "configs", "notebooks/index.md": "notebooks"}
"""Pages that describe folders."""
CURVES = {"quick": "loss_curves.png", "chinese": "loss_curves_chinese.png"}
"""Pictures of the loss curves of recipes, in docs/."""
MORE_HELP = {
    "fit": ["--help.trainer"],
    "data": [f"{name} --help" for name in data.LOOKS],
    "tokenizer": [f"{name} --help" for name in tokenizer.COMMANDS],
}
"""Arguments with which a command prints more help."""
API = {
    "lit_lm": ("cli.train", "training.run", "inference.language_model"),
    "lit_lm.model": ("config", "transformer", "layers", "losses", "cost"),
    "lit_lm.optim": ("adamw", "muon", "sgd", "schedules", "groups"),
    "lit_lm.tokenizer": ("tokenizer", "detokenizer"),
    "lit_lm.data": ("datamodule",),
    "lit_lm.training": ("module", "checkpointing"),
    "lit_lm.inference": ("sampling", "text", "text_metrics"),
}
"""Modules that the Python reference describes, by page."""
LINK = re.compile(r"(?<=\]\()([^)\s#]+)")
TABLE_ROW = re.compile(r"^\|.*$", re.MULTILINE)
CODE = re.compile(r"`[^`\n]+`")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the navigation, and make anchors as GitHub does."""
    from pymdownx.slugs import slugify

    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    fill(config.nav or [])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for name, content in pages().items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change the links of a page from paths in the repository to pages of the site.

    In code in a table, GitHub takes `\\|` for a bar, but Python-Markdown takes a bar.
    """
    if page.parent is None:  # it has no section to navigate in
        page.meta["hide"] = ["navigation"]
    name = page.file.src_uri
    folder = (ROOT / COPIES.get(name, f"docs/{name}")).parent
    markdown = TABLE_ROW.sub(lambda row: CODE.sub(lambda code: code[0].replace(r"\|", "|"), row[0]), markdown)
    return LINK.sub(lambda match: site_link(match[1], folder, name), markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Declare the language of the Chinese page: browsers choose the shapes of characters by it."""
    return output.replace('<html lang="en"', '<html lang="zh-CN"', 1) if page.file.src_uri == "zh.md" else output


def pages() -> dict[str, str]:
    """All generated pages: name and Markdown."""
    return {
        **{name: text_of(path) for name, path in COPIES.items()},
        **{page_of(path): source_page(path) for path in linked_sources()},
        **{f"commands/{name}.md": command_page(name) for name in COMMANDS},
        **{f"api/{package}.md": api_page(package) for package in API},
        "recipes.md": recipes_page(),
        "notebooks/index.md": notebooks_page(),
    }


def fill(nav: list[Any]) -> None:
    """Fill the sections of the navigation whose pages are generated."""
    filled = {
        "Commands": [f"commands/{name}.md" for name in COMMANDS],
        "Python": [f"api/{package}.md" for package in API],
        "Notebooks": ["notebooks/index.md", *NOTEBOOKS],
    }
    for section in nav:
        section.update({title: filled[title] for title in section.keys() & filled.keys()})


def page_of(path: str) -> str:
    """Name of the page made from a file or folder of the repository."""
    for name, copied in (COPIES | FOLDERS).items():
        if path == copied:
            return name
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md"


def linked_path(link: str, folder: Path) -> str | None:
    """Path in the repository that a link in a file of `folder` leads to; None: it leads elsewhere, or nowhere."""
    file = (folder / unquote(link)).resolve()
    return file.relative_to(ROOT).as_posix() if file.exists() and file.is_relative_to(ROOT) else None


def site_link(link: str, folder: Path, page: str) -> str:
    """The link from `page` to the page made from what `link` in a file of `folder` leads to."""
    path = linked_path(link, folder)
    return link if path is None else posixpath.relpath(page_of(path), posixpath.dirname(page))


def linked_sources() -> set[str]:
    """Files of the repository that pages link to, and that are no pages otherwise."""
    written = [*COPIES.values(), *(f"docs/{file.name}" for file in ROOT.glob("docs/*.md"))]
    links = [(link, (ROOT / path).parent) for path in written for link in LINK.findall(text_of(path))]
    paths = {path for link, folder in links if (path := linked_path(link, folder))}
    return {path for path in paths if page_of(path).startswith("source/") and (ROOT / path).is_file()}


def text_of(path: str) -> str:
    """Markdown of a page or a notebook of the repository."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if not path.endswith(".ipynb"):
        return text
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    return "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells)


def source_page(path: str) -> str:
    """Page with the source of a file."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n``````{Path(path).suffix[1:]}\n{text}\n``````\n"


def recipes_page() -> str:
    """Page with a section for each config."""
    sections = [recipe(path) for path in sorted((ROOT / "configs").glob("*.yaml"))]
    return "\n\n".join(["# Recipes", "Complete configs for `lit-lm fit`, in `configs/`.", *sections])


def recipe(path: Path) -> str:
    """Section of a config: its first comment as text and commands, the config, and its loss curves."""
    text = path.read_text(encoding="utf-8")
    comment, config = re.fullmatch(r"((?:#[^\n]*\n)+)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    lines = [line.removeprefix("#") for line in comment.splitlines()]
    about = " ".join(line.strip() for line in lines if not line.startswith("   "))
    commands = "\n".join(line.strip() for line in lines if line.startswith("   "))
    parts = [f"## {path.stem}", about, f"```sh\n{commands}\n```", f'```yaml title="configs/{path.name}"\n{config}```']
    if path.stem in CURVES:
        parts.append(f"![loss curves of {path.stem}]({CURVES[path.stem]})")
    return "\n\n".join(parts)


def notebooks_page() -> str:
    """Page with a list of the notebooks."""
    titles = {name: text_of(path).partition("\n")[0].removeprefix("# ") for name, path in NOTEBOOKS.items()}
    links = "\n".join(f"- [{title}]({posixpath.basename(name)})" for name, title in titles.items())
    return f"# Notebooks\n\nOpen the folder `notebooks/` with Jupyter to run them.\n\n{links}\n"


def command_page(name: str) -> str:
    """Page with all help of a command."""
    parts = [f"# lit-lm {name}", f"```text\n{printed([name, '--help'])}```"]
    for args in MORE_HELP.get(name, ()):
        parts += [f"## lit-lm {name} {args.removesuffix(' --help')}", f"```text\n{printed([name, *args.split()])}```"]
    return "\n\n".join(parts)


def printed(args: Sequence[str]) -> str:
    """What a command prints on a terminal of 80 columns."""
    with redirect_stdout(io.StringIO()) as out, patch.dict(os.environ, COLUMNS="80"):
        try:
            main(args)
        except SystemExit as exited:
            if exited.code:
                raise
    return out.getvalue()


def api_page(package: str) -> str:
    """Reference of some modules of a package."""
    parts = [f"# {package}", inspect.getdoc(import_module(package)) or ""]
    if package == "lit_lm":
        parts.append(public_names())
    return "\n\n".join([*parts, *(f"::: {package}.{module}" for module in API[package])])


def public_names() -> str:
    """Table of the names that `import lit_lm` provides, each with a link to its reference."""
    rows = ["| name | |", "|---|---|"]
    for name in lit_lm.__all__:
        value = getattr(lit_lm, name)
        summary = (inspect.getdoc(value) or "").partition("\n")[0]
        rows.append(f"| [`{name}`][{value.__module__}.{value.__qualname__}] | {summary} |")
    return "\n".join(rows)
