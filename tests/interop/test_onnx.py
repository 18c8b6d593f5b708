"""Exported graphs in ONNX Runtime against the Transformer."""

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import sentencepiece
import torch
from helpers.models import GPT2, make
from helpers.texts import DOCUMENTS, NASTY
from transformers import AutoTokenizer, Qwen3Config

from lit_lm.checkpoint import Checkpoint, read_checkpoint, weights_content, write_checkpoint
from lit_lm.inference.language_model import LanguageModel
from lit_lm.interop import onnx
from lit_lm.interop.export import export
from lit_lm.model.transformer import Transformer
from lit_lm.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CONTEXT = 64
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {"qk_norm": True, "num_kv_heads": 2},
    "gpt2 with wide heads": {**GPT2, "head_dim": 12, "num_layers": 1},  # transformers has no such architecture
}


class Exported(NamedTuple):
    folder: Path
    line: str
    checkpoint: Checkpoint
    model: Transformer
    session: onnxruntime.InferenceSession

    def run(self, ids: np.ndarray, past: Sequence[np.ndarray] = (), padding: Sequence[int] = ()) -> list[np.ndarray]:
        """Logits, and the keys and values for the next call; each row begins with a number of padding tokens."""
        config = self.model.config
        empty = np.zeros((len(ids), config.kv_heads, 0, config.head_size), np.float32)
        past = past or [empty] * (2 * config.num_layers)
        end = past[0].shape[2] + ids.shape[1]
        columns = np.arange(end) - np.array(padding or [0] * len(ids))[:, None]
        positions = columns.clip(0)[:, -ids.shape[1] :]
        inputs = (ids, (columns >= 0).astype(np.int64), positions, *past)
        names = (each.name for each in self.session.get_inputs())
        return self.session.run(None, dict(zip(names, inputs, strict=True)))

    def expected(self, ids: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.model(torch.from_numpy(ids)).numpy()


@pytest.fixture(scope="module", params=MODELS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("onnx")
    model = make(vocab_size=300, context_length=CONTEXT, **MODELS[request.param])
    tokenizer = Tokenizer.train(DOCUMENTS, 300)
    write_checkpoint(weights_content(model.config, model.state_dict(), tokenizer), folder / "a.ckpt")
    checkpoint = read_checkpoint(folder / "a.ckpt")
    line = export(checkpoint, "onnx", folder / "out", "float32")
    session = onnxruntime.InferenceSession(folder / "out" / "model.onnx")
    return Exported(folder / "out", line, checkpoint, model, session)


def random_ids(*shape: int) -> np.ndarray:
    return torch.randint(300, shape).numpy()


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 16), (1, CONTEXT)], ids=str)
def test_logits_for_any_batch_and_length(shape: tuple[int, int], exported: Exported) -> None:
    ids = random_ids(*shape)
    np.testing.assert_allclose(exported.run(ids)[0], exported.expected(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [(20, *[1] * 10), (1, 1, 7, 2)], ids=str)
def test_parts_of_a_text_give_the_logits_of_all_of_it(sizes: tuple[int, ...], exported: Exported) -> None:
    ids, past, logits = random_ids(2, sum(sizes)), [], []
    for part in np.split(ids, np.cumsum(sizes)[:-1], axis=1):
        new, *past = exported.run(part, past)
        logits.append(new)
    np.testing.assert_allclose(np.concatenate(logits, axis=1), exported.expected(ids), atol=1e-5, rtol=0)


def test_padding_on_the_left_changes_nothing(exported: Exported) -> None:
    ids, padding = random_ids(3, 12), [0, 4, 10]
    prompt, *past = exported.run(ids[:, :11], padding=padding)
    step, *_ = exported.run(ids[:, 11:], past, padding)
    for row, skipped in enumerate(padding):
        expected = exported.expected(ids[row : row + 1, skipped:])[0]
        logits = np.concatenate([prompt[row, skipped:], step[row]])
        np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)


def test_a_text_is_continued_as_by_lit_lm(exported: Exported) -> None:
    tokenizer = exported.checkpoint.require_tokenizer()
    prompt = tokenizer.encode("The cat")
    logits, *past = exported.run(np.array([prompt]))
    ids = [int(logits[0, -1].argmax())]
    while len(ids) < 20 and ids[-1] != tokenizer.end_id:
        logits, *past = exported.run(np.array([ids[-1:]]), past)
        ids.append(int(logits[0, -1].argmax()))
    text = LanguageModel(exported.model, tokenizer).generate("The cat", temperature=0, max_new_tokens=20)
    assert str(text) == tokenizer.decode(prompt + ids)


