"""`lit-lm init`: copy the recipes, to change them."""

from argparse import ArgumentParser
from collections.abc import Sequence

from lit_lm.cli.options import Parser
from lit_lm.cli.recipes import FOLDER, recipes
from lit_lm.files import expand_home


def run(args: Sequence[str], description: str) -> None:
    """Run `lit-lm init`.

    Raises:
        ValueError, OSError: if the arguments are invalid or a file cannot be written.
    """
    folder = expand_home(_parser(description).parse_args(args[1:]).folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; pass another name")
    for path in recipes().values():
        copy = folder / path.relative_to(FOLDER)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(copy, "x", encoding="utf-8") as file:
                file.write(path.read_text(encoding="utf-8"))
            print(f"wrote {copy}")
        except FileExistsError:
            print(f"kept  {copy}, which already exists")
    print(f"next: lit-lm fit --config {folder / 'quick.yaml'}")


def _parser(description: str) -> ArgumentParser:
    parser = Parser("lit-lm init", description=description)
    parser.add_argument("folder", nargs="?", default="configs", help="folder to write to (default: %(default)s)")
    return parser
