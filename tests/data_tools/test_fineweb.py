"""The promises of the data tool: every token where it belongs, the same bytes whatever happens on the way."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_tools.fineweb import _BATCH_CHARACTERS, prepare
from minigpt_jax.errors import InputError
from minigpt_jax.token_stream import read_manifest
from minigpt_jax.tokenizer import END_OF_TEXT, load_tokenizer

WORDS = [
    "the",
    "of",
    "light",
    "cell",
    "wave",
    "is",
    "plant",
    "when",
    "water",
    "café",
    "3",
    "1984",
    ",",
    ".",
    "(",
    "don't",
    "Ωhm",
    "--",
    "\n",
]
SHARD = 48_000


def generate(seed: int, documents: int, words: int) -> list[str]:
    """Texts of about `words` words each, the same for a seed."""
    draw = random.Random(seed)
    return [
        " ".join(draw.choices(WORDS, k=draw.randint(words // 2, words * 3 // 2)))
        for _ in range(documents)
    ]


def write_jsonl(path: Path, rows: list) -> Path:
    """One JSON value a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A few megabytes: several batches and more than twenty shards of SHARD tokens."""
    texts = generate(1, documents=1_200, words=1_000)
    assert sum(map(len, texts)) > 2 * _BATCH_CHARACTERS
    return write_jsonl(
        tmp_path_factory.mktemp("corpus") / "texts.jsonl", [{"text": text} for text in texts]
    )


@pytest.fixture(scope="module")
def reference(corpus: Path, tmp_path_factory) -> dict[str, bytes]:
    """What a run that nothing disturbs writes."""
    out = tmp_path_factory.mktemp("reference") / "out"
    prepare([str(corpus)], out, shard_tokens=SHARD, val_every=20, workers=1)
    return contents(out)


@pytest.fixture(scope="module")
def slow(corpus: Path, tmp_path_factory) -> Path:
    """The corpus and one word of 600,000 letters, which keeps a worker busy for a while after the first shards are there."""
    letters = "".join(random.Random(3).choices("abcdefgh", k=600_000))
    path = tmp_path_factory.mktemp("slow") / "texts.jsonl"
    path.write_text(corpus.read_text() + json.dumps({"text": letters}) + "\n")
    return path


@pytest.fixture(scope="module")
def slow_reference(slow: Path, tmp_path_factory) -> dict[str, bytes]:
    """What a run on `slow` that nothing disturbs writes."""
    out = tmp_path_factory.mktemp("reference") / "out"
    prepare([str(slow)], out, shard_tokens=SHARD, val_every=20, workers=1)
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(corpus: Path, out: Path, *more: str, failpoint: str = "", **options) -> subprocess.Popen:
    """The real program, in a session of its own, on the corpus of the reference."""
    arguments = [
        "--source",
        corpus,
        "--out",
        out,
        "--shard-tokens",
        SHARD,
        "--val-every",
        20,
        "--workers",
        2,
        *more,
    ]
    command = [sys.executable, "-m", "data_tools.fineweb", *map(str, arguments)]
    environment = os.environ | {"MINIGPT_FAILPOINT": failpoint}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        env=environment,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
        **options,
    )


def finish(process: subprocess.Popen, code: int) -> str:
    """Wait for the program; what it said, after checking its exit code and that it shows no traceback."""
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stdout + stderr
    assert "Traceback" not in stderr
    return stdout + stderr


def wait_for(condition, process: subprocess.Popen | None = None, seconds: float = 20) -> None:
    """Poll until `condition` holds (or the process ended by itself)."""
    deadline = time.monotonic() + seconds
    while not condition() and (process is None or process.poll() is None):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def workers_of(pid: int) -> list[int]:
    """Process ids of the worker processes of a data tool."""
    return [
        int(child)
        for child in subprocess.run(
            ["pgrep", "-P", str(pid), "-f", "spawn_main"], capture_output=True
        ).stdout.split()
    ]


def is_running(pid: int) -> bool:
    """Whether a process still does something (a zombie does not)."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    ).stdout
    return bool(state) and not state.startswith("Z")


