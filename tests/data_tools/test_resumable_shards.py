"""The shards are the same bytes whatever happens on the way: kills, full disks, other workers."""

import json
import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from data_tools.encoders import BATCH_CHARACTERS
from data_tools.fast_tokenizer import FastTokenizer
from data_tools.fineweb import prepare
from data_tools.summary import BYTES_PER_TOKEN
from minigpt_jax.errors import InputError, RunError
from tests.data_tools.preparations import (
    SHARD_TOKENS,
    contents,
    finish,
    is_running,
    random_texts,
    recipe,
    start,
    wait_for,
    workers_of,
    write_jsonl,
)

FAST = FastTokenizer()
# A word of this many characters keeps tiktoken busy for about a second.
SLOW_CHARACTERS = 1_000_000
# The reference has two shards of validation tokens.
FIRST_SHARD_OF_SLOW_DOCUMENT = "val_000002.npy"
KILLS = 2
# Runs that may end before the test can stop them.
ATTEMPTS = 10
POINTS = ["before_replace", "before_progress@12", "before_manifest", "after_manifest"]


def write_corpus(path: Path, last_text: str) -> Path:
    """A few megabytes of text, and a last document in a line whose size does not depend on it."""
    texts = random_texts(1, documents=1_200, words=1_000)
    assert sum(map(len, texts)) > 2 * BATCH_CHARACTERS
    padding = "x" * (SLOW_CHARACTERS - len(last_text))
    rows = [{"text": text} for text in texts] + [{"text": last_text, "padding": padding}]
    return write_jsonl(path, rows)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Several batches and more than twenty shards."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "texts.jsonl", "the end")


