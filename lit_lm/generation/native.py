"""step.c: a decoding step in one call, compiled where it is first used.

PyTorch needs a call for each operation, and for one token of a small model the calls take longer than the arithmetic.
Where there is no C compiler, `load` gives None and the decoder works with PyTorch alone.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_lm.generation.weights import DecoderWeights, Matrix
from lit_lm.model import TransformerConfig

SOURCE = Path(__file__).with_name("step.c")
FLAGS: tuple[list[str], ...] = (["-march=native", "-fopenmp"], ["-fopenmp"], ["-march=native"], [])
"""The first with which the library compiles and loads."""
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class _Linear(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "scale", "bias")] + [
        (name, ctypes.c_int64) for name in ("type", "rows", "cols")
    ]


class _Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class _Block(ctypes.Structure):
    _fields_ = [("attention_norm", _Norm), ("feed_forward_norm", _Norm)] + [
        (name, _Linear) for name in ("qkv", "o", "up", "down")
    ]


SHAPE = ("num_layers", "d_model", "num_heads", "kv_heads", "head_size", "d_ff", "context_length")


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in (*SHAPE, "layernorm", "gated", "threads")),
        ("norm_eps", ctypes.c_float),
        ("embedding", _Linear),
        ("head", _Linear),
        ("norm", _Norm),
        *((name, ctypes.c_void_p) for name in ("positions", "rope_cos", "rope_sin")),
        ("blocks", ctypes.POINTER(_Block)),
    ]


class NativeStep:
    """The step of one model. Holds addresses into `weights`, and `weights` with them."""

    def __init__(self, library: ctypes.CDLL, config: TransformerConfig, weights: DecoderWeights) -> None:
        self.compiled, self.weights = library, weights
        rope_cos, rope_sin = weights.rope or (None, None)
        blocks = (_Block * config.num_layers)()
        for block, source in zip(blocks, weights.blocks, strict=True):
            block.attention_norm = _norm(source.attention_norm)
            block.feed_forward_norm = _norm(source.feed_forward_norm)
            for name in ("qkv", "o", "up", "down"):
                setattr(block, name, _linear(getattr(source, name)))
        self.model = _Model(
            **{name: getattr(config, name) for name in SHAPE if name != "d_ff"},
            d_ff=config.feed_forward_size,
            layernorm=config.norm == "layernorm",
            gated=config.mlp == "swiglu",
            norm_eps=config.norm_eps,
            embedding=_linear(weights.embedding),
            head=_linear(weights.head),
            norm=_norm(weights.norm),
            positions=_address(weights.positions),
            rope_cos=_address(rope_cos),
            rope_sin=_address(rope_sin),
            blocks=blocks,
        )

    def head(self, x: Tensor) -> Tensor:
        """Logits (V) from the normed residual stream (D) float32 of one token."""
        logits = torch.empty(self.model.head.rows)
        self.model.threads = torch.get_num_threads()
        addresses = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (x.contiguous(), logits))
        self.compiled.head(ctypes.byref(self.model), *addresses)
        return logits

    def __call__(self, ids: Sequence[int], positions: Sequence[int], keys: Tensor, values: Tensor) -> Tensor:
        """Logits (B, V) after ids (B) at positions (B), which join keys and values (layers, B, G, S, K) float32."""
        rows = len(ids)
        if not rows == len(positions) == keys.shape[1]:  # what is wrong here would be written over others' memory
            raise ValueError(f"{rows} ids at {len(positions)} positions for a cache of {keys.shape[1]} rows")
        if not (all(0 <= i < self.model.embedding.rows for i in ids) and max(positions, default=0) < keys.shape[3]):
            raise IndexError("an id is outside the vocabulary, or a position outside the context")
        logits = torch.empty(rows, self.model.head.rows)
        self.model.threads = torch.get_num_threads()
        array = ctypes.c_int64 * rows
        failed = self.compiled.step(
            ctypes.byref(self.model),
            array(*ids),
            array(*positions),
            *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (keys, values, logits)),
            ctypes.c_int64(rows),
        )
        if failed:
            raise MemoryError(f"no memory for a step of {rows} rows")
        return logits


@functools.cache
def load() -> ctypes.CDLL | None:
    """The compiled step.c, kept beside the compiled Python files; None if there is no compiler that can make it."""
    try:
        compiler = shlex.split(os.environ.get("CC", "cc"))
    except ValueError:
        return None
    known = (SOURCE.read_text(encoding="utf-8"), compiler, FLAGS, platform.machine(), _processor(), torch.__version__)
    digest = hashlib.blake2b(repr(known).encode(), digest_size=8).hexdigest()
    library = SOURCE.parent / "__pycache__" / f"step-{digest}.so"
    with suppress(OSError):
        return ctypes.CDLL(str(library))
    for flags in FLAGS:
        with suppress(OSError, subprocess.CalledProcessError), tempfile.TemporaryDirectory() as folder:
            built = _compile(compiler, flags, Path(folder))
            with suppress(OSError):  # an installation that cannot be written to compiles each time
                library.parent.mkdir(exist_ok=True)
                whole = library.with_suffix(f".{os.getpid()}")
                whole.write_bytes(built.read_bytes())
                whole.replace(library)
                return ctypes.CDLL(str(library))
            return ctypes.CDLL(str(built))
    return None


def _compile(compiler: list[str], flags: list[str], folder: Path) -> Path:
    """The library, in that folder.

    It is linked apart, and with nothing but the mathematics: -ffast-math there would change how the whole process
    rounds, and OpenMP is to be PyTorch's own, found when the library is loaded, as two sets of threads would fight.

    Raises:
        OSError, CalledProcessError: if there is no such compiler, or it fails.
    """
    made, library = folder / "step.o", folder / "step.so"
    for command in (
        [*compiler, "-O3", "-ffast-math", "-fPIC", *flags, "-c", str(SOURCE), "-o", str(made)],
        [*compiler, "-shared", str(made), "-o", str(library), "-lm"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return library


def _processor() -> str:
    """What tells apart processors that do not run each other's programs, where homes are shared between machines."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.processor()


def _address(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def _linear(matrix: Matrix) -> _Linear:
    addresses = (_address(tensor) for tensor in (matrix.weight, matrix.scale, matrix.bias))
    return _Linear(*addresses, TYPES[matrix.weight.dtype], *matrix.weight.shape)


def _norm(norm: Any) -> _Norm:
    return _Norm(_address(norm.weight), _address(getattr(norm, "bias", None)))
