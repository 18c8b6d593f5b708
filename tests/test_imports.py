"""The directions in which modules may import each other: down only."""

import ast
from pathlib import Path

import pytest

import lit_lm

ROOT = Path(lit_lm.__file__).parent
LEAVES = {
    "layers",
    "losses",
    "machine",
    "optim",
    "schedules",
    "story_metrics",
    "text.training",
    "data.files",
    "data.order",
    "data.stories",
    "terminal.options",
}
MAY_IMPORT = {
    "data.prompts": {"text.tokenizer"},
    "model": {"layers"},
    "muon": {"optim"},
    "metrics": {"model"},
    "generation.sampling": {"layers"},
    "generation.continuation": set(),
    "generation.weights": {"layers", "model"},
    "generation.native": {"generation.weights", "model"},
    "generation.decoder": {"generation", "generation.native", "generation.weights", "layers", "model"},
    "generation.beams": {"generation.continuation", "generation.decoder", "generation.sampling"},
    "generation.decoding": {
        "generation.beams",
        "generation.continuation",
        "generation.decoder",
        "generation.sampling",
        "model",
    },
    "generation": {f"generation.{name}" for name in ("continuation", "decoder", "decoding", "sampling", "weights")},
    "text.formats": {"text.training"},
    "text.tokenizer": {"text.formats", "text.training"},
    "checkpoint": {"model", "text.tokenizer"},
    "module": {"model", "losses", "machine", "muon", "optim", "schedules", "metrics", "generation", "text_generation"},
    "data.readers": {"data.files", "text.tokenizer"},
    "data.ids": {"data.files"},
    "data.sources": {"data.files", "data.ids", "data.readers", "data.stories"},
    "data.tokenize": {"data.readers", "text.formats", "text.tokenizer"},
    "data.token_store": {"data.files", "data.tokenize", "text.tokenizer"},
    "data.corpus": {
        "data.files",
        "data.ids",
        "data.readers",
        "data.sources",
        "data.token_store",
        "data.tokenize",
        "text.tokenizer",
        "text.training",
    },
    "data.windows": {"data.order", "data.token_store"},
    "data.streaming": {"data.order", "data.readers", "data.sources", "data.windows", "text.tokenizer"},
    "data.datamodule": {
        "data.corpus",
        "data.order",
        "data.prompts",
        "data.sources",
        "data.streaming",
        "data.token_store",
        "data.windows",
        "text.tokenizer",
        "text.training",
    },
    "data.inspection": {"data.datamodule", "data.token_store", "text.tokenizer"},
    "fault_tolerance": {"checkpoint"},
    "config_checks": {"checkpoint", "data.datamodule", "generation", "model"},
    "callbacks": {
        "data.datamodule",
        "data.token_store",
        "fault_tolerance",
        "generation",
        "metrics",
        "module",
        "story_metrics",
    },
    "text_generation": {"generation", "text.tokenizer"},
    "terminal.display": {"generation", "text.tokenizer", "text_generation"},
    "terminal.session": {"terminal.display", "generation", "terminal.options", "text_generation"},
    "predictions": {"data.datamodule", "data.prompts", "generation", "module", "text_generation"},
    "commands.generate": {
        "checkpoint",
        "terminal.display",
        "generation",
        "terminal.options",
        "terminal.session",
        "text_generation",
    },
    "commands.tokenizer": {"data.readers", "data.sources", "text.tokenizer", "text.training"},
    "commands.data": {
        "commands.training",
        "config_checks",
        "data.corpus",
        "data.datamodule",
        "data.files",
        "data.inspection",
        "data.sources",
        "data.token_store",
        "text.tokenizer",
    },
    "commands.training": {
        "callbacks",
        "checkpoint",
        "config_checks",
        "data.datamodule",
        "data.prompts",
        "data.sources",
        "fault_tolerance",
        "generation",
        "machine",
        "module",
        "predictions",
    },
    "__main__": set(),
} | {leaf: set() for leaf in LEAVES}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
    if path.name != "__init__.py" or path.parent.name == "generation"  # the other packages are empty
}


def imports(module: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_lies_below_it(module: str) -> None:
    own = {name.removeprefix("lit_lm.") for name in imports(module) if name.startswith("lit_lm.")} & MODULES.keys()
    assert own <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", ["layers", "model"])
def test_the_model_needs_torch_alone(module: str) -> None:
    outside = {name.partition(".")[0] for name in imports(module)} - {"lit_lm", "math", "dataclasses", "typing"}
    assert outside == {"torch"}
