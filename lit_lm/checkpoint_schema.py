"""What a checkpoint contains: a schema of its parts, and checks that they fit together.

A file may come from a stranger: everything that the commands and the Trainer read is checked here before they read it,
without running into whatever it holds.
"""

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from lit_lm.memory import machine_memory
from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import skeleton

COUNT = range(2**63)
PLAIN = bool | int | float | str | None
"""Types of hyperparameters."""

COUNTS = {"ready": COUNT, "completed": COUNT, "started?": COUNT, "processed?": COUNT}
PROGRESS = {"total": COUNTS, "current": COUNTS, "is_last_batch?": bool}
EVALUATION_LOOP = {"state_dict": {}, "batch_progress": PROGRESS}
FIT_LOOP = {
    "state_dict": {"combined_loader?": [object]},
    "epoch_progress": PROGRESS,
    "epoch_loop.state_dict": {"_batches_that_stepped?": COUNT},
    "epoch_loop.batch_progress": PROGRESS,
    "epoch_loop.scheduler_progress": PROGRESS,
    "epoch_loop.automatic_optimization.state_dict": {},
    "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": PROGRESS, "zero_grad": PROGRESS}},
    "epoch_loop.manual_optimization.state_dict": {},
    "epoch_loop.manual_optimization.optim_step_progress": PROGRESS,
    "epoch_loop.val_loop.state_dict": {},
    "epoch_loop.val_loop.batch_progress": PROGRESS,
}
LOOPS = {"fit_loop": FIT_LOOP} | dict.fromkeys(("validate_loop", "test_loop", "predict_loop"), EVALUATION_LOOP)
CURVE = [(COUNT, float)]
CALLBACKS = {
    "CheckpointCallback?": {"best_loss": float, "best_step": COUNT},
    "LossCurves?": {"history": {"train/loss": CURVE, "val/loss": CURVE, str: CURVE}},
    "LossSpikes?": {"step": COUNT, "mean": float, "variance": float},
}
DATA_STATE = {
    "digests?": {str: str},
    "streaming?": {"step": COUNT, "positions": [(COUNT,) * 5], "identity": str},
}
NET = {f"{name}?": kind for name, kind in get_type_hints(TransformerConfig).items()}
CONTENT = {
    "epoch": COUNT,
    "global_step": COUNT,
    "pytorch-lightning_version": re.compile(r"2\.\d+(\.\d+)*[\w.+-]{0,20}"),
    "state_dict": {str: object},
    "hyper_parameters": {"net": NET, "document_mask": bool, "seed": int},
    "datamodule_hyper_parameters?": {str: object},
    "LMDataModule?": DATA_STATE,
    "tokenizer": object,  # a tokenizer.json, which is read by the library, or None
    "chat_template?": object,  # a text with line breaks, or None
    "model_class?": str | None,
    "data_class?": str | None,
    "skipped_steps": (COUNT, COUNT),
    "unread_steps": [(float, float)],
    "loops?": LOOPS,
    "callbacks?": CALLBACKS,
    "optimizer_states?": [{"state": {int: {str: object}}, "param_groups": [{"params": [COUNT]}], "class?": str}],
    "lr_schedulers?": [{}],
}
"""Schema of a checkpoint, in the terms of `misfits`. Without `loops` or `optimizer_states`, it has only the weights."""

MAX_DEPTH = 50
"""Maximum nesting; a pickle can be nested more deeply than Python can recurse."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Control characters, which must not reach a terminal."""
NAME = re.compile(r"[\w.+-]{1,200}")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def problems(content: dict[Any, Any]) -> list[str]:
    """What is wrong with a checkpoint: with its parts or, if nothing, with how they fit together."""
    if _is_nested_deeply(content):
        return [f"it is nested more than {MAX_DEPTH} levels deep"]
    if found := list(misfits(content, CONTENT)):
        return found
    if found := [*hyperparameter_problems(content), *_data_state_problems(content), *_tensor_problems(content)]:
        return found
    try:
        config = TransformerConfig(**content["hyper_parameters"]["net"])
    except ValueError as error:
        return [f"hyper_parameters.net: {problem}" for problem in str(error).splitlines()]
    own_model = content.get("model_class") is not None  # which may have further weights and counters
    found = [] if own_model else [*_weight_problems(config, content["state_dict"]), *_step_problems(content)]
    return [*found, *_size_problems(config, content)]


