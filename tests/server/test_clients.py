"""Clients of OpenAI's API, each in an environment of its own, against a real server.

They come from the package registries: without these, a test is skipped and says why.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from minigpt_jax.evals import harness
from minigpt_jax.loaded_run import load_run
from minigpt_jax.sharding import AXES, replicated
from tests.harness import ROOT, run_module, write_questions
from tests.server.serving import server_process

pytestmark = [pytest.mark.campaign, pytest.mark.filterwarnings("default")]
SCRIPTS = ROOT / "tests" / "server" / "clients"
# Seconds.
INSTALL_TIMEOUT = 900
CLIENT_TIMEOUT = 600
CLIENTS = {
    "openai": ("openai_client.py", ["openai"]),
    # Its first release with this interface, and the httpx of its time.
    "openai 1.0.0": ("openai_client.py", ["openai==1.0.0", "httpx<0.28"]),
    "langchain-openai": ("langchain_client.py", ["langchain-openai"]),
    "litellm": ("litellm_client.py", ["litellm"]),
}
LM_EVAL = ["lm_eval[api]>=0.4.9,<0.5", "transformers"]
ROWS = 200


def run(command: Sequence[object], timeout: int, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=timeout, **more
    )


def installed(command: Sequence[object], timeout: int = INSTALL_TIMEOUT, **more) -> None:
    """Run an installation; skips the test where it is not possible."""
    try:
        done = run(command, timeout, **more)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"cannot be installed here: {error}")
    if done.returncode:
        pytest.skip(f"cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")


def environment(folder: Path, packages: Sequence[str]) -> Path:
    """The folder of programs of a new Python environment that has `packages`."""
    installed([sys.executable, "-m", "venv", folder])
    programs = folder / "bin"
    installed([programs / "python", "-m", "pip", "install", "--quiet", *packages])
    return programs


def output_of(command: Sequence[object], **more) -> str:
    # litellm fetches a price list unless told otherwise.
    variables = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"} | more.pop("env", {})
    done = run(command, CLIENT_TIMEOUT, env=variables, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def expected(server) -> dict:
    """What the server answers to the requests of the scripts."""
    settings = {"temperature": 0, "max_tokens": 20}
    chat = {"messages": [{"role": "user", "content": "The river reads"}], **settings}
    completion = {"prompt": "The river", "echo": True, **settings}
    bodies = [("/v1/chat/completions", chat), ("/v1/completions", completion)]
    replies = [json.loads(server.request(*one).body)["choices"][0] for one in bodies]
    chat_text, text = replies[0]["message"]["content"], replies[1]["text"]
    return {
        "chat": chat_text,
        "chat_stream": chat_text,
        "completion": text,
        "completion_stream": text,
        "first_logprob": None,
        "error": True,
        "tokens": 20,
    }


def check(result: str, expected: dict) -> None:
    """`result`: the last line that a script prints."""
    found = json.loads(result.splitlines()[-1])
    assert found == {name: expected[name] for name in found} and len(found) >= 3


@pytest.mark.parametrize("client", CLIENTS)
def test_a_python_client_gets_what_the_server_sends(server, expected, tmp_path, client):
    script, packages = CLIENTS[client]
    programs = environment(tmp_path / "environment", packages)
    url = f"{server.url}/v1"
    check(output_of([programs / "python", SCRIPTS / script, url], cwd=tmp_path), expected)


def test_openais_javascript_client_gets_what_the_server_sends(server, expected, tmp_path):
    installed(["npm", "install", "--prefix", tmp_path, "openai"])
    script = shutil.copy(SCRIPTS / "openai_client.mjs", tmp_path)
    check(output_of(["node", script, f"{server.url}/v1"]), expected)


@pytest.mark.parametrize("flags", [[], ["--no-stream"]])
def test_the_program_llm_chats(server, expected, tmp_path, flags):
    programs = environment(tmp_path / "environment", ["llm"])
    (tmp_path / "extra-openai-models.yaml").write_text(
        f'- model_id: mini\n  model_name: small-chat\n  api_base: "{server.url}/v1"\n'
    )
    options = ["-o", "temperature", "0", "-o", "max_tokens", "20"]
    command = [programs / "llm", "-m", "mini", *flags, *options, "The river reads"]
    assert output_of(command, env={"LLM_USER_PATH": str(tmp_path)}) == expected["chat"]


TASK = """
task: endings
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {rows}}}}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{ctx}}}}"
doc_to_target: "{{{{label|int}}}}"
doc_to_choice: "{{{{endings}}}}"
metric_list: [{{metric: acc}}]
"""


def test_lm_evaluation_harness_finds_the_scores_of_our_adapter(trained_run, tmp_path, monkeypatch):
    """Through `local-completions`, which reads the log-probabilities of echoed prompts."""
    pytest.importorskip("lm_eval")
    programs = environment(tmp_path / "environment", LM_EVAL)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = write_questions(tmp_path / "rows.jsonl", ROWS)
    (tasks / "endings.yaml").write_text(TASK.format(rows=rows))
    exported = tmp_path / "exported"
    run_module("minigpt_jax.interop.export_hf", "--run", trained_run, "--out", exported)
    with server_process(trained_run, tmp_path / "server.log") as server:
        what = [f"{server.url}/v1", trained_run.name, exported, tasks]
        script = [programs / "python", SCRIPTS / "lm_eval_client.py"]
        theirs = json.loads(output_of([*script, *what]).splitlines()[-1])
        assert server.health()["compilations_since_warm_up"] == 0
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    run = load_run(trained_run, replicated(mesh))
    results, _ = harness.evaluate(run, mesh, tasks=["endings"], include=tasks, batch=8)
    samples = sorted(results["samples"]["endings"], key=lambda sample: sample["doc_id"])
    ours = [[response[0] for response in sample["resps"]] for sample in samples]
    assert len(ours) == len(theirs) == ROWS
    our_scores, their_scores = (
        np.array([[float(logprob) for logprob, _ in row] for row in rows])
        for rows in (ours, theirs)
    )
    np.testing.assert_allclose(their_scores, our_scores, rtol=0, atol=1e-5)
    assert [[bool(greedy) for _, greedy in row] for row in ours] == [
        [bool(greedy) for _, greedy in row] for row in theirs
    ]
