"""Models of other programs: what is read, and files that someone else may have made."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_lm.checkpoint_schema import FLOATS
from lit_lm.model.config import TransformerConfig
from lit_lm.tokenizer.tokenizer import Tokenizer

SHARD = re.compile(r"[\w.-]+\.safetensors")
INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 64 * 2**20
DERIVED = re.compile(r".*\.attn\.(masked_)?bias|.*rotary_emb\.inv_freq")
"""Tensors that follow from the config."""


class ForeignModel(NamedTuple):
    """A model that was read from the files of another program."""

    config: TransformerConfig
    weights: dict[str, Tensor]
    """State dict of the Transformer, in float32."""
    tokenizer: Tokenizer


class FolderTensors:
    """The tensors of a folder, in one file or in shards that an index lists."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Path] = {}
        """File of each tensor that has not been taken."""
        if (folder / INDEX).is_file():
            listed = read_json(folder / INDEX).get("weight_map")
            shards = {str(shard) for shard in listed.values()} if isinstance(listed, dict) else set()
            if not shards or not all(map(SHARD.fullmatch, shards)):
                raise ValueError(f"{folder / INDEX} does not list .safetensors files beside it")
        else:
            shards = {"model.safetensors"}
        for shard in sorted(shards):
            with _opened(folder / shard) as file:
                self.files |= dict.fromkeys(file.keys(), folder / shard)

    def take(self, *names: str) -> Tensor:
        """Read the tensor with the first of these names that the folder has.

        Raises:
            ValueError: if there is none, or its data type is none of FLOATS.
        """
        found = next((name for name in names if name in self.files), None)
        if found is None:
            raise ValueError(f"{self.folder} has no tensor {names[0]}")
        with _opened(self.files.pop(found)) as file:
            tensor: Tensor = file.get_tensor(found)
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{self.folder} has {found} as {tensor.dtype}; quantized weights cannot be imported")
        return tensor

    def check_all_taken(self) -> None:
        """Refuse tensors that a Transformer has no place for. Masks and tables that follow from the config are fine.

        Raises:
            ValueError: if there are such tensors.
        """
        if left := [name for name in self.files if not DERIVED.fullmatch(name)]:
            raise ValueError(f"{self.folder} has tensors that a Transformer lacks: {', '.join(sorted(left)[:5])}")


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; a folder needs its weights as .safetensors")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is too large or no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} has more than {MAX_JSON_BYTES:,} bytes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    return content
