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
from torch.nn.functional import pad

from lit_lm.inference.weights import DecoderWeights, Matrix, large
from lit_lm.model.transformer import TransformerConfig

SOURCE = Path(__file__).with_name("step.c")
"""With project.h beside it."""
FLAGS: tuple[list[str], ...] = (["-march=native", "-fopenmp"], ["-fopenmp"], ["-march=native"], [])
"""The first with which the library compiles and loads."""
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
BLOCK, DEPTH = 16, 32
"""What numbers of outputs and positions, and of inputs, are filled up to: multiples of them suit every processor."""
SHARE = 20_000
"""Products that a thread is done with sooner than it has met the others."""
SHAPE = ("num_layers", "d_model", "num_heads", "kv_heads", "head_size")


class _Linear(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "scale", "bias")] + [
        (name, ctypes.c_int64) for name in ("type", "rows", "cols")
    ]


class _Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class _Block(ctypes.Structure):
    _fields_ = [(name, _Norm) for name in ("attention_norm", "q_norm", "k_norm", "feed_forward_norm")] + [
        (name, _Linear) for name in ("qkv", "o", "up", "down")
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in (*SHAPE, "d_ff", "layernorm", "gated", "threads")),
        ("norm_eps", ctypes.c_float),
        ("embedding", _Linear),
        ("head", _Linear),
        ("norm", _Norm),
        *((name, ctypes.c_void_p) for name in ("positions", "rope_cos", "rope_sin")),
        ("blocks", ctypes.POINTER(_Block)),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("keys", "values", "rows", "positions")] + [
        (name, ctypes.c_int64) for name in ("B", "S")
    ]


