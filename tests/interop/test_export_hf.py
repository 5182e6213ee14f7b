"""An exported run is whole, says what it is, round-trips bit for bit, is the same model in transformers, and uploads."""

import base64
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from minigpt_jax import load_run
from minigpt_jax.interop import export_hf, import_gpt2
from tests.harness import ENVIRONMENT, ROOT
from tests.interop.models import BASE, CHAT, make_run, tensors
from tests.interop.peers import beside_transformers

FILES = [
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]


def run_export(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "minigpt_jax.interop.export_hf", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_chat_model_is_exported_with_all_that_it_needs(tmp_path: Path):
    run, out = make_run(tmp_path / "chat", CHAT), tmp_path / "exported"
    done = run_export("--run", str(run), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in out.iterdir()) == FILES and sorted(
        p.name for p in tmp_path.iterdir()
    ) == ["chat", "exported"]
    found = {name: json.loads((out / name).read_text()) for name in FILES if name.endswith(".json")}
    assert (
        found["config.json"]["vocab_size"] == 50261
        and found["config.json"]["eos_token_id"] == 50260
    )
    assert (
        found["generation_config.json"]["eos_token_id"] == [50260, 50256]
        and found["generation_config.json"]["max_length"] == 64
    )
    assert (
        found["tokenizer_config.json"]["eos_token"] == "<|end|>"
        and "<|assistant|>" in found["tokenizer_config.json"]["chat_template"]
    )
    card = (out / "README.md").read_text()
    assert (
        f"{CHAT.parameters:,}" in card
        and "Text from strangers" in card
        and "imported from random numbers, not trained further" in card
    )
    weights = load_file(out / "model.safetensors")
    assert weights["transformer.wte.weight"].shape == (50261, 32)  # without the padding
    assert all(
        weights[name].tobytes() == tensor.tobytes() for name, tensor in tensors(CHAT).items()
    ) and len(weights) == len(tensors(CHAT))

    again = run_export("--run", str(run), "--out", str(out))
    assert again.returncode == 2 and "is not empty" in again.stderr
    (tmp_path / "file").touch()
    again = run_export("--run", str(run), "--out", str(tmp_path / "file"))
    assert again.returncode == 2 and "is a file" in again.stderr


def test_import_and_export_give_the_same_file_back(tmp_path: Path):
    export_hf.export(make_run(tmp_path / "run", BASE), tmp_path / "first")
    import_gpt2.write_run(
        tmp_path / "back", *import_gpt2.read_gpt2(tmp_path / "first"), "the first"
    )
    export_hf.export(tmp_path / "back", tmp_path / "second")
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == (
        tmp_path / "second" / "model.safetensors"
    ).read_bytes()
    settings = json.loads((tmp_path / "first" / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|endoftext|>" and "chat_template" not in settings


def test_transformers_computes_and_speaks_the_same(tmp_path: Path):
    pytest.importorskip("torch", exc_type=ImportError)
    pytest.importorskip("transformers")
    run = make_run(tmp_path / "chat", CHAT)
    export_hf.export(run, tmp_path / "out")
    assert beside_transformers(load_run(run), tmp_path / "out", 4) == []


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that an upload speaks; what it was sent is in `server.received`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.received.append((self.path, self.headers.get("Authorization"), body))
        if self.path == "/api/repos/create":
            answer = {
                "url": f"{self.server.address}/someone/tiny",
                "name": "someone/tiny",
                "id": "1",
            }
        elif "/preupload/" in self.path:
            answer = {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
            }
        else:
            answer = {
                "commitUrl": f"{self.server.address}/someone/tiny/commit/0",
                "commitOid": "0" * 40,
                "hookOutput": "",
                "success": True,
            }
        self.reply(200, answer)

    def do_GET(self):
        self.reply(404, {"error": "not here"})

    do_HEAD = do_GET

    def reply(self, code: int, answer: dict):
        content = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_push_uploads_every_file_and_a_refusal_is_one_line(tmp_path: Path):
    run = make_run(tmp_path / "chat", BASE)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.received, server.address = [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        hub = {
            "HF_ENDPOINT": server.address,
            "HF_TOKEN": "hf_test",
            "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_XET": "1",
        }
        done = run_export(
            "--run", str(run), "--out", str(tmp_path / "out"), "--push", "someone/tiny", **hub
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0 and "uploaded: " in done.stdout, done.stderr
    commits = [body for path, _, body in server.received if "/commit/" in path]
    lines = [json.loads(line) for line in commits[0].splitlines()]
    sent = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in lines
        if line["key"] == "file"
    }
    assert sent == {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
    assert all(token == "Bearer hf_test" for _, token, _ in server.received)

    done = run_export(
        "--run", str(run), "--out", str(tmp_path / "again"), "--push", "someone/tiny", **hub
    )
    assert (
        done.returncode == 1
        and "the hub did not take it" in done.stderr
        and "Traceback" not in done.stderr
    ), done.stderr
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == FILES
