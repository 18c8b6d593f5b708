"""The script of `lit-lm completion`, made from the parsers of all commands."""

from argparse import SUPPRESS, Action, ArgumentParser, _SubParsersAction
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_lm.cli import COMMANDS, data, data_config, evaluate, export, fit, generate, plan, predict, serve, tokenizer
from lit_lm.cli.completion import SHELLS
from lit_lm.cli.mistakes import class_options, own_classes
from lit_lm.cli.options import BOOL
from lit_lm.cli.recipes import recipes
from lit_lm.evaluation import bundled

SCRIPT = r"""
_lit_lm() {
  local cur="${COMP_WORDS[COMP_CWORD]}" option="${COMP_WORDS[COMP_CWORD-1]}" before="" words="" run
  if [ "$cur" = "=" ]; then  # bash splits --name=value into three words
    cur=""
  elif [ "$option" = "=" ]; then
    option="${COMP_WORDS[COMP_CWORD-2]}"
  else
    case "$cur" in --*=*) option="${cur%%=*}"; before="$option="; cur="${cur#*=}" ;; esac
  fi
  case "$COMP_CWORD:${COMP_WORDS[1]}:$cur" in
    1:*) words="@COMMANDS@" ;;
@OPTIONS@
    *)
      case "$option" in
@VALUES@
      esac
      ;;
  esac
  COMPREPLY=($(compgen -P "$before" -W "$words" -- "$cur"))
  case "$COMP_CWORD:$option" in
    1:*) ;;
    *:--name|*:--ckpt_path)
      for run in logs/*/; do
        run="${run#logs/}"
        run="${run%/}"
        case "$run" in
          *[\$\`\\\"\'\;\&\|\<\>\(\)\*\?\ ]*) ;;  # compgen and the shell would run $(...) in a name
          "$cur"*) COMPREPLY+=("$before$run") ;;
        esac
      done ;;
  esac
}
complete -o bashdefault -o default -F _lit_lm lit-lm
"""


class Built(Exception):
    """Ends a command whose parser is built."""


def _built(kind: type[Any], *args: Any, **kwargs: Any) -> ArgumentParser:
    def stop(cli: Any, *_: Any) -> None:
        raise Built(cli.own_parser)

    try:
        type("Listed", (kind,), {"parse_arguments": stop})(*args, **kwargs)
    except Built as done:
        return done.args[0]  # type: ignore[no-any-return]
    raise AssertionError


def parsers() -> dict[str, ArgumentParser]:
    """The parser of each command, and of `data info` and `data show`."""
    return {
        "fit": _built(fit.FitCLI, "fit", [], "", run=True),
        "validate": _built(fit.EvaluateCLI, "validate", [], "", run=True),
        "test": _built(fit.EvaluateCLI, "test", [], "", run=True),
        "plan": plan.add_options(_built(fit.FitCLI, "fit", [], "", run=True)),
        "prepare": _built(data_config.DataCLI, "prepare", [], ""),
        "data": _built(data_config.DataCLI, "data show", [], ""),
        "predict": predict.make_parser(""),
        "eval": evaluate.make_parser(""),
        "generate": generate.make_parser(""),
        "serve": serve.make_parser(""),
        "tokenizer": tokenizer.make_parser(""),
        "export": export.make_parser("export", ""),
        "import": export.make_parser("import", ""),
    }


def script() -> str:
    """Collect the names and put them into the script."""
    values: dict[str, Iterable[str]] = {}
    options = []
    for command, parser in parsers().items():
        names = []
        for action in actions(parser):
            own = [name for name in action.option_strings if name.startswith("-")]  # not "seed --> model.seed"
            names += [name for name in own if not name.endswith("+")]
            values |= dict.fromkeys(own, _values(action))
        if "--trainer.max_steps" in names:
            names += ["--help.trainer", "--device", *(f"--{name}" for name in class_options())]
        options.append(_case(f"*:{command}:-*", names))
    values |= _named_values() | {"data": data.LOOKS, "tokenizer": tokenizer.COMMANDS, "completion": SHELLS}
    cases: dict[str, str] = {}
    for option, words in values.items():
        if words:
            text = " ".join(words)
            cases[text] = f"{cases[text]}|{option}" if text in cases else option
    return (
        SCRIPT.replace("@COMMANDS@", " ".join([*COMMANDS, "--help", "--version"]))
        .replace("@OPTIONS@", "\n".join(options))
        .replace("@VALUES@", "\n".join(f"    {_case(names, text.split())}" for text, names in cases.items()))
    )


def _named_values() -> dict[str, Iterable[str]]:
    """Values of options that their types do not list."""
    models = [name for name in recipes() if name.startswith("sizes/")]
    strategies = [name for name in recipes() if name.startswith("strategies/")]
    configs = [name for name in recipes() if "/" not in name]
    optimizers, schedules = ([kind.__name__ for kind in own_classes(base)] for base in (Optimizer, LRScheduler))
    return {
        **dict.fromkeys(("-c", "--config"), configs),
        "--model.net": models,
        "--trainer": strategies,
        **dict.fromkeys(("--model.optimizer", "--model.optimizer.help"), optimizers),
        **dict.fromkeys(("--model.schedule", "--model.schedule.help"), schedules),
        "--device": ["auto", "cpu", "cuda", "mps"],
        "--ckpt_path": ["best", "last"],
        "--tasks": bundled.names(),
        "--data.source": ["stories", "stories-zh", "tinystories"],
    }


def actions(parser: ArgumentParser) -> Iterator[Action]:
    """The options of a parser and of its subcommands that are not hidden."""
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for part in action.choices.values():
                yield from actions(part)
        elif action.help != SUPPRESS and type(action).__name__ != "_ActionConfigLoad":
            yield action


def _values(action: Action) -> list[str]:
    hint = getattr(action, "_typehint", None)
    if action.metavar == BOOL or hint in (bool, bool | None):
        return ["true", "false"]
    return [choice for choice in (action.choices or get_args(hint)) if isinstance(choice, str)]


def _case(pattern: str, words: Iterable[str]) -> str:
    return f'    {pattern}) words="{" ".join(dict.fromkeys(words))}" ;;'
