"""A run pushes its saves to the hub in the background, and no hub can hold it up."""

import json
import signal
import threading
import time
from pathlib import Path

import pytest

from minigpt_jax import load_run
from minigpt_jax.errors import InputError, RunError
from minigpt_jax.interop import push
from minigpt_jax.interop.hugging_face import write_folder
from minigpt_jax.interop.push import Push, push_newest, upload_patiently
from minigpt_jax.runtime.files import read_jsonl
from tests.faults.processes import start_one, wait_until
from tests.harness import copy_run, train, train_here
from tests.interop.local_hub import NEVER, LocalHub

SOURCE, TARGET = "someone/tiny", "someone/tuned"
# What the client does with large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


def never(method: str, path: str) -> int:
    return NEVER


@pytest.mark.campaign
def test_a_run_from_the_hub_to_the_hub(hub, exported, trained_run, corpus, tmp_path):
    commit = hub.put(SOURCE, exported).commit
    settings = {"name": "tuned", "data__folder": corpus, "init_from": SOURCE, "save__push": TARGET}
    output = train(tmp_path, environment=hub.environment, save__every=12, **settings)
    assert f"starts with the weights of {SOURCE}@{commit}" in output
    run = tmp_path / "tuned"
    recorded = json.loads((run / "config.json").read_text())
    assert recorded["init_from"] == f"{SOURCE}@{commit}"
    # It begins where the run ended that was exported.
    ends, (begins, *_) = (read_jsonl(r / "evaluations.jsonl") for r in (trained_run, run))
    assert (begins["step"], begins["validation_loss"]) == (0, ends[-1]["validation_loss"])

    pushed = hub.repositories[TARGET]
    assert f"pushed step 12: {hub.address}/{TARGET}/commit/{pushed.commit}" in output
    assert pushed.visibility == "private" and pushed.messages == ["Step 12 of tuned"]
    # The same bytes as of an export.
    write_folder(tmp_path / "out", load_run(run), "tuned")
    assert pushed.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert f"| began with | {SOURCE}@{commit} |" in pushed.files["README.md"].decode()
    assert not (run / "push").exists()

    # A resumed run needs the repository no longer, whatever revision is meant now.
    hub.repositories.pop(SOURCE)
    output = train_here(tmp_path, **settings | {"init_from": f"{SOURCE}@main"})
    assert "all 12 steps are done" in output


def test_a_hub_that_never_answers_gets_one_push_and_ctrl_c_ends_the_last_wait(
    hub: LocalHub, trained_run, tmp_path
):
    run = copy_run(trained_run, tmp_path)
    lines: list[str] = []
    hub.fault = never
    pushes = Push(run, TARGET, lines.append)
    pushes.start(12)
    wait_until(lambda: hub.requests("/api/repos/create") > 0)
    began = time.monotonic()
    for _ in range(3):
        pushes.start(12)
    pushes.finish(False, lambda: True)
    # It has waited for nothing: a request to this hub would last forever.
    assert time.monotonic() - began < push.LAST_PUSH_IF_STOPPED
    assert hub.requests("/api/repos/create") == 1
    assert [line.partition(" ")[0] for line in lines] == ["waiting", "warning:", TARGET]
    assert f"--run {run} --out exported --push {TARGET}" in lines[-1]
    assert not (run / "push").exists()


@pytest.mark.campaign
def test_a_save_that_waited_is_pushed_when_the_push_before_it_has_ended(
    hub: LocalHub, trained_run, tmp_path, monkeypatch
):
    """The first ends without success: for each reason there is one warning."""
    lines: list[str] = []
    hub.fault = lambda method, path: 403 if hub.requests("/api/repos/create") < 2 else None
    pushes = Push(copy_run(trained_run, tmp_path), TARGET, lines.append)
    # The next push is of the newest save that came meanwhile.
    pushes.start(9)
    for step in (6, 12):
        pushes.start(step)
    assert pushes._waiting == 12
    pushes.finish(False, lambda: False)
    assert ["up to 240 s" in lines[0], "403 Forbidden" in lines[1]] == [True, True], lines
    assert lines[2].startswith("pushed step 12: ") and len(lines) == 3
    assert "model.safetensors" in hub.repositories[TARGET].files