def misfits(value: Any, schema: Any, place: str = "") -> Iterator[str]:
    """Yield a message for each part of a value that does not fit a schema.

    A schema is the schema of a single value (see `is_single`); a list with the schema of the items of a list; a tuple
    with one for each item; or a mapping from names to schemas, where a name with a question mark may be missing. Other
    keys must fit the schema that the mapping has for the type of the key; if it has none, they are not checked.
    """
    parts: list[tuple[Any, Any]] = []
    if isinstance(schema, dict) and isinstance(value, dict):
        names = {name.removesuffix("?"): name for name in schema if isinstance(name, str)}
        kind = next((name for name in schema if isinstance(name, type)), None)
        yield from (f"{_at(place, name)} is missing" for name in schema if name in names and name not in value)
        for key in value:
            if key in names:
                parts.append((key, schema[names[key]]))
            elif kind is not None and type(key) is kind:
                parts.append((key, schema[kind]))
            elif kind is not None:
                yield f"{place} has the key {shown(key)}"
    elif isinstance(schema, list) and isinstance(value, list | tuple):
        parts = [(number, schema[0]) for number in range(len(value))]
    elif isinstance(schema, tuple) and isinstance(value, list | tuple) and len(value) == len(schema):
        parts = list(enumerate(schema))
    elif isinstance(schema, dict | list | tuple) or not is_single(value, schema):
        yield f"{place} is {shown(value)}"
    for key, part in parts:
        yield from misfits(value[key], part, _at(place, key))


def is_single(value: Any, schema: Any) -> bool:
    """Whether a value fits a schema: a range, a pattern, a Literal, a type or a union of types.

    Types are compared exactly (True is not an int), but an int counts as a float. An int must fit into 64 bits, and a
    string must not contain control characters.
    """
    if isinstance(schema, range):
        return type(value) is int and value in schema
    if isinstance(schema, re.Pattern):
        return isinstance(value, str) and schema.fullmatch(value) is not None
    if get_origin(schema) is Literal:
        return isinstance(value, str) and value in get_args(schema)
    kinds = get_args(schema) or (schema,)
    if object in kinds:
        return True
    if type(value) is int:
        return bool({int, float} & set(kinds)) and value.bit_length() < 64
    return type(value) in kinds and not (isinstance(value, str) and CONTROL.search(value))


def quoted(value: Any) -> str:
    """A name in a message, in quotes unless it is an ordinary one."""
    return value if isinstance(value, str) and NAME.fullmatch(value) else shown(value)


def shown(value: Any) -> str:
    """A value in a message: short, without control characters, and without looking into containers."""
    if isinstance(value, str):
        return repr(value[:80])
    if type(value) is int and value.bit_length() > 63:
        return f"a number of {value.bit_length():,} bits"
    return repr(value) if value is None or isinstance(value, bool | int | float) else f"of type {type(value).__name__}"


def _is_nested_deeply(content: Any) -> bool:
    level = {id(content): content}
    for _ in range(MAX_DEPTH):
        containers = [value for value in level.values() if isinstance(value, dict | list | tuple | set)]
        items = (item for value in containers for item in (value.values() if isinstance(value, dict) else value))
        level = {id(item): item for item in items}  # an item that occurs in many places counts once
    return bool(level)


def hyperparameter_problems(content: dict[Any, Any]) -> Iterator[str]:
    """Hyperparameters that are not plain values, except for classes, which `Checkpoint.config` checks.

    Those of a user's own class may also be lists of plain values.
    """
    model, data = content["hyper_parameters"], dict(content.get("datamodule_hyper_parameters", {}))
    yield from (
        f"hyper_parameters.net has the unknown name {shown(key)}" for key in model["net"] if f"{key}?" not in NET
    )
    if isinstance(source := data.get("source"), dict):
        del data["source"]
        if "class_path" not in source:
            yield from misfits(source, {str: float}, "datamodule_hyper_parameters.source")
            yield from (f"data.source has the key {shown(key)}" for key in source if not is_single(key, str))
    if data.get("special_tokens") is not None:
        yield from misfits(data.pop("special_tokens"), [str], "datamodule_hyper_parameters.special_tokens")
    model = {key: value for key, value in model.items() if key not in ("net", "optimizer", "schedule")}
    for part, values, own_class in (
        ("hyper_parameters", model, content.get("model_class")),
        ("datamodule_hyper_parameters", data, content.get("data_class")),
    ):
        for key, value in values.items():
            items = value if own_class is not None and isinstance(value, list | tuple) else [value]
            if not isinstance(key, str) or not key.isidentifier():
                yield f"{part} has the name {shown(key)}"
            elif not all(is_single(item, PLAIN) for item in items):
                yield f"{part}.{key} is {shown(value)}, which is not a plain value"


