"""The layers of the project: modules import only from lower layers, and no imports are circular."""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "lit_lm"
LAYERS = [
    {"optim", "tokenizer", "errors", "files", "memory"},
    {"kernels"},
    {"model"},
    {"checkpoint_schema"},
    {"checkpoint", "data"},
    {"runs"},
    {"inference"},
    {"evaluation", "interop", "planning", "serve", "training"},
    {"cli"},
    {"__main__", "__init__"},
]
"""From lowest to highest. Each imports only from the layers before it, and not within its own."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
MODULES = {".".join(("lit_lm", *file.with_suffix("").parts)).removesuffix(".__init__"): file for file in FILES}


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(name: str) -> str:
    """Top-level folder or file of lit_lm that contains a module."""
    return name.split(".")[1] if "." in name else "__init__"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_module_imports_only_from_the_layers_below(file: Path) -> None:
    own = file.parts[0].removesuffix(".py")
    for name in imports(file):
        if name.startswith("lit_lm") and room(name) != own:
            assert LEVEL[room(name)] < LEVEL[own], f"{file} imports {name}"


def test_no_imports_are_circular() -> None:
    """Also within a folder, and also for imports inside functions."""
    graph = {name: imports(file) & MODULES.keys() for name, file in MODULES.items()}
    assert graph["lit_lm.optim"] >= {"lit_lm.optim.adamw", "lit_lm.optim.muon"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


def packages(*folders: str) -> set[str]:
    """External packages that the modules in some folders import."""
    names = {name.partition(".")[0] for file in FILES if file.parts[0] in folders for name in imports(file)}
    return names - {"lit_lm", *sys.stdlib_module_names}


def test_the_model_imports_only_torch() -> None:
    assert packages("model") == packages("optim") == {"torch"}


def all_imports(module: str) -> tuple[set[str], set[str]]:
    """The modules of lit_lm that a module imports, directly or indirectly, and the packages that these import."""
    seen, waiting = set[str](), [module]
    while waiting:
        name = waiting.pop()
        if name in MODULES and name not in seen:
            seen.add(name)
            waiting += imports(MODULES[name])
    return seen, {name.partition(".")[0] for name in seen for name in imports(MODULES[name])}


def test_plan_does_not_import_lightning() -> None:
    seen, outside = all_imports("lit_lm.cli.plan")
    assert "lit_lm.planning.speed" in seen
    assert "lightning" not in outside


def test_generate_imports_neither_lightning_nor_data_and_training() -> None:
    seen, outside = all_imports("lit_lm.cli.generate")
    assert "lit_lm.inference.native.engine" in seen
    assert "lightning" not in outside
    assert not {name for name in seen if name.startswith(("lit_lm.data", "lit_lm.training"))}
