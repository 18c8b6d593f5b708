"""Models of other programs: files that someone else may have made."""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_lm.checkpoint_schema import FLOATS, oddity, quoted
from lit_lm.interop.architectures import Part
from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import skeleton
from lit_lm.tokenizer.tokenizer import Tokenizer

SHARD = re.compile(r"[\w.-]+\.safetensors")
INDEX = "model.safetensors.index.json"
MAX_TEXT_BYTES = 64 * 2**20
DERIVED = re.compile(r".*\.attn\.(masked_)?bias|.*rotary_emb\.inv_freq")
"""Tensors that follow from the config."""


class ForeignModel(NamedTuple):
    """A model that was read from the files of another program."""

    config: TransformerConfig
    weights: dict[str, Tensor]
    """State dict of the Transformer, in float32."""
    tokenizer: Tokenizer
    chat_template: str | None = None


class ForeignTensors:
    """The tensors of a file or folder; each is read when it is taken."""

    def __init__(self, source: Path, tensors: Mapping[str, Callable[[], Tensor]]) -> None:
        self.source = source
        self.left = dict(tensors)
        """Those that have not been taken."""

    def take(self, *names: str) -> Tensor:
        """Read the tensor with the first of these names that there is.

        Raises:
            ValueError: if there is none, or its data type is none of FLOATS.
        """
        found = next((name for name in names if name in self.left), None)
        if found is None:
            raise ValueError(f"{self.source} has no tensor {names[0]}")
        tensor = self.left.pop(found)()
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{self.source} has {found} as {tensor.dtype}; quantized weights cannot be imported")
        return tensor

    def check_all_taken(self) -> None:
        """Refuse tensors that a Transformer has no place for. Masks and tables that follow from the config are fine.

        Raises:
            ValueError: if there are such tensors.
        """
        if left := [name for name in self.left if not DERIVED.fullmatch(name)]:
            raise ValueError(f"{self.source} has tensors that a Transformer lacks: {', '.join(sorted(left)[:5])}")


def in_folder(folder: Path) -> ForeignTensors:
    """The tensors of a folder's .safetensors, in one file or in shards that an index lists.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if one is damaged.
    """
    shards = {"model.safetensors"}
    if (folder / INDEX).is_file():
        listed = read_json(folder / INDEX).get("weight_map")
        shards = {str(shard) for shard in listed.values()} if isinstance(listed, dict) else set()
        if not shards or not all(map(SHARD.fullmatch, shards)):
            raise ValueError(f"{folder / INDEX} does not list .safetensors files beside it")
    tensors: dict[str, Callable[[], Tensor]] = {}
    for shard in sorted(shards):
        with _opened(folder / shard) as file:
            tensors |= {name: partial(_read, folder / shard, name) for name in file.keys()}  # noqa: SIM118
    return ForeignTensors(folder, tensors)


def _read(path: Path, name: str) -> Tensor:
    with _opened(path) as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; a folder needs its weights as .safetensors")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def in_file(path: Path, state: Any) -> ForeignTensors:
    """The tensors of a state dict that was loaded from a file; those of a compiled model lose their prefix.

    Raises:
        ValueError: if it is no state dict.
    """
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{path} has no state dict")
    if others := [name for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]:
        raise ValueError(f"{path} is damaged: {str(others[0])[:40]} is not the name of a tensor")
    for name, tensor in state.items():
        if what := oddity(tensor):
            raise ValueError(f"{path} is damaged: {quoted(name)} is {what}")
    return ForeignTensors(
        path, {name.removeprefix("_orig_mod."): partial(Tensor.detach, tensor) for name, tensor in state.items()}
    )


def assemble(config: TransformerConfig, parts: Mapping[str, Part], theirs: ForeignTensors) -> dict[str, Tensor]:
    """The state dict, in float32, of a Transformer of this shape.

    Args:
        config: Its shape.
        parts: For each tensor of theirs but a tied head: the tensors of ours that it is made of.
        theirs: The tensors; all must have a place.

    Raises:
        ValueError: if tensors are missing, have other shapes, or have no place.
    """
    shapes = {name: tuple(value.shape) for name, value in skeleton(config).state_dict().items()}
    weights: dict[str, Tensor] = {}
    for name, part in parts.items():
        tensor = theirs.take(name, name.removeprefix("transformer."))  # GPT-2's own files leave out the prefix
        if len(part.ours) == 1 and part.ours[0] not in shapes:  # a bias
            if tensor.any():
                raise ValueError(
                    f"{theirs.source} has {name}, which a Transformer lacks unless all projections have biases"
                )
            continue
        matrix = tensor.T if part.transposed and tensor.dim() == 2 else tensor
        heights = [shapes[ours][0] for ours in part.ours]
        if matrix.shape != (sum(heights), *shapes[part.ours[0]][1:]):
            raise ValueError(
                f"{theirs.source} has {name} with shape {tuple(tensor.shape)}, which its config contradicts"
            )
        for ours, piece in zip(part.ours, matrix.split(heights), strict=True):  # type: ignore[no-untyped-call]
            weights[ours] = piece.to(torch.float32, copy=True).contiguous()
    if config.tie_embeddings:
        weights["head.weight"] = weights["embedding.weight"]
        if "lm_head.weight" in theirs.left and not torch.equal(
            theirs.take("lm_head.weight").float(), weights["head.weight"]
        ):
            raise ValueError(f"{theirs.source} has a lm_head.weight that differs from the embedding, but ties them")
    theirs.check_all_taken()
    return weights


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; errors as for `read_yaml`."""
    return _read_mapping(path, "a JSON object", json.loads)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is too large or contains something else.
    """
    return _read_mapping(path, "a YAML mapping", yaml.safe_load)


def _read_mapping(path: Path, what: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise ValueError(f"{path} has more than {MAX_TEXT_BYTES:,} bytes")
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not {what}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not {what}")
    return content