def test_a_hub_that_fails_for_a_while_gets_the_push(hub: LocalHub, exported, monkeypatch):
    failures = {"/api/repos/create": 1, "/preupload/": 1, "/commit/": 1}

    def fault(method: str, path: str) -> int | None:
        for part in failures:
            if part in path and failures[part]:
                failures[part] -= 1
                return 500
        return None

    hub.fault = fault
    monkeypatch.setattr(push, "PAUSES", (0, 0, 0))
    assert upload_patiently(exported, TARGET, "Step 12").startswith(f"{hub.address}/{TARGET}")
    assert not any(failures.values())


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_not_tried_again(hub: LocalHub, exported, status: int):
    hub.fault = lambda method, path: status
    with pytest.raises(InputError, match="the token") as refused:
        upload_patiently(exported, TARGET, "Step 12")
    # A number of each request would make the same reason another text.
    assert "Request ID" not in str(refused.value)
    assert hub.requests("/api/repos/create") == 1


def test_only_a_checkpoint_that_verifies_is_pushed(hub: LocalHub, trained_run, tmp_path, capfd):
    run = copy_run(trained_run, tmp_path)
    array = next((run / "checkpoints" / "12" / "params").rglob("0*"))
    array.write_bytes(array.read_bytes()[:-1])
    assert push_newest(run, 12, TARGET).startswith("pushed step 9")
    assert "checkpoint 12 is damaged" in capfd.readouterr().err


def test_a_push_waits_until_its_save_is_on_disk(hub: LocalHub, trained_run, tmp_path):
    run = copy_run(trained_run, tmp_path)
    unfinished = (run / "checkpoints" / "12").rename(run / "checkpoints" / "12.unfinished")
    commit = threading.Timer(0.5, lambda: unfinished.rename(run / "checkpoints" / "12"))
    commit.start()
    assert push_newest(run, 12, TARGET).startswith("pushed step 12")


def test_a_hub_that_is_down_is_tried_again_and_fails(hub: LocalHub, exported, monkeypatch):
    hub.close()
    monkeypatch.setattr(push, "PAUSES", (0,))
    with pytest.raises(RunError):
        upload_patiently(exported, TARGET, "Step 12")


def test_a_run_that_cannot_push_is_refused_at_its_start_unless_it_is_offline(
    hub: LocalHub, corpus, tmp_path, monkeypatch
):
    settings = {"name": "run", "data__folder": corpus}
    for name in ("tuned", "a/b/c", "some one/tuned", "/tuned"):
        with pytest.raises(InputError, match="expected owner/name"):
            train_here(tmp_path, save__push=name, **settings)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="no token for the hub was found: hf auth login"):
        train_here(tmp_path, save__push=TARGET, **settings)
    assert not (tmp_path / "run").exists() and not hub.received


def test_offline_nothing_is_pushed(hub: LocalHub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    lines: list[str] = []
    pushes = Push(tmp_path, TARGET, lines.append)
    pushes.start(1)
    pushes.finish(False, lambda: False)
    assert lines == [f"note: HF_HUB_OFFLINE is set, so nothing is pushed to {TARGET}"]


@pytest.mark.campaign
def test_sigterm_ends_a_run_whose_hub_never_answers(hub: LocalHub, corpus, tmp_path):
    """All is saved, the exit code is 0, and it ends within the time that it says."""
    hub.fault = never
    settings = {"runs": tmp_path, "name": "run", "data__folder": corpus, "save__push": TARGET}
    settings |= {"horizon__steps": 10**6, "save__every": 50, "eval__every": 10**6}
    trainer = start_one(settings, **hub.environment)
    wait_until(lambda: hub.requests("/api/repos/create") > 0)
    trainer.send_signal(signal.SIGTERM)
    output, _ = trainer.communicate()
    assert trainer.returncode == 0, output
    saved = output.index("everything is saved")
    assert (
        saved < output.index(f"up to {push.LAST_PUSH_IF_STOPPED} s") < output.index("not finished")
    )
    assert "warning: " not in output


@pytest.mark.campaign
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_push_ends_with_its_trainer(hub: LocalHub, corpus, tmp_path, number: signal.Signals):
    hub.fault = never
    settings = {"runs": tmp_path, "name": "run", "data__folder": corpus, "save__push": TARGET}
    settings |= {"horizon__steps": 10**6, "save__every": 50, "eval__every": 10**6}
    trainer = start_one(settings, **hub.environment)
    wait_until(lambda: hub.requests("/api/repos/create") > 0)
    trainer.send_signal(number)
    trainer.communicate()
    wait_until(lambda: not pushing(tmp_path / "run"))


def pushing(run: Path) -> list[str]:
    """The processes that push a run."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = file.read_bytes().decode().split("\0")
        except OSError:  # it has ended
            continue
        if "minigpt_jax.interop.push" in arguments and str(run) in arguments:
            found.append(file.parent.name)
    return found