def test_every_document_begins_with_the_separator_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hostile = [
        "a <|endoftext|> b<|user|><|end|>",
        "nul \0 inside",
        "lone \ud800 surrogate \udfff",
        "word " * 2_000_000,
        "\u2028 é 漢字 🙂",
        " x",
    ]
    monkeypatch.setattr(
        "data_tools.fineweb._BATCH_CHARACTERS", 1_000
    )  # more batches than are ever under way at once
    texts = hostile + generate(2, documents=50, words=20)
    skipped = [
        {"text": None},
        {"text": ""},
        {"text": " \n\t"},
        {"text": 7},
        {"other": "x"},
        [1],
        {"text": ["a"]},
    ]
    rows = [{"text": text} for text in texts]
    source = write_jsonl(tmp_path / "rows.jsonl", skipped[:4] + rows[:10] + skipped[4:] + rows[10:])
    prepare([str(source)], tmp_path / "out", val_every=7, shard_tokens=1_000_000, workers=1)

    encode = load_tokenizer().encode
    manifest = read_manifest(tmp_path / "out")
    for split, chosen in {
        "val": texts[::7],
        "train": [text for n, text in enumerate(texts) if n % 7],
    }.items():
        entry = manifest["splits"][split]
        found = np.concatenate(
            [np.load(tmp_path / "out" / shard["file"]) for shard in entry["shards"]]
        )
        expected = [token for text in chosen for token in (END_OF_TEXT, *encode(text))]
        assert found.dtype == np.uint16 and found.tolist() == expected
        assert entry["documents"] == len(chosen) == np.count_nonzero(found == END_OF_TEXT)
        assert all(shard["tokens"] == 1_000_000 for shard in entry["shards"][:-1])


def test_shards_do_not_depend_on_workers_or_on_how_rows_are_spread_over_files(
    corpus: Path, reference: dict[str, bytes], tmp_path: Path
):
    lines = corpus.read_text().splitlines(keepends=True)
    folder = tmp_path / "parts"
    folder.mkdir()
    for part, first in enumerate(range(0, len(lines), 120)):
        (folder / f"{part}.jsonl").write_text("".join(lines[first : first + 120]))
    prepare([str(corpus)], tmp_path / "two", shard_tokens=SHARD, val_every=20, workers=2)
    prepare([str(folder)], tmp_path / "parted", shard_tokens=SHARD, val_every=20, workers=3)
    assert len(reference) > 15
    assert contents(tmp_path / "two") == reference
    shards = {name: content for name, content in reference.items() if name.endswith(".npy")}
    assert {
        name: content
        for name, content in contents(tmp_path / "parted").items()
        if name.endswith(".npy")
    } == shards


def test_the_summary_counts_what_was_skipped_and_why(tmp_path: Path, capsys: pytest.CaptureFixture):
    rows = [{"text": "one"}, {"text": None}, {"text": " "}, {"text": "two"}, {"text": 3}, {}]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    with source.open("a") as file:
        file.write('{"text": "cut off\n')
    prepare([str(source)], tmp_path / "out", workers=1)
    said = capsys.readouterr().out
    assert re.search(
        r"^skipped +1 blank, 1 broken JSON, 2 field missing or null, 1 not a string$", said, re.M
    )
    assert re.search(r"^documents +2$", said, re.M) and re.search(r"^separators +2$", said, re.M)
    assert re.search(r"^text tokens +2$", said, re.M) and said.startswith("estimate: ")


@pytest.mark.parametrize(
    "tokenizers",
    [((), ("--no-fast",)), pytest.param((("--no-fast",), ()), marks=pytest.mark.campaign)],
    ids=["fast-plain", "plain-fast"],
)
@pytest.mark.parametrize(
    "point", ["before_replace", "before_journal@12", "before_manifest", "after_manifest"]
)
def test_a_kill_at_a_named_point_changes_nothing(
    corpus: Path, reference: dict[str, bytes], tmp_path: Path, point: str, tokenizers: tuple
):
    out = tmp_path / "out"
    finish(start(corpus, out, *tokenizers[0], failpoint=f"{point}:kill"), code=-signal.SIGKILL)
    journal = (
        json.loads((out / "progress.json").read_text())
        if (out / "progress.json").exists()
        else {"splits": {}}
    )
    safe = {
        shard["file"]: (out / shard["file"]).stat().st_mtime_ns
        for place in journal["splits"].values()
        for shard in place["shards"]
    }
    assert point != "before_journal@12" or len(safe) >= 11
    finish(start(corpus, out, *tokenizers[1], "--workers", "1"), code=0)
    assert contents(out) == reference
    assert {name: (out / name).stat().st_mtime_ns for name in safe} == safe, (
        "a complete shard was written again"
    )


def test_kills_at_random_times_change_nothing_and_leave_no_worker_behind(
    corpus: Path, reference: dict[str, bytes], tmp_path: Path
):
    out, draw, kills = tmp_path / "out", random.Random(), 0
    while kills < 2:
        process = start(corpus, out, "--no-fast")
        before = len(list(out.glob("*.npy"))) if out.exists() else 0
        wait_for(lambda before=before: len(list(out.glob("*.npy"))) > before, process)
        time.sleep(draw.uniform(0, 0.1))
        workers = workers_of(process.pid)
        process.kill()
        if finish_killed(process):
            break
        kills += 1
        wait_for(lambda workers=workers: not any(map(is_running, workers)), seconds=5)
    finish(start(corpus, out, "--workers", "1"), code=0)
    assert kills and contents(out) == reference


