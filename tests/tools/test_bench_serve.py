"""The benchmark and the soak test of `lit-lm serve`, for a moment; speed is not tested."""

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import bench_serve
import pytest
import serve_crowd
from bench_serve import Contender, measure, our_server, table
from serve_crowd import crowd

from lit_lm.inference.language_model import load


@pytest.fixture(scope="module")
def url(run_folder: Path) -> Iterator[str]:
    with our_server(run_folder) as (_, url):
        yield url


def test_servers_are_measured_by_turns(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_serve, "REQUESTS", 1)
    monkeypatch.setattr(bench_serve, "WORDS", 1)
    contenders = [Contender("one", url), Contender("two", url, "tiny")]
    measure(contenders, rounds=2, max_tokens=4, clients=(1, 3))
    for each in contenders:
        assert {clients: len(rates) for clients, rates in each.rates.items()} == {1: 2, 3: 2}
        assert all(0 < first < 60 for firsts in each.firsts.values() for first in firsts)
        assert [[len(texts) for texts in each.texts[clients]] for clients in (1, 3)] == [[1] * 3, [3] * 3]
    *_, one, two = table(contenders).splitlines()
    assert re.fullmatch(r"\| 3 \| one \| [\d,]+ \([\d,]+ to [\d,]+\) \| 1\.00 \| [\d.]+ \| yes \|", one)
    assert two.startswith("| 3 | two | ")
    assert two.endswith(" | yes |")


def test_a_table_of_made_up_values() -> None:
    ours = Contender("ours", "", rates={4: [200, 400, 100]}, firsts={4: [0.1, 0.01, 0.02]}, texts={4: [["a"]]})
    peer = Contender("peer", "", rates={4: [100, 100, 100]}, firsts={4: [0.1, 0.2, 0.3]}, texts={4: [["b"]]})
    assert table([ours, peer]).splitlines()[2:] == [
        "| 4 | ours | 200 (100 to 400) | 1.00 | 20.0 | yes |",
        "| 4 | peer | 100 (100 to 100) | 0.50 | 200.0 | no |",
    ]


def test_tokens_are_counted_by_the_server(url: str, run_folder: Path) -> None:
    answer = asyncio.run(bench_serve.ask(url, {"prompt": "The", "max_tokens": 9, "temperature": 0}))
    expected = load(run_folder, device="cpu").generate("The", temperature=0, max_new_tokens=9)
    assert (answer.text, answer.num_tokens) == (expected.continuation, len(expected.tokens))


def test_a_wrong_text_is_found(url: str) -> None:
    with pytest.raises(AssertionError, match="nonsense"):
        crowd(url, {"prompt": "The", "max_tokens": 4}, lambda _: "nonsense", clients=2, requests=4, seeds=1)


def test_an_error_of_the_server_is_found(url: str) -> None:
    with pytest.raises(AssertionError, match="status 400"):
        crowd(url, {"prompt": "The", "n": 0}, lambda _: "", clients=2, requests=4, seeds=1)


def test_the_whole_tool(
    run_folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_serve, "REQUESTS", 1)
    monkeypatch.setattr(bench_serve, "WORDS", 1)
    monkeypatch.setattr(bench_serve, "CLIENTS", (1, 2))
    options = ["--rounds=1", "--max_tokens=3", f"--output={tmp_path}", f"--peer=itself={url}"]
    bench_serve.main([str(run_folder), *options])
    assert len(capsys.readouterr().out.splitlines()) == 6
    kept = json.loads((tmp_path / "serve.json").read_text())
    assert [each["name"] for each in kept] == ["lit-lm serve", "itself"]
    if sys.platform == "linux":
        monkeypatch.setattr(serve_crowd, "SOAK_TOKENS", 8)
        monkeypatch.setattr(serve_crowd, "SOAK_SEEDS", 10)
        bench_serve.main([str(run_folder), "--soak=1"])
        found = re.fullmatch(
            r"([\d,]+) complete answers, all right; (\d+) hang-ups; MB of memory in ten parts: ((\d+, ){9}\d+)\n",
            capsys.readouterr().out,
        )
        assert found is not None