class NativeStep:
    """step.c with the weights of one model, which it keeps in an order of its own."""

    def __init__(self, library: ctypes.CDLL, config: TransformerConfig, weights: DecoderWeights) -> None:
        self.compiled, self.config = library, config
        self._lanes = int(library.prepare())
        """Outputs that lie side by side."""
        sizes = [matrix.weight.numel() for matrix in weights.matrices]
        self._matrix_size = sum(sizes) // len(sizes)
        self._kept: list[Tensor] = []
        """What `self.model` has the addresses of."""
        self.model = _Model(
            **{name: getattr(config, name) for name in SHAPE},
            d_ff=config.feed_forward_size,
            layernorm=config.norm == "layernorm",
            gated=config.mlp == "swiglu",
            norm_eps=config.norm_eps,
            embedding=self._linear(weights.embedding),
            norm=self._norm(weights.norm),
            positions=self._address(weights.positions),
        )
        self.model.head = self.model.embedding if weights.head is weights.embedding else self._linear(weights.head)
        if weights.rope is not None:
            self.model.rope_cos, self.model.rope_sin = (self._address(table) for table in weights.rope)
        self.model.blocks = (_Block * config.num_layers)()
        for i, source in enumerate(weights.blocks):
            block = self.model.blocks[i]
            for name in ("attention_norm", "q_norm", "k_norm", "feed_forward_norm"):
                if (norm := getattr(source, name, None)) is not None:
                    setattr(block, name, self._norm(norm))
            for name in ("qkv", "o", "up", "down"):
                setattr(block, name, self._linear(getattr(source, name)))

    def new_cache(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Room for keys and values of that many rows."""
        config = self.config
        positions = -(-config.context_length // BLOCK) * BLOCK
        shape = (config.num_layers, batch_size, config.kv_heads, positions, config.head_size)
        return large(shape, torch.float32), large(shape, torch.float32)

    def __call__(
        self,
        ids: Sequence[int],
        rows: Sequence[int],
        positions: Sequence[int],
        cache: tuple[Tensor, Tensor],
        last: int,
        out: Tensor | None = None,
    ) -> Tensor:
        """Logits (last, V) after the last tokens of ids (N), which join these rows (N) of the cache at positions (N).

        They are written into `out` if it is given. A row's new positions must follow what the row has.

        Raises:
            ValueError, IndexError, MemoryError: rather than touch memory that is not its own.
        """
        keys, values = cache
        if not len(ids) == len(rows) == len(positions) >= last:
            raise ValueError(f"{len(ids)} ids in {len(rows)} rows at {len(positions)} positions, {last} logits")
        for numbers, size in (
            (ids, self.config.vocab_size),
            (rows, keys.shape[1]),
            (positions, self.config.context_length),
        ):
            if not 0 <= min(numbers) <= max(numbers) < size:
                raise IndexError("an id is outside the vocabulary, or a row or position outside the cache")
        logits = torch.empty(last, self.config.vocab_size) if out is None else out
        self.model.threads = _threads(len(ids) * self._matrix_size)
        array = ctypes.c_int64 * len(ids)
        own, places = array(*rows), array(*positions)
        addresses = (keys.data_ptr(), values.data_ptr(), ctypes.addressof(own), ctypes.addressof(places))
        failed = self.compiled.step(
            ctypes.byref(self.model),
            array(*ids),
            ctypes.c_int64(len(ids)),
            ctypes.byref(_Cache(*addresses, keys.shape[1], keys.shape[3])),
            ctypes.c_void_p(logits.data_ptr()),
            ctypes.c_int64(last),
        )
        if failed:
            raise MemoryError(f"no memory for {len(ids)} tokens at once")
        return logits

    def log_totals(self, logits: Tensor) -> Tensor:
        """The logarithm (B) of the sum of exp(logits) of each row of logits (B, V) float32."""
        logits = logits.contiguous()
        totals = torch.empty(len(logits))
        sizes = (ctypes.c_int64(size) for size in (*logits.shape, _threads(logits.numel())))
        self.compiled.log_totals(ctypes.c_void_p(logits.data_ptr()), ctypes.c_void_p(totals.data_ptr()), *sizes)
        return totals

    def _address(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._kept.append(tensor.contiguous())
        return self._kept[-1].data_ptr()

    def _linear(self, matrix: Matrix) -> _Linear:
        (rows, cols), kind = matrix.weight.shape, matrix.weight.dtype
        depth = cols if kind == torch.float32 else -(-cols // DEPTH) * DEPTH
        lanes, filled = self._lanes, _filled_up(matrix.weight, cols=depth)
        weight = large((filled.numel(),), kind)
        if kind == torch.float32:
            weight.view(-1, cols, lanes).copy_(filled.view(-1, lanes, cols).transpose(1, 2))
        else:
            weight.view(-1, depth // 2, lanes, 2).copy_(filled.view(-1, lanes, depth // 2, 2).transpose(1, 2))
        others = (None if each is None else _filled_up(each) for each in (matrix.scale, matrix.bias))
        return _Linear(*map(self._address, (weight, *others)), TYPES[kind], rows, cols)

    def _norm(self, norm: Any) -> _Norm:
        return _Norm(self._address(norm.weight), self._address(getattr(norm, "bias", None)))


def _threads(products: int) -> int:
    """As many as have something to do."""
    return max(1, min(torch.get_num_threads(), products // SHARE))


def _filled_up(tensor: Tensor, cols: int | None = None) -> Tensor:
    """With zeros, so that it has whole blocks of rows, and so many columns."""
    sides = [0, 0 if cols is None else cols - tensor.shape[1]] if tensor.ndim == 2 else []
    return pad(tensor, [*sides, 0, -len(tensor) % BLOCK])


@functools.cache
def load() -> ctypes.CDLL | None:
    """The compiled step.c, kept beside the compiled Python files; None if there is no compiler that can make it."""
    try:
        compiler = shlex.split(os.environ.get("CC", "cc"))
    except ValueError:
        return None
    sources = (SOURCE, SOURCE.with_name("project.h"))
    text = [path.read_text(encoding="utf-8") for path in sources]
    known = (text, compiler, FLAGS, platform.machine(), _processor(), torch.__version__)
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
                for other in library.parent.glob("step-*.so"):
                    if other.stat().st_mtime < max(path.stat().st_mtime for path in sources):
                        other.unlink()  # of a former source; of this one it may be another machine's
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
