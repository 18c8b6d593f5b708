"""The command `lit-lm serve`, and lm-evaluation-harness as its client."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Command
from helpers.openai_client import strict
from helpers.serving import Served
from openai import OpenAI

from lit_lm.inference.language_model import LanguageModel, load


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_lm_evaluation_harness_measures_a_served_model(served: Served, model: LanguageModel) -> None:
    """With what its model `local-completions` sends, and reads from the answers."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from lit_lm.evaluation.harness import HarnessModel

    api = LocalCompletionsAPI.__new__(LocalCompletionsAPI)  # to be made, it needs a package for retries
    api.model, api._max_gen_toks, tokenizer = "plain", 256, model.tokenizer
    pairs = [("The cat", " liked"), ("The cat liked the", " dog."), ("小狗", "说：“你好！”"), ("", "Once upon")]
    requests = [
        (None, tokenizer.encode(context) or [tokenizer.end_id], tokenizer.encode(text)) for context, text in pairs
    ]
    greedy = model.generate("The", temperature=0, max_new_tokens=6)
    requests.append((None, tokenizer.encode("The"), [token.id for token in greedy.tokens]))

    def post(prompts: list[list[int]], **options: Any) -> Any:
        body = api._create_payload(prompts, **options)
        return httpx.post(f"{served.url}/v1/completions", json=body, timeout=60).raise_for_status().json()

    outputs = post([context + continuation for _, context, continuation in requests])
    for request, choice in zip(requests, outputs["choices"], strict=True):  # it leaves out the last one
        assert len(choice["logprobs"]["token_logprobs"]) == sum(map(len, request[1:])) + 1
    scores = api.parse_logprobs(outputs, ctxlens=[len(context) for _, context, _ in requests])
    theirs = HarnessModel(model, batch_size=1)._loglikelihood_tokens(requests)
    assert [likeliest for _, likeliest in scores] == [likeliest for _, likeliest in theirs]
    assert scores[-1][1]
    assert [value for value, _ in scores] == pytest.approx([value for value, _ in theirs], abs=1e-4)

    kwargs = {"until": ["\n\n", "zebra"], "max_gen_toks": 6, "temperature": 0, "do_sample": False}
    outputs = post([context for _, context, _ in requests[-1:]], generate=True, gen_kwargs=kwargs, eos=None)
    assert api.parse_generations(outputs) == [greedy.continuation]


@pytest.mark.parametrize("option", ["--api_key=", "--host="])
def test_an_empty_variable_of_a_shell_does_not_open_the_server(option: str, lit_lm: Command) -> None:
    assert "--api_key and --host must not be empty" in lit_lm("serve", option, fails=True)


def test_the_command(run_folder: Path) -> None:
    model = load(run_folder, device="cpu")
    command = [sys.executable, "-m", "lit_lm", "serve", str(run_folder), "--port=0", "--device=cpu", "--api_key=k"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            printed = re.fullmatch(r"tiny: (http://127\.0\.0\.1:\d+) \(Ctrl-C to stop\)\n", process.stdout.readline())
            assert printed is not None
            with OpenAI(base_url=f"{printed[1]}/v1", api_key="k", max_retries=0, timeout=60) as client:
                answer = strict(client.completions.create(model="tiny", prompt="The cat", seed=3, temperature=0.7))
            text = model.generate("The cat", seed=3, temperature=0.7, top_p=1.0, max_new_tokens=16)
            assert answer.choices[0].text == text.continuation
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert errors == "lit-lm: stopped by SIGINT\n"
