"""`lit-lm eval`: evaluate a model on tasks of lm-evaluation-harness."""

import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from lit_lm.cli.checkpoints import BY_DEFAULT, CKPT_PATH_HELP, NAME_HELP, chosen_checkpoint
from lit_lm.cli.options import Parser
from lit_lm.evaluation import bundled
from lit_lm.files import expand_home, sha256, write_text
from lit_lm.inference.language_model import load

if TYPE_CHECKING:
    from lit_lm.evaluation.evaluate import Score

HEADINGS = ("task", "metric", "value", "stderr", "items", "chance")


def run(args: Sequence[str], description: str) -> None:
    """Run `lit-lm eval`.

    Raises:
        ValueError, OSError: if the arguments, or the files they name, are invalid.
    """
    options = make_parser(description).parse_args(args[1:])
    for name in ("limit", "batch_size"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    names = [name for given in options.tasks or bundled.groups() for name in given.split(",") if name]
    if not names:
        raise ValueError("--tasks has no names")
    output = None if options.output is None else expand_home(options.output)
    if output is not None:  # fail before the work
        if output.is_dir():
            raise ValueError(f"--output {output} is a folder; pass the name of a file")
        output.parent.mkdir(parents=True, exist_ok=True)
    path = chosen_checkpoint(options.ckpt_path, options.name)
    model = load(path, device=options.device)
    try:
        from lit_lm.evaluation.evaluate import evaluate
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is missing; pip install 'lit-lm[eval]'") from None
    if others := [name for name in names if name not in bundled.names() and not bundled.is_file(name)]:
        print(f"not bundled, looking among the harness's tasks: {', '.join(others)}", file=sys.stderr, flush=True)
    scores = evaluate(model, names, limit=options.limit, batch_size=options.batch_size)
    print(_table(scores), flush=True)
    if output is not None:
        write_text(output, _as_json(scores, path, options.limit))


def make_parser(description: str) -> Parser:
    """The parser of the command; its help starts with `description`."""
    parser = Parser("lit-lm eval", description=description)
    parser.add_argument("--ckpt_path", help=CKPT_PATH_HELP + BY_DEFAULT)
    parser.add_argument("--name", help=NAME_HELP)
    tasks = f"bundled tasks or groups ({', '.join(bundled.groups())}), YAML files, or tasks that come with "
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help=f"{tasks}lm-evaluation-harness; also separated by commas (default: all bundled ones)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N items of each task")
    device = "cpu, cuda, mps, or auto: the GPU if there is one (default: %(default)s)"
    parser.add_argument("--device", default="auto", help=device)
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="texts at once (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


def _table(scores: Iterable["Score"]) -> str:
    rows = [HEADINGS]
    for score in scores:
        stderr = "" if score.stderr is None else f"{score.stderr:.4f}"
        chance = "" if score.chance is None else f"{score.chance:.2f}"
        name = score.task if score.group is None else f"  {score.task}"
        rows.append((name, score.metric, f"{score.value:.4f}", stderr, f"{score.items}", chance))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number < 2 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _as_json(scores: Iterable["Score"], path: Path, limit: int | None) -> str:
    """The scores and what they depend on; NaN and infinity, which JSON lacks, are null."""
    content = {
        "checkpoint": {"path": str(path), "sha256": sha256(path)},
        "versions": {name: version(name) for name in ("lit-lm", "lm_eval", "torch")},
        "limit": limit,
        "scores": [
            {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in row.items()
            }
            for row in map(asdict, scores)
        ],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
