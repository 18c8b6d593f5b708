"""llama2.c's files against a reading and a forward pass written out here.

With a checkout of llama2.c in the environment variable LLAMA2C, its programs are compiled and compared, too.
"""

import os
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from helpers.models import make
from helpers.texts import DOCUMENTS, NASTY
from tokenizers import models, pre_tokenizers

from lit_lm.checkpoint import Checkpoint, read_checkpoint, weights_content, write_checkpoint
from lit_lm.inference.generate import generate
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.interop.export import export
from lit_lm.interop.importing import import_model
from lit_lm.interop.llama2c_tokenizer import Piece, pieces_of, renumbered, run_c_ids
from lit_lm.model.layers import Linear
from lit_lm.tokenizer.tokenizer import Tokenizer

Weights = dict[str, Any]

SIZES = {"vocab_size": 330, "context_length": 96}
SHAPES: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_embeddings": True},
    "grouped heads": {"num_kv_heads": 2, "d_ff": 80},
    "one kv head, tied": {"num_kv_heads": 1, "d_ff": 40, "tie_embeddings": True},
}
SIZE_NAMES = ["dim", "hidden", "layers", "heads", "kv_heads", "vocab", "context"]
MAGIC = 0x616B3432


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One with a user's token and with tokens that contain NUL; the model has more rows than tokens."""
    return Tokenizer.train([*DOCUMENTS, *["\0\0 a\0b"] * 9], 320, special_tokens=["<|user|>"])


def checkpoint_of(tokenizer: Tokenizer, path: Path, **changes: Any) -> Checkpoint:
    model = make(**{**SIZES, **changes})
    write_checkpoint(weights_content(model.config, model.state_dict(), tokenizer), path)
    return read_checkpoint(path)


