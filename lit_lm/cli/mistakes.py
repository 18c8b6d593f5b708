"""The parser's error messages in the words of the command line, with what was probably meant."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import lit_lm.optim
from lit_lm.cli.recipes import recipes

OTHER_NAMES = {
    "dataset": "data.source",
    "epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "learning_rate": "model.optimizer.lr",
    "resume": "ckpt_path",
    "steps": "trainer.max_steps",
}
"""What other programs call some options."""

KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "NoneType": "null"}
NUMBER_WITH_COMMA = re.compile(r"-?\d*,\d+")


def explained(message: str, options: Sequence[str]) -> str:
    """Explain a parser's error message.

    Args:
        message: The message, in one line.
        options: Names of the options that the parser knows.
    """
    options = [option.replace(".init_args", "") for option in options]
    for pattern, explain in RULES.items():
        if match := re.search(pattern, message):
            return explain(match, options)
    return message


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known dotted name that was probably meant: with the same last part, or spelled like it."""
    if name in OTHER_NAMES:
        return OTHER_NAMES[name]
    last = {option.rpartition(".")[2]: option for option in known}
    whole = {option: option for option in known}
    found = last.get(name)
    for names in (whole, last):
        found = found or next((names[near] for near in difflib.get_close_matches(name, names, n=1)), None)
    return found


def class_options() -> list[str]:
    """Options of lit-lm's optimizers and schedules, which a parser does not list."""
    return sorted(
        {
            f"model.{option}.{name}"
            for option, base in (("schedule", LRScheduler), ("optimizer", Optimizer))
            for kind in own_classes(base)
            for name in list(inspect.signature(kind).parameters)[1:]
        }
    )


def own_classes(base: type) -> list[type]:
    """The classes of lit_lm.optim that options can choose: optimizers, or schedules."""
    kinds = [kind for name, kind in vars(lit_lm.optim).items() if name in lit_lm.optim.__all__]
    return [kind for kind in kinds if isinstance(kind, type) and base in kind.__mro__ and not inspect.isabstract(kind)]


def unknown_option(name: str, options: Sequence[str], *, in_config: bool = False) -> str:
    """The message for an option that is not among `options`."""
    if in_config:
        return f"a config has no option {name}{_meant(nearest(name, options))}"
    return f"there is no option --{name}{_meant(nearest(name, [*class_options(), *options]), '--')}"


def unexpected_argument(argument: str) -> str:
    """The message for an argument that is not an option."""
    if argument.endswith((".yaml", ".yml")) or argument in recipes():
        return f"unexpected argument {argument}; did you mean --config {argument}?"
    return f"unexpected argument {argument}; the name of an option starts with --, and a text with spaces needs quotes"


def unknown_parameter(name: str, class_path: str) -> str:
    """The message for an option that a class does not have."""
    module, _, kind = class_path.rpartition(".")
    known = inspect.signature(getattr(import_module(module), kind)).parameters
    return f"{class_path} has no parameter {name}{_meant(nearest(name, known))}"


def unknown_class(option: str, name: str) -> str:
    """The message for an `option` (optimizer or schedule) that is not a class of lit_lm.optim."""
    module, base = (torch.optim, Optimizer) if option == "optimizer" else (torch.optim.lr_scheduler, LRScheduler)
    others = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, base)]
    known = {kind.__name__.lower(): f"{module.__name__}.{kind.__name__}" for kind in others}
    known |= {kind.__name__.lower(): kind.__name__ for kind in own_classes(base)}
    near = difflib.get_close_matches(name.lower(), known, n=1)
    remedy = f"; did you mean {known[near[0]]}?" if near else f"; --model.{option}.help lists the classes"
    return f"there is no {option} {name}{remedy}"


def wrong_kind(name: str, value: str, kinds: str) -> str:
    """The message for a value that is not of one of `kinds`, such as "a whole number"."""
    return f"{name} is {value}; it must be {kinds}{_meant(_with_point(value))}"


def wrong_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """The message for a value that is none of at least two choices."""
    return f"{name} is {value}; it must be {', '.join(choices[:-1])} or {choices[-1]}"


def _unknown_option(match: re.Match[str], options: Sequence[str]) -> str:
    return unknown_option(match[1].partition("=")[0], options)


def _unexpected_argument(match: re.Match[str], options: Sequence[str]) -> str:
    return unexpected_argument(match[1])


def _unknown_in_config(match: re.Match[str], options: Sequence[str]) -> str:
    return unknown_option(match[1], options, in_config=True)