def _data_state_problems(content: dict[Any, Any]) -> Iterator[str]:
    """Problems of the state of the user's own data module, which is under the name of its class."""
    for key, value in content.items():
        if key not in CONTENT and isinstance(value, dict) and "digests" in value:
            yield from misfits(value, DATA_STATE, quoted(key))


def _tensor_problems(content: dict[Any, Any]) -> Iterator[str]:
    """Tensors that are not plain numbers in memory. `keep_options` compares an optimizer's with the optimizer."""
    tensors = [("state_dict", content["state_dict"])]
    for number, state in enumerate(content.get("optimizer_states", [])):
        known = [index for group in state["param_groups"] for index in group["params"]]
        if sorted(known) != list(range(len(known))) or not state["state"].keys() <= set(known):
            yield f"optimizer_states.{number} has the states of other parameters than its groups"
        tensors += [(f"optimizer_states.{number}.state.{index}", values) for index, values in state["state"].items()]
    for place, values in tensors:
        for name, value in values.items():
            if isinstance(value, Tensor) and (what := oddity(value)):
                yield f"{_at(place, name)} is {what}"


def _weight_problems(config: TransformerConfig, state: dict[str, Any]) -> Iterator[str]:
    """Differences between the weights and those that the config asks for."""
    if others := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        yield f"state_dict.{quoted(others[0])} is {shown(state[others[0]])}"
        return
    embedding = list(state["net.embedding.weight"].shape) if "net.embedding.weight" in state else []
    if embedding != [config.vocab_size, config.d_model] or config.num_layers > len(state):
        sizes = f"vocab_size {config.vocab_size}, d_model {config.d_model} and num_layers {config.num_layers}"
        yield f"{sizes} do not fit its {len(state)} tensors, with an embedding of {embedding}"
        return
    expected = {f"net.{name}": value.shape for name, value in skeleton(config).state_dict().items()}
    yield from (f"state_dict.{name} is missing" for name in expected if name not in state)
    for key, value in state.items():
        if key not in expected:
            yield f"state_dict has the unknown {quoted(key)}"
        elif value.shape != expected[key] or value.dtype not in FLOATS:
            wanted = list(expected[key])
            yield f"state_dict.{key} is {value.dtype} {list(value.shape)}, but the config asks for floats {wanted}"
    names = ("net.embedding.weight", "net.head.weight")
    if config.tie_embeddings and not torch.equal(*(state.get(name, torch.empty(0)) for name in names)):
        yield "net.tie_embeddings is True, but embedding and head differ"


def oddity(value: Tensor) -> str:
    """What makes a tensor another one than plain numbers in memory; empty if nothing does."""
    if type(value) not in (Tensor, nn.Parameter) or value.is_nested:
        return "a nested or special tensor"
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        return f"a tensor of {value.layout} and {value.dtype} on the device {value.device}"
    return "larger than its memory" if value.untyped_storage().nbytes() < value.nbytes else ""


def _step_problems(content: dict[Any, Any]) -> Iterator[str]:
    """Numbers of steps and optimizers that differ from the Trainer's."""
    step = content["global_step"]
    if "loops" not in content:
        if step or "optimizer_states" in content:
            yield "loops is missing"
        return
    optimizer = content["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    if step != (counted := optimizer["step"]["total"]["completed"]):
        yield f"global_step is {step}, but its optimizer has taken {counted} steps"
    if "optimizer_states" in content and (number := len(content["optimizer_states"])) != 1:
        yield f"it has the states of {number} optimizers"


def _size_problems(config: TransformerConfig, content: dict[Any, Any]) -> Iterator[str]:
    """Sizes that the weights do not determine."""
    data = content.get("datamodule_hyper_parameters", {}) if content.get("data_class") is None else {}
    for name in ("context_length", "vocab_size"):
        if type(size := data.get(name)) is int and size > getattr(config, name):
            yield f"the data has {name} {size}, but the model {getattr(config, name)}"
    if config.positions == "rope" and 16 * config.context_length * config.head_size > machine_memory():
        yield f"context_length {config.context_length} does not fit into the machine's memory"


def _at(place: str, key: Any) -> str:
    """Dotted name of a part."""
    name = str(key) if isinstance(key, int) else quoted(key)
    return f"{place}.{name}" if place else name