@pytest.fixture(scope="module")
def slow_corpus(tmp_path_factory) -> Path:
    """The corpus, but its last document takes long."""
    word = "".join(random.Random(3).choices("abcdefgh", k=SLOW_CHARACTERS))
    return write_corpus(tmp_path_factory.mktemp("slow") / "texts.jsonl", word)


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory) -> Path:
    """The folder of a run that nothing disturbs. Not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    prepare(recipe(corpus), out, workers=1)
    return out


@pytest.fixture(scope="module")
def reference(finished: Path) -> dict[str, bytes]:
    """The files of a run that nothing disturbs."""
    return contents(finished)


@pytest.fixture(scope="module")
def slow_reference(slow_corpus: Path, tmp_path_factory) -> dict[str, bytes]:
    """The files of a run on `slow_corpus` that nothing disturbs."""
    out = tmp_path_factory.mktemp("slow_finished") / "out"
    prepare(recipe(slow_corpus), out, workers=1)
    return contents(out)


def shards(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.endswith(".npy")}


def modification_times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def complete_shards(out: Path) -> set[str]:
    """The shards that the progress file lists."""
    if not (out / "progress.json").exists():
        return set()
    progress = json.loads((out / "progress.json").read_text())
    return {shard["file"] for split in progress["splits"].values() for shard in split["shards"]}


def test_shards_do_not_depend_on_the_number_of_workers_and_files(
    corpus: Path, reference: dict[str, bytes], tmp_path: Path
):
    lines = corpus.read_text().splitlines(keepends=True)
    folder = tmp_path / "parts"
    folder.mkdir()
    for part, first in enumerate(range(0, len(lines), 120)):
        (folder / f"{part:02d}.jsonl").write_text("".join(lines[first : first + 120]))
    prepare(recipe(corpus), tmp_path / "two", workers=2)
    prepare(recipe(folder), tmp_path / "parted", workers=3, fast_tokenizer=FAST)
    assert len(reference) > 15 and FIRST_SHARD_OF_SLOW_DOCUMENT not in reference
    assert contents(tmp_path / "two") == reference
    assert shards(contents(tmp_path / "parted")) == shards(reference)


@pytest.mark.parametrize(
    ("options", "fast"),
    [([], None), pytest.param(["--no-fast"], FAST, marks=pytest.mark.campaign)],
    ids=["fast-plain", "plain-fast"],
)
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_a_named_point_changes_no_byte(
    corpus: Path,
    reference: dict[str, bytes],
    tmp_path: Path,
    point: str,
    options: list[str],
    fast: FastTokenizer | None,
):
    out = tmp_path / "out"
    killed = start(corpus, out, *options, failpoint=f"{point}:kill")
    finish(killed, code=-signal.SIGKILL)
    complete = complete_shards(out)
    assert point != "before_progress@12" or len(complete) >= 11
    before = modification_times(out)
    prepare(recipe(corpus), out, workers=1, fast_tokenizer=fast)
    assert contents(out) == reference
    after = modification_times(out)
    assert all(after[name] == before[name] for name in complete), "a complete shard was rewritten"


def test_kills_at_random_times_change_no_byte_and_leave_no_worker(
    corpus: Path, reference: dict[str, bytes], tmp_path: Path
):
    out = tmp_path / "out"
    draw = random.Random()
    kills = 0
    for _ in range(ATTEMPTS):
        process = start(corpus, out, "--no-fast")
        before = len(list(out.glob("*.npy")))
        wait_for(lambda before=before: len(list(out.glob("*.npy"))) > before, process)
        time.sleep(draw.uniform(0, 0.1))
        workers = workers_of(process.pid)
        process.kill()
        process.communicate()
        if process.returncode == 0:
            # It ended before the kill: begin again.
            shutil.rmtree(out)
            continue
        wait_for(lambda workers=workers: not any(map(is_running, workers)))
        kills += 1
        if kills == KILLS:
            break
    assert kills == KILLS
    prepare(recipe(corpus), out, workers=1, fast_tokenizer=FAST)
    assert contents(out) == reference


def interrupt(slow_corpus: Path, out: Path, send: Callable[[int], None], code: int) -> str:
    """The output of a run that receives a signal, by `send(its process id)`, after its first shard.

    Begins again where the run was too fast for that, and has written the slow document already.
    """
    for _ in range(ATTEMPTS):
        process = start(slow_corpus, out, "--no-fast")
        wait_for((out / "train_000000.npy").exists, process)
        with suppress(ProcessLookupError):
            send(process.pid)
        process.wait()
        if not (out / FIRST_SHARD_OF_SLOW_DOCUMENT).exists():
            return finish(process, code)
        process.communicate()
        shutil.rmtree(out)
    raise AssertionError("every run ended before the signal")


def test_a_killed_worker_ends_the_run_and_the_same_command_continues(
    slow_corpus: Path, slow_reference: dict[str, bytes], tmp_path: Path
):
    def kill_worker(pid: int) -> None:
        for worker in workers_of(pid)[:1]:
            os.kill(worker, signal.SIGKILL)

    output = interrupt(slow_corpus, tmp_path / "out", kill_worker, code=1)
    assert "failed: " in output and "worker process was killed" in output
    assert "same command" in output
    prepare(recipe(slow_corpus), tmp_path / "out", workers=1, fast_tokenizer=FAST)
    assert contents(tmp_path / "out") == slow_reference


def test_ctrl_c_stops_the_run_and_the_same_command_continues(
    slow_corpus: Path, slow_reference: dict[str, bytes], tmp_path: Path
):
    def press_ctrl_c(pid: int) -> None:
        # A terminal sends the signal to the whole group, workers included.
        os.killpg(pid, signal.SIGINT)

    output = interrupt(slow_corpus, tmp_path / "out", press_ctrl_c, code=130)
    assert "same command" in output
    prepare(recipe(slow_corpus), tmp_path / "out", workers=1, fast_tokenizer=FAST)
    assert contents(tmp_path / "out") == slow_reference


def test_a_full_disk_leaves_nothing_half_written_and_the_same_command_continues(
    corpus: Path, reference: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    monkeypatch.setenv("MINIGPT_FAILPOINT", "before_progress@3:enospc")
    with pytest.raises(RunError, match=r"No space left.*free space.*same command"):
        prepare(recipe(corpus), out, workers=1, fast_tokenizer=FAST)
    assert not list(out.glob("*.tmp"))
    monkeypatch.delenv("MINIGPT_FAILPOINT")
    prepare(recipe(corpus), out, workers=1, fast_tokenizer=FAST)
    assert contents(out) == reference


def test_the_estimate_leaves_out_complete_shards(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def estimated_megabytes() -> float:
        found = re.search(r"([0-9.]+) MB of disk", capsys.readouterr().out)
        assert found
        return float(found[1])

    monkeypatch.setenv("MINIGPT_FAILPOINT", "before_progress@12:enospc")
    with pytest.raises(RunError):
        prepare(recipe(corpus), tmp_path / "out", workers=1, fast_tokenizer=FAST)
    monkeypatch.delenv("MINIGPT_FAILPOINT")
    complete = len(complete_shards(tmp_path / "out")) * SHARD_TOKENS * BYTES_PER_TOKEN / 1e6
    whole = estimated_megabytes()
    prepare(recipe(corpus), tmp_path / "out", workers=1, fast_tokenizer=FAST)
    assert complete > 1
    # The first batches of the two runs are different, and so are the tokens per byte.
    assert estimated_megabytes() == pytest.approx(whole - complete, abs=0.2)


def test_a_file_that_cannot_grow_is_never_left_under_its_final_name(corpus: Path, tmp_path: Path):
    out = tmp_path / "out"

    def limit_file_size() -> None:
        half_a_shard = SHARD_TOKENS  # in bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (half_a_shard, half_a_shard))

    output = finish(start(corpus, out, preexec_fn=limit_file_size), code=1)
    assert output.count("failed: ") == 1 and "same command" in output
    assert [path.name for path in out.iterdir()] == ["progress.json"]


def test_a_finished_folder_is_not_changed(
    corpus: Path, finished: Path, capsys: pytest.CaptureFixture
):
    before = modification_times(finished)
    prepare(recipe(corpus), finished)
    assert "done before" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"1 document in 20 .*1 document in 10 .*another --out"):
        prepare(recipe(corpus, val_every=10), finished)
    assert modification_times(finished) == before


def test_an_unfinished_folder_continues_only_with_the_same_text_and_unchanged_shards(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    monkeypatch.setenv("MINIGPT_FAILPOINT", "before_progress@9:enospc")
    with pytest.raises(RunError):
        prepare(recipe(corpus), out, workers=1, fast_tokenizer=FAST)
    monkeypatch.delenv("MINIGPT_FAILPOINT")
    other = write_jsonl(tmp_path / "texts.jsonl", [{"text": "other"}] * 5)
    with pytest.raises(InputError, match="another --out"):
        prepare(recipe(other), out, workers=1)
    shard = out / "train_000002.npy"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"train_000002\.npy: missing or changed"):
        prepare(recipe(corpus), out, workers=1)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"source": "a", "splits": {"train": {}}}', "half a line"],
)
def test_a_damaged_progress_file_is_refused(tmp_path: Path, content: str):
    source = write_jsonl(tmp_path / "texts.jsonl", [{"text": "text"}] * 5)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "progress.json").write_text(content)
    with pytest.raises(InputError, match=r"progress\.json: not a progress file.*delete") as error:
        prepare(recipe(source), tmp_path / "out", workers=1)
    assert "\n" not in str(error.value)