def kinds(s: dict[str, int], v0: bool, tied: bool) -> list[tuple[str, int, tuple[int, ...]]]:
    """Name, number and shape of the tensors of each kind, in the order of the file."""
    kv = s["dim"] * s["kv_heads"] // s["heads"]
    dim, hidden, layers = s["dim"], s["hidden"], s["layers"]
    attention = [("wq", (dim, dim)), ("wk", (kv, dim)), ("wv", (kv, dim)), ("wo", (dim, dim))]
    feed_forward = [("w1", (hidden, dim)), ("w2", (dim, hidden)), ("w3", (hidden, dim))]
    each = {name: (name, layers, shape) for name, shape in [*attention, *feed_forward]}
    norm1, norm2, last = ("norm1", layers, (dim,)), ("norm2", layers, (dim,)), ("norm", 1, (dim,))
    embedding = ("embedding", 1, (s["vocab"], dim))
    classifier = [] if tied else [("classifier", 1, (s["vocab"], dim))]
    if not v0:
        return [norm1, norm2, last, embedding, *each.values(), *classifier]
    table = (s["context"], dim // s["heads"] // 2)
    before, after = [each[name] for name, _ in attention], [each[name] for name, _ in feed_forward]
    return [embedding, norm1, *before, norm2, *after, last, ("cos", 1, table), ("sin", 1, table), *classifier]


def parse(content: bytes) -> tuple[dict[str, int], Weights]:
    """Sizes and float32 tensors of a model.bin of version 0 or 2."""
    v0 = struct.unpack("<I", content[:4])[0] != MAGIC
    sizes = dict(zip(SIZE_NAMES, struct.unpack_from("<7i", content, 0 if v0 else 8), strict=True))
    tied = sizes["vocab"] > 0 if v0 else content[36] == 1
    sizes["vocab"] = abs(sizes["vocab"])
    group = 0 if v0 else struct.unpack_from("<i", content, 37)[0]
    offset, weights = 28 if v0 else 256, {}
    for name, number, shape in kinds(sizes, v0, tied):
        weights[name] = []
        for _ in range(number):
            count = int(np.prod(shape))
            if group and len(shape) == 2:
                values = np.frombuffer(content, np.int8, count, offset).astype(np.float32)
                scales = np.frombuffer(content, np.float32, count // group, offset + count)
                values = (values.reshape(-1, group) * scales[:, None]).ravel()
                offset += count + 4 * (count // group)
            else:
                values = np.frombuffer(content, np.float32, count, offset)
                offset += 4 * count
            weights[name].append(values.reshape(shape))
    assert offset == len(content)
    return sizes, weights | ({"classifier": weights["embedding"]} if tied else {})


def norm(x: Any, weight: Any) -> Any:
    return weight * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def rotate(x: Any) -> Any:
    """Rotate neighboring dimensions of x (T, H, K)."""
    size = x.shape[-1]
    angles = np.outer(np.arange(len(x)), 10000.0 ** (-np.arange(0, size, 2) / size))[:, None]
    even, odd, out = x[..., ::2], x[..., 1::2], np.empty_like(x)
    out[..., ::2] = even * np.cos(angles) - odd * np.sin(angles)
    out[..., 1::2] = even * np.sin(angles) + odd * np.cos(angles)
    return out


def forward(sizes: dict[str, int], w: Weights, ids: list[int]) -> Any:
    """Logits (T, V) in float64."""
    x = w["embedding"][0][ids].astype(np.float64)
    count, heads, kv_heads = len(ids), sizes["heads"], sizes["kv_heads"]
    for i in range(sizes["layers"]):
        y = norm(x, w["norm1"][i])
        q = rotate((y @ w["wq"][i].T).reshape(count, heads, -1))
        k = rotate((y @ w["wk"][i].T).reshape(count, kv_heads, -1)).repeat(heads // kv_heads, 1)
        v = (y @ w["wv"][i].T).reshape(count, kv_heads, -1).repeat(heads // kv_heads, 1)
        scores = np.einsum("thk,shk->hts", q, k) / np.sqrt(q.shape[-1])
        scores = np.exp(np.where(np.tri(count), scores, -np.inf))
        shares = scores / scores.sum(-1, keepdims=True)
        x = x + np.einsum("hts,shk->thk", shares, v).reshape(count, -1) @ w["wo"][i].T
        y = norm(x, w["norm2"][i])
        gate = y @ w["w1"][i].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w["w3"][i].T)) @ w["w2"][i].T
    return norm(x, w["norm"][0]) @ w["classifier"][0].T


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_an_exported_model_computes_the_same(
    changes: dict[str, Any], dtype: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(tokenizer, tmp_path / "a.ckpt", **changes)
    line = export(checkpoint, "llama2c", tmp_path / "out", dtype)
    assert f"{dtype}, for run.c; " in line or f"{dtype} in groups of " in line
    assert "largest difference of a logit " in line
    sizes, weights = parse((tmp_path / "out" / "model.bin").read_bytes())
    text = "The little dog liked the cat."
    theirs = forward(sizes, weights, Tokenizer.load(tmp_path / "out").encode(text))
    old_ids = tokenizer.encode(text)
    with torch.no_grad():
        ours = checkpoint.transformer()(torch.tensor([old_ids]))[0].numpy()
    _, earlier = renumbered(tokenizer, SIZES["vocab_size"])
    tolerance = 1e-5 if dtype == "float32" else 0.05 * np.abs(ours).max()
    np.testing.assert_allclose(theirs, ours[:, earlier], atol=tolerance, rtol=0)
    if dtype == "float32":
        head_size = sizes["dim"] // sizes["heads"]
        angles = np.outer(np.arange(96), 10000.0 ** (-np.arange(0, head_size, 2) / head_size))
        np.testing.assert_allclose(weights["cos"][0], np.cos(angles), atol=1e-5)
        np.testing.assert_allclose(weights["sin"][0], np.sin(angles), atol=1e-5)


def test_int8_rounds_to_the_nearest_of_255_steps(tokenizer: Tokenizer, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tokenizer, tmp_path / "a.ckpt", d_ff=48)
    checkpoint.weights["blocks.0.feed_forward.up_proj.weight"][5] = 0.0
    assert "int8 in groups of 16, for runq.c" in export(checkpoint, "llama2c", tmp_path / "out", "int8")
    _, weights = parse((tmp_path / "out" / "model.bin").read_bytes())
    ours = checkpoint.weights["blocks.0.feed_forward.up_proj.weight"].numpy()
    theirs = weights["w3"][0]
    assert not theirs[5].any()
    groups, errors = np.abs(ours).reshape(-1, 16), np.abs(ours - theirs).reshape(-1, 16)
    assert (errors.max(1) <= groups.max(1) / 127 * 0.5001).all()
    largest = groups.argmax(1)[:, None]
    np.testing.assert_allclose(np.take_along_axis(errors, largest, 1), 0, atol=1e-7)
    assert errors.max() > 1e-4


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_an_exported_model_is_imported_bit_by_bit(
    changes: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(tokenizer, tmp_path / "a.ckpt", **changes)
    export(checkpoint, "llama2c", tmp_path / "out", "float32")
    line = import_model(tmp_path / "out" / "model.bin", tmp_path / "b.ckpt", tmp_path / "out")
    assert line.endswith("parameters, context 96, 320 tokens")
    again = read_checkpoint(tmp_path / "b.ckpt")
    config = checkpoint.transformer().config
    explicit = replace(config, num_kv_heads=config.kv_heads, d_ff=config.feed_forward_size)
    assert again.transformer().config == explicit
    _, earlier = renumbered(tokenizer, SIZES["vocab_size"])
    for name, weight in checkpoint.weights.items():
        by_id = name in ("embedding.weight", "head.weight")
        assert torch.equal(again.weights[name], weight[earlier] if by_id else weight), name
    assert again.require_tokenizer().end_id == 1
    for text in NASTY:
        assert [earlier[number] for number in again.require_tokenizer().encode(text)] == tokenizer.encode(text)


def foreign_file(path: Path, version: int, tied: bool) -> tuple[dict[str, int], Weights]:
    """Write a file of random numbers; return sizes and tensors."""
    generator = np.random.default_rng(0)
    sizes = {"dim": 32, "hidden": 48, "layers": 2, "heads": 4, "kv_heads": 2, "vocab": 320, "context": 64}
    numbers = list(sizes.values())
    if version == 0:
        numbers[5] *= 1 if tied else -1
        header = struct.pack("<7i", *numbers)
    else:
        header = struct.pack("<Ii7iBi", MAGIC, version, *numbers, tied, 16 * (version == 2)).ljust(256, b"\0")
    content, weights = [header], {}
    for name, number, shape in kinds(sizes, version == 0, tied):
        weights[name] = []
        for _ in range(number):
            values = generator.normal(0, 0.3, shape).astype(np.float32)
            if version == 2 and len(shape) == 2:
                whole = generator.integers(-127, 128, shape, dtype=np.int8)
                scales = generator.random(whole.size // 16, dtype=np.float32) / 100
                values = (whole.reshape(-1, 16) * scales[:, None]).reshape(shape)
                content += [whole.tobytes(), scales.tobytes()]
            else:
                content.append(values.tobytes())
            weights[name].append(values)
    path.write_bytes(b"".join(content))
    return sizes, weights | ({"classifier": weights["embedding"]} if tied else {})


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_foreign_model_computes_the_same(version: int, tied: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    sizes, weights = foreign_file(tmp_path / "stories.bin", version, tied)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    import_model(tmp_path / "stories.bin", tmp_path / "a.ckpt", tmp_path / "tokenizer.json")
    ids = torch.randint(320, (1, 40))
    with torch.no_grad():
        ours = read_checkpoint(tmp_path / "a.ckpt").transformer()(ids)[0].numpy()
    np.testing.assert_allclose(ours, forward(sizes, weights, ids[0].tolist()), atol=2e-5, rtol=0)


def damage(path: Path, what: str) -> None:
    content = path.read_bytes()
    at = {"dim": 8, "layers": 16, "heads": 20, "vocab": 28, "context": 32, "group size": 37, "version": 4, "magic": 0}
    if what == "cut":
        path.write_bytes(content[:-1])
    elif what == "longer":
        path.write_bytes(content + bytes(4))
    elif what == "cut header":
        path.write_bytes(content[:20])
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "zip":
        path.write_bytes(b"PK\x03\x04" + content)
    else:
        name, _, value = what.rpartition(" ")
        path.write_bytes(content[: at[name]] + struct.pack("<i", int(value)) + content[at[name] + 4 :])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("cut", r"it has [\d,]+ bytes, but by its header \(version 2\) it has [\d,]+"),
        ("longer", r"it has [\d,]+ bytes, but by its header"),
        ("cut header", "no model of llama2.c: "),
        ("empty", "no model of llama2.c: vocab_size is 0"),
        ("zip", "no model of llama2.c: "),
        ("magic 1", "no model of llama2.c: "),
        ("version 3", "its version is 3; it must be 1 or 2"),
        ("version 1", "bytes, but by its header"),
        ("group size 0", "its group size is 0; it must divide"),
        ("group size 7", "its group size is 7; it must divide"),
        ("group size -16", "its group size is -16; it must divide"),
        ("dim 0", "d_model is 0"),
        ("dim -32", "d_model is -32"),
        ("dim 1073741824", "bytes, but by its header"),
        ("layers 10000", "bytes, but by its header"),
        ("layers 2147483647", "num_layers is 2147483647"),
        ("heads 3", "d_model 32 is not divisible by num_heads 3"),
        ("heads 32", "positions rope needs an even head size"),
        ("vocab -2147483648", "vocab_size is -2147483648"),
        ("vocab 1073741824", "bytes, but by its header"),
        ("context 0", "context_length is 0"),
    ],
)
def test_a_damaged_file_is_refused(what: str, message: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    foreign_file(tmp_path / "stories.bin", 2, True)
    damage(tmp_path / "stories.bin", what)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        import_model(tmp_path / "stories.bin", tmp_path / "a.ckpt", tmp_path / "tokenizer.json")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a.ckpt").exists()


def test_a_huge_model_and_a_missing_tokenizer_are_refused(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign_file(tmp_path / "stories.bin", 2, True)
    with pytest.raises(ValueError, match=r"stories.bin has no tokenizer; pass --tokenizer"):
        import_model(tmp_path / "stories.bin", tmp_path / "a.ckpt")
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    monkeypatch.setattr("lit_lm.memory.machine_memory", lambda *_: 1000)
    with pytest.raises(ValueError, match=r"the model in .*stories.bin needs at least .* GiB of memory"):
        import_model(tmp_path / "stories.bin", tmp_path / "a.ckpt", tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "layernorm"}, r"norm layernorm \(only rmsnorm\)"),
        ({"mlp": "gelu", "positions": "learned"}, r"mlp gelu \(only swiglu\), positions learned \(only rope\)"),
        ({"rope_theta": 5000.0}, r"rope_theta 5000.0 \(only 10000.0\)"),
        ({"norm_eps": 1e-6}, r"norm_eps 1e-06 \(only 1e-05\)"),
        ({"bias": True}, r"bias True \(only False\)"),
        ({"qkv_bias": True}, r"qkv_bias True \(only False\)"),
        ({"qk_norm": True}, r"qk_norm True \(only False\)"),
        ({"head_dim": 12}, r"head_dim 12 \(only d_model / num_heads\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_expressed_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(tokenizer, tmp_path / "a.ckpt", **changes)
    with pytest.raises(ValueError, match=f"llama2.c cannot express {message}; train with what it can"):
        export(checkpoint, "llama2c", tmp_path / "out", "float32")
    assert {path.name for path in tmp_path.iterdir()} == {"a.ckpt", "a.ckpt.sha256"}


def characters() -> Tokenizer:
    """A bpe tokenizer that has GPT-2's letters of the bytes, but as characters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return Tokenizer(tokenizers.Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, [])))


def one_text_twice() -> Tokenizer:
    """A tokenizer to which the user has added a token that it had."""
    backend = Tokenizer.train(DOCUMENTS, 320).backend
    assert backend.token_to_id("Ġthe") is not None
    backend.add_tokens([" the"])
    return Tokenizer(backend)


@pytest.mark.parametrize(
    ("make_tokenizer", "message"),
    [
        (
            lambda: Tokenizer.train(DOCUMENTS, 320, "unigram"),
            r"needs a byte-level bpe tokenizer.* another.* \(unigram\)",
        ),
        (lambda: Tokenizer.train(DOCUMENTS, 320, "char"), r"needs a byte-level bpe tokenizer.* another.* \(char\)"),
        (characters, r"needs a byte-level bpe tokenizer, and this is another one \(bpe\)"),
        (lambda: Tokenizer.train([], 257), "cannot express vocab_size 257; it must be at least 259"),
        (one_text_twice, "2 tokens have the text ' the'"),
    ],
    ids=["unigram", "char", "characters", "few", "twice"],
)
def test_other_tokenizers_are_refused(make_tokenizer: Callable[[], Tokenizer], message: str, tmp_path: Path) -> None:
    other = make_tokenizer()
    checkpoint = checkpoint_of(other, tmp_path / "a.ckpt", vocab_size=other.vocab_size)
    with pytest.raises(ValueError, match=message):
        export(checkpoint, "llama2c", tmp_path / "out", "float32")
    assert not (tmp_path / "out").exists()


def tokenizer_bin(path: Path) -> list[Piece]:
    """The tokens in a tokenizer.bin."""
    content = path.read_bytes()
    (longest,), offset, pieces = struct.unpack_from("<i", content), 4, []
    while offset < len(content):
        score, length = struct.unpack_from("<fi", content, offset)
        pieces.append(Piece(score, content[offset + 8 : offset + 8 + length]))
        offset += 8 + length
    assert longest == max(len(piece.text) for piece in pieces)
    return pieces


def test_the_ids_are_those_that_run_c_expects(tokenizer: Tokenizer, tmp_path: Path) -> None:
    export(checkpoint_of(tokenizer, tmp_path / "a.ckpt"), "llama2c", tmp_path / "out", "float32")
    pieces, read = tokenizer_bin(tmp_path / "out" / "tokenizer.bin"), Tokenizer.load(tmp_path / "out")
    assert pieces[1].text == b"<|endoftext|>"
    assert [piece.text for piece in pieces[3 : 3 + 256]] == [b"<0x00>", *(bytes([byte]) for byte in range(1, 256))]
    assert [piece.text for piece in pieces[320:]] == [b"[PAD%d]" % number for number in range(320, 330)]
    assert len({piece.text for piece in pieces}) == len(pieces) == 330
    with_nul = [number for number in range(320) if "\0" in read.decode([number])]
    assert len(with_nul) > 1
    for number in with_nul:
        assert pieces[number].text == read.decode([number]).encode().replace(b"\0", b"<0x00>")
    for text in DOCUMENTS[:4]:
        assert b"".join(pieces[number].text for number in read.encode(text)) == text.encode()
    unreachable = [number for number, piece in enumerate(pieces) if piece.score <= -1e10]
    user = read.special_tokens["<|user|>"]
    assert unreachable == sorted([1, *range(3, 259), *with_nul[1:], user, *range(320, 330)])
    merged = [number for number in (0, 2, *range(259, 330)) if number not in unreachable]
    assert [pieces[number].score for number in merged] == sorted((pieces[n].score for n in merged), reverse=True)
    assert len({pieces[number].score for number in merged}) == len(merged)


def test_encoding_as_run_c_does() -> None:
    bytes_ = [Piece(-1e10, bytes([byte])) for byte in range(256)]
    merged = [Piece(-0.0, b"ab"), Piece(-1.0, b" a"), Piece(-2.0, b"bc"), Piece(-3.0, b"abc"), Piece(-1e10, b"bcbc")]
    pieces = [Piece(0.0, b"x0"), Piece(0.0, b"x1"), Piece(0.0, b"x2"), *bytes_, *merged, Piece(-4.0, "狗".encode())]

    def tokens(text: str) -> list[bytes]:
        return [pieces[number].text for number in run_c_ids(text, pieces)]

    assert tokens("") == []
    assert tokens("ba") == [b" ", b"b", b"a"]
    assert tokens("a") == [b" a"]
    assert tokens("abab") == [b" ", b"ab", b"ab"]
    assert tokens("cabc") == [b" ", b"c", b"abc"]
    assert tokens("bcbc") == [b" ", b"bc", b"bc"]
    assert tokens("狗猫") == [b" ", "狗".encode(), b"\xe7", b"\x8c", b"\xab"]


def with_space(text: str) -> str:
    return f" {text}" if text else text


def test_run_c_finds_the_same_tokens_in_most_texts(tokenizer: Tokenizer) -> None:
    numbered, _ = renumbered(tokenizer, 330)
    pieces = pieces_of(numbered, 330)
    for texts, equal in ((DOCUMENTS[:4], 4), ([text for text in NASTY if "\0" not in text], 16)):
        same = [run_c_ids(text, pieces) == numbered.encode(with_space(text)) for text in texts]
        assert sum(same) == equal


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """Compile a C program that includes llama2.c's, and run it."""
    if "LLAMA2C" not in os.environ:
        pytest.skip("needs a checkout of llama2.c")
    folder = tmp_path_factory.mktemp("llama2c")

    def run(source: str, *arguments: Any) -> bytes:
        program = folder / f"program{abs(hash(source))}"
        if not program.exists():
            program.with_suffix(".c").write_text(source)
            flags = ["-O2", "-w", "-I", os.environ["LLAMA2C"], "-o", str(program)]
            subprocess.run(["cc", str(program.with_suffix(".c")), *flags, "-lm"], check=True)
        return subprocess.run([str(program), *map(str, arguments)], check=True, capture_output=True).stdout

    return run


ENCODE = """
#define TESTING
#include "run.c"
int main(int argc, char **argv) {
    Tokenizer t;
    build_tokenizer(&t, argv[1], atoi(argv[2]));
    for (int i = 3; i < argc; i++) {
        int count, *ids = malloc((strlen(argv[i]) + 3) * sizeof(int));
        encode(&t, argv[i], 1, 0, ids, &count);
        for (int j = 1; j < count; j++) printf("%d ", ids[j]);
        printf("\\n");
    }
}
"""


def test_run_c_itself_encodes_so(compiled: Callable[..., bytes], tokenizer: Tokenizer, tmp_path: Path) -> None:
    export(checkpoint_of(tokenizer, tmp_path / "a.ckpt"), "llama2c", tmp_path / "out", "float32")
    texts = [text for text in [*DOCUMENTS[:4], *NASTY] if "\0" not in text]
    path = tmp_path / "out" / "tokenizer.bin"
    lines = compiled(ENCODE, path, 330, *texts).decode().splitlines()
    assert [[*map(int, line.split())] for line in lines] == [run_c_ids(text, tokenizer_bin(path)) for text in texts]


def printed(pieces: list[Piece], ids: list[int]) -> bytes:
    """What run.c prints: it leaves out the first space, and bytes that are tokens and no printable characters."""
    texts = [b"" if piece.text.startswith(b"<0x00>") else piece.text for piece in (pieces[number] for number in ids)]
    texts[0] = texts[0].removeprefix(b" ")
    return b"".join(t for t in texts if len(t) != 1 or t.isspace() or 0x20 <= t[0] < 0x7F) + b"\n"


class RoundedInputs:
    """Forward pre-hook that rounds the input of a layer as runq.c does."""

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size

    def __call__(self, module: Any, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        groups = inputs[0].unflatten(-1, (-1, self.group_size))
        scales = groups.abs().amax(-1, keepdim=True) / 127
        steps = groups / scales
        return (steps.sign() * (steps.abs() + 0.5).floor() * scales).flatten(-2)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_run_c_and_runq_c_continue_with_the_same_text(
    changes: dict[str, Any], dtype: str, compiled: Callable[..., bytes], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(tokenizer, tmp_path / "a.ckpt", **changes)
    export(checkpoint, "llama2c", tmp_path / "out", dtype)
    import_model(tmp_path / "out" / "model.bin", tmp_path / "b.ckpt", tmp_path / "out")
    again, prompt = read_checkpoint(tmp_path / "b.ckpt"), "The little cat"
    model, read = again.transformer(), again.require_tokenizer()
    begun = [read.end_id, *read.encode(f" {prompt}")]
    if dtype == "int8":
        for module in model.modules():
            if isinstance(module, Linear):
                size = int(np.gcd.reduce([64, model.config.d_model, model.config.feed_forward_size]))
                module.register_forward_pre_hook(RoundedInputs(size))
        ids = begun
        with torch.no_grad():
            while len(ids) < 65:
                ids = [*ids, int(model(torch.tensor([ids]))[0, -1].argmax())]
        if read.end_id in ids[1:]:
            ids = ids[: ids.index(read.end_id, 1)]
    else:
        sampling = SamplingConfig(temperature=0.0, max_new_tokens=65 - len(begun))
        old_begun = [tokenizer.end_id, *tokenizer.encode(f" {prompt}")]
        ((ours,),) = generate(checkpoint.transformer(), [old_begun], sampling, seeds=[0], end_id=tokenizer.end_id)
        _, earlier = renumbered(tokenizer, 330)
        ids = [*begun, *(earlier.index(number) for number in ours.ids)]
    source = f'#include "{"run.c" if dtype == "float32" else "runq.c"}"'
    folder = tmp_path / "out"
    options = ["-t", 0, "-n", 64, "-i", prompt, "-z", folder / "tokenizer.bin"]
    pieces = tokenizer_bin(folder / "tokenizer.bin")
    assert compiled(source, folder / "model.bin", *options) == printed(pieces, ids[1:])
    assert len(ids) == 65