def test_inputs_and_outputs_are_those_of_optimum(exported: Exported) -> None:
    config, new, end = exported.model.config, "sequence_length", "past_sequence_length + sequence_length"
    inputs = {each.name: (each.type, each.shape) for each in exported.session.get_inputs()}
    for name, length in {"input_ids": new, "attention_mask": end, "position_ids": new}.items():
        assert inputs.pop(name) == ("tensor(int64)", ["batch_size", length])
    past = ["batch_size", config.kv_heads, "past_sequence_length", config.head_size]
    blocks = [f"{block}.{part}" for block in range(config.num_layers) for part in ("key", "value")]
    assert inputs == {f"past_key_values.{block}": ("tensor(float)", past) for block in blocks}
    logits, *present = exported.session.get_outputs()
    assert (logits.name, logits.shape) == ("logits", ["batch_size", new, config.vocab_size])
    assert [each.name for each in present] == [f"present.{block}" for block in blocks]


def test_the_folder_has_what_programs_need(exported: Exported) -> None:
    assert exported.line.startswith(f"{exported.folder}: ONNX, opset 20; largest difference of a logit ")
    config = json.loads((exported.folder / "config.json").read_text())
    if exported.model.config.qk_norm:
        assert Qwen3Config(**config).head_dim == 8
    else:
        assert config == asdict(exported.model.config)
    loaded, tokenizer = AutoTokenizer.from_pretrained(exported.folder), exported.checkpoint.require_tokenizer()
    assert [loaded(text, add_special_tokens=False)["input_ids"] for text in NASTY] == [
        tokenizer.encode(text) for text in NASTY
    ]


def test_weights_are_stored_once_and_the_graph_names_no_path(exported: Exported) -> None:
    size = sum(parameter.nbytes for parameter in exported.model.parameters())
    assert 0.95 * size < (exported.folder / "model.onnx_data").stat().st_size < 1.05 * size
    assert b".py" not in (exported.folder / "model.onnx").read_bytes()


def test_more_tokens_than_the_context_are_refused(exported: Exported) -> None:
    with pytest.raises(Exception, match=f"ind.*{CONTEXT}"):
        exported.run(random_ids(1, CONTEXT + 1))


def test_nothing_is_left_of_a_graph_that_computes_something_else(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_weights(_: Transformer, path: Path) -> int:
        shutil.copy(exported.folder / "model.onnx", path)
        path.with_name("model.onnx_data").write_bytes(bytes((exported.folder / "model.onnx_data").stat().st_size))
        return 20

    monkeypatch.setattr(onnx, "_write_graph", without_weights)
    with pytest.raises(ValueError, match="the exported model computes something else"):
        export(exported.checkpoint, "onnx", tmp_path / "out", "float32")
    assert list(tmp_path.iterdir()) == []


def sentencepiece_tokenizer(path: Path) -> Tokenizer:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(DOCUMENTS), model_writer=written, minloglevel=2, vocab_size=60
    )
    path.write_bytes(written.getvalue())
    return Tokenizer.load(path)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("context", "context_length is 3; for ONNX, it must be at least 4"),
        ("tokenizer", "a SentencePiece tokenizer has no tokenizer.json"),
        ("weights", "a.ckpt has other weights than a Transformer of its config"),
    ],
)
def test_what_cannot_be_exported_is_refused(what: str, message: str, tmp_path: Path) -> None:
    model = make(vocab_size=300, context_length=3 if what == "context" else CONTEXT)
    spm = sentencepiece_tokenizer(tmp_path / "spm.model") if what == "tokenizer" else Tokenizer.train(DOCUMENTS, 300)
    content = weights_content(model.config, model.state_dict(), spm)
    if what == "weights":  # of the user's own model
        content["model_class"] = "mylab.Own"
        content["state_dict"]["net.own"] = torch.ones(1)
    write_checkpoint(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=message):
        export(read_checkpoint(tmp_path / "a.ckpt"), "onnx", tmp_path / "out", "float32")
    assert not any("out" in path.name for path in tmp_path.iterdir())
