"""Prompts from files, and their batches."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_lm.inference.prompts import length_batches, read_prompts


def test_text_files_have_one_prompt_per_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("The owl\r\n\n  \n后来\nlast".encode())
    prompts = read_prompts(path)
    assert [prompt.text for prompt in prompts] == ["The owl", "后来", "last"]
    assert prompts[1].location == f"{path}, line 4"


def test_json_lines_keep_their_other_fields(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": 7, "prompt": "The\\nowl", "tags": ["a"]}\n\n{"prompt": ""}\n', encoding="utf-8")
    first, second = read_prompts(path)
    assert (first.text, first.fields) == ("The\nowl", {"id": 7, "tags": ["a"]})
    assert (second.text, second.fields) == ("", {})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"ok\ncaf\xe9", "a.txt, line 2 is not UTF-8: byte 3 is 0xe9"),
        ("a.jsonl", b'{"prompt": "ok"}\n{"prompt": "cut', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}', 'line 1 is not an object with a string "prompt"'),
        ("a.jsonl", b'{"prompt": 3}', "line 1 is not an object"),
        ("a.jsonl", b'["prompt"]', "line 1 is not an object"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", b'{"prompt": "x", "ended": 1}', "line 1 has the field 'ended', which predict writes"),
        ("a.csv", b"prompt\nx", "use a .txt file"),
    ],
)
def test_errors_name_the_file_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        read_prompts(tmp_path / name)


@given(st.lists(st.integers(1, 50), max_size=300), st.integers(0, 20), st.integers(1, 5), st.integers(1, 3))
def test_every_prompt_is_in_one_batch_and_all_devices_get_equally_many_batches(
    sizes: list[int], first: int, batch_size: int, world_size: int
) -> None:
    batches = length_batches(sizes, first, batch_size, world_size)
    assert sorted(number for batch in batches for number in batch) == list(range(first, len(sizes)))
    assert len(batches) % world_size == 0
    assert all(len(batch) <= batch_size for batch in batches)
    stretch = batch_size * world_size * 4
    for i, batch in enumerate(batches):  # a prompt waits for at most one stretch of others
        assert all(abs(number - first - i * batch_size) < stretch for number in batch)


def test_a_batch_has_prompts_of_similar_length() -> None:
    batches = length_batches([5, 1, 5, 1, 5, 1], first=0, batch_size=3, world_size=1)
    assert batches == [[1, 3, 5], [0, 2, 4]]
