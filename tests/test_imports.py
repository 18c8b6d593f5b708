"""Imports point down only: the layers of the project, in order."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "lit_lm"
LAYERS = [
    {"model", "optim", "tokenizer", "files"},
    {"checkpoint", "data"},
    {"runs", "inference"},
    {"training"},
    {"cli"},
    {"__main__", "__init__"},
]
"""Each may import those before it; those of one layer know nothing of each other."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(str(node.module))
    return found


def room(name: str) -> str:
    """The folder or file of the project that a module lies in."""
    return name.split(".")[1] if "." in name else "__init__"


TO_BE_CUT = {"data/datamodule.py", "inference/predict.py"}  # predict is still spread over both


@pytest.mark.parametrize("file", [file for file in FILES if str(file) not in TO_BE_CUT], ids=str)
def test_a_module_imports_only_from_the_layers_below(file: Path) -> None:
    own = file.parts[0].removesuffix(".py")
    for name in imports(file):
        if name.startswith("lit_lm") and room(name) != own:
            assert LEVEL[room(name)] < LEVEL[own], f"{file} imports {name}"


def packages(*folders: str) -> set[str]:
    """The packages from outside that the modules of some folders import."""
    names = {name.partition(".")[0] for file in FILES if file.parts[0] in folders for name in imports(file)}
    return names - {"lit_lm"}


def test_the_model_needs_torch_alone() -> None:
    assert packages("model") <= {"torch", "math", "dataclasses", "typing", "collections", "functools", "time"}


def test_training_is_the_only_room_of_lightning_below_the_commands() -> None:
    allowed = {"inference/predict.py", "data/datamodule.py", "data/streaming.py", "data/windows.py"}
    users = {str(file) for file in FILES if {name.partition(".")[0] for name in imports(file)} & {"lightning"}}
    assert {name for name in users if name.split("/")[0] not in ("training", "cli")} == allowed