def finish_killed(process: subprocess.Popen) -> bool:
    """Collect a process that was sent SIGKILL; True when it had finished before."""
    process.communicate(timeout=10)
    return process.returncode == 0


def test_a_killed_worker_ends_the_run_and_the_same_command_goes_on(
    slow: Path, slow_reference: dict[str, bytes], tmp_path: Path
):
    out = tmp_path / "out"
    process = start(slow, out, "--no-fast")
    wait_for(lambda: (out / "train_000000.npy").exists(), process)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    killed = time.monotonic()
    said = finish(process, code=1)
    assert time.monotonic() - killed < 10
    assert "failed: " in said and "worker process was killed" in said and "same command" in said
    finish(start(slow, out, "--workers", "1"), code=0)
    assert contents(out) == slow_reference


def test_ctrl_c_stops_at_once_and_the_same_command_goes_on(
    slow: Path, slow_reference: dict[str, bytes], tmp_path: Path
):
    out = tmp_path / "out"
    process = start(slow, out, "--no-fast")
    wait_for(lambda: (out / "train_000000.npy").exists(), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    assert "same command" in finish(process, code=130)
    finish(start(slow, out, "--workers", "1"), code=0)
    assert contents(out) == slow_reference


def test_a_full_disk_ends_the_run_with_one_line_and_nothing_half_written(
    corpus: Path, reference: dict[str, bytes], tmp_path: Path
):
    out = tmp_path / "out"
    said = finish(start(corpus, out, failpoint="before_journal@3:enospc"), code=1)
    assert len(re.findall("^failed: .*no space left.*same command", said, re.M)) == 1
    assert not list(out.glob("*.tmp"))
    finish(start(corpus, out, "--workers", "1"), code=0)
    assert contents(out) == reference


def test_a_file_the_system_refuses_to_grow_is_never_left_under_its_final_name(
    corpus: Path, tmp_path: Path
):
    out = tmp_path / "out"

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SHARD, SHARD))  # bytes: half a shard

    said = finish(start(corpus, out, preexec_fn=small_files), code=1)
    assert said.count("failed: ") == 1 and "same command" in said
    assert [path.name for path in out.iterdir()] == ["progress.json"]


def test_a_finished_folder_is_left_as_it_is(
    corpus: Path, reference: dict[str, bytes], tmp_path: Path
):
    out = tmp_path / "out"
    finish(start(corpus, out), code=0)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert "done before" in finish(start(corpus, out), code=0)
    said = finish(start(corpus, out, "--val-every", "10"), code=2)
    assert re.search("^error: .*1 document in 20 .*1 document in 10 .*another --out", said, re.M)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times


def test_an_unfinished_folder_goes_on_only_from_the_same_text_and_untouched_shards(
    corpus: Path, tmp_path: Path
):
    out, other = tmp_path / "out", write_jsonl(tmp_path / "texts.jsonl", [{"text": "other"}] * 5)
    finish(start(corpus, out, failpoint="before_journal@9:kill"), code=-signal.SIGKILL)
    assert "another --out" in finish(start(other, out), code=2)
    shard = out / "train_000002.npy"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    assert re.search(
        "^error: .*train_000002.npy: missing or changed", finish(start(corpus, out), code=2), re.M
    )


def test_input_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path):
    single = write_jsonl(tmp_path / "single.jsonl", [{"text": "alone"}, {"text": None}])
    with pytest.raises(
        InputError,
        match=r"1 usable documents in column 'text' \(skipped: 1 field missing or null\), expected one for each split",
    ):
        prepare([str(single)], tmp_path / "out", workers=1)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match=r"broken\.parquet: cannot be read"):
        prepare([str(tmp_path / "broken.parquet")], tmp_path / "out", workers=1)
    with pytest.raises(InputError, match=r"missing\.jsonl: no such file"):
        prepare([str(tmp_path / "missing.jsonl")], tmp_path / "out", workers=1)
    with pytest.raises(InputError, match="lies within --source"):
        prepare([str(tmp_path)], tmp_path / "out", workers=1)
    (tmp_path / "foreign").mkdir()
    np.save(tmp_path / "foreign" / "train_000000.npy", np.zeros(10, np.uint16))
    with pytest.raises(InputError, match=r"unknown origin.*data_tools\.index"):
        prepare([str(single)], tmp_path / "foreign", workers=1)


def test_limit_takes_the_first_documents(corpus: Path, tmp_path: Path):
    prepare([str(corpus)], tmp_path / "out", val_every=4, limit=10, workers=1)
    splits = read_manifest(tmp_path / "out")["splits"]
    assert (splits["val"]["documents"], splits["train"]["documents"]) == (3, 7)


def test_workers_start_light():
    check = "import sys, data_tools.fineweb, data_tools.index; print(sorted({'jax', 'flax', 'torch', 'datasets', 'pandas'} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", check], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