def _unknown_parameter(match: re.Match[str], options: Sequence[str]) -> str:
    return unknown_parameter(*match.groups())


def _wrong_kind(match: re.Match[str], options: Sequence[str]) -> str:
    name = ".".join(re.findall(r'Parser key "(.+?)"', match.string[: match.start()]))
    return wrong_kind(name, match[2], KINDS[match[1]])


def _no_choice(match: re.Match[str], options: Sequence[str]) -> str:
    name, choices, value = match.groups()
    return wrong_choice(name, value, re.findall(r"'(.*?)'", choices))


def _no_kind(match: re.Match[str], options: Sequence[str]) -> str:
    name, errors, value = match.groups()
    kinds = dict.fromkeys(kind for kind in re.findall(r"Expected (?:a )?<class '(\w+)'>", errors) if kind in KINDS)
    if {"int", "float"} <= kinds.keys():
        del kinds["int"]
    if not kinds or "class_path" in errors or "dot import path" in errors:
        return match.string
    return wrong_kind(name, value, " or ".join(KINDS[kind] for kind in kinds))


def _no_class(match: re.Match[str], options: Sequence[str]) -> str:
    return f"{match[1]} is {match[2]}; it must be the dotted name of a class, or a mapping with its class_path"


def _not_imported(match: re.Match[str], options: Sequence[str]) -> str:
    return f"{match[1]} is {match[2]}, which cannot be imported: {match[3]}"


def _unknown_class(match: re.Match[str], options: Sequence[str]) -> str:
    return unknown_class(*match.groups())


def _without_class(match: re.Match[str], options: Sequence[str]) -> str:
    return f"{match[1]} has options but no class; name the class first: --{match[1]} CLASS"


def _not_a_group(match: re.Match[str], options: Sequence[str]) -> str:
    group, value = match.groups()
    meant = f"; did you mean --data.source {value}?" if group == "data" else ""
    return f"{group} is {value}; it must be a mapping of options, or the dotted name of a class{meant}"


def _no_list(match: re.Match[str], options: Sequence[str]) -> str:
    return f"""{match[1]} is {match[2]}; it must be a list, such as '["{match[2]}"]'"""


def _no_subtype(match: re.Match[str], options: Sequence[str]) -> str:
    return re.sub(r"Problem with given class_path '([\w.]+)': (?=\S)", r"\1: ", match[1])


def _with_point(value: str) -> str | None:
    return value.replace(",", ".") if NUMBER_WITH_COMMA.fullmatch(value) else None


def _meant(name: str | None, prefix: str = "") -> str:
    return f"; did you mean {prefix}{name}?" if name else ""


RULES: dict[str, Callable[[re.Match[str], Sequence[str]], str]] = {
    r"unrecognized arguments: --(\S+)": _unknown_option,
    r"unrecognized arguments: (\S+)": _unexpected_argument,
    r"does not accept option '(.+)'": _unknown_in_config,
    r'Parser key "(trainer\.\w+)": .*Expected an instantiatable class, but \S+ is abstract': _without_class,
    r"Option '(\w+)' is not accepted.*class_path='([\w.]+)'": _unknown_parameter,
    r"Expected (?:a )?<class '(int|float|bool)'>\. Got value: (.*?)(?:\.? Got value: .*)?$": _wrong_kind,
    r'^Parser key "([\w.]+)": Expected a typing\.Literal\[(.*?)\]\. Got value: (.*)$': _no_choice,
    r'Parser key "model\.(optimizer|schedule)": .*import path string: (\w+)$': _unknown_class,
    r"Union subtypes Subtypes: .*?logger.* Errors: - (.*?) - Expected a <class": _no_subtype,
    r'Parser key "([\w.]+)": .*Subtypes: \[list\[str\], .*<class .str.> Given value: (.*)$': _no_list,
    r'^Parser key "([\w.]+)": Does not validate .* Errors:(.*) Given value type: \S+ \S+ Given value: (.*)$': _no_kind,
    r"""Parser key "([\w.]+)": - Expected a path but (\S+) .*?((No module|module \S+)[a-z ]+'[\w.]+')""": _not_imported,
    r'^Parser key "([\w.]+)": - Expected a path .* Expected a dot import path string: (\S+) ': _no_class,
    r'^Parser key "(data|model|trainer)": Unable to load config .(.*?)[\'"] ': _not_a_group,
}
"""How to explain a message, by its pattern."""
