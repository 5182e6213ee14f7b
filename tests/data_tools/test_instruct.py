"""Finetuning data: every conversation whole and once, the mask on its answers and nowhere else, and a reason for every row that is left out."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data_tools.instruct import conversation_of, messages_of, pack
from minigpt_jax.chat import BadConversation, render
from minigpt_jax.token_stream import MANIFEST, open_stream
from minigpt_jax.tokenizer import ASSISTANT, CHAT_VOCAB, END, END_OF_TEXT, USER, load_tokenizer

ROOT = Path(__file__).parents[2]
TOKENIZER = load_tokenizer()
CONTEXT = 64


def instruct(*arguments: object, failpoint: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_tools.instruct", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"MINIGPT_FAILPOINT": failpoint},
        capture_output=True,
        text=True,
        timeout=60,
    )


def some_rows(count: int) -> list[dict]:
    """Pairs of many lengths, every fourth a dialogue; no two the same."""
    draw = random.Random(0)
    rows = []
    for number in range(count):
        texts = [f"{number} " + "word " * draw.randrange(1, 12) for _ in range(4)]
        pair = {"prompt": texts[0], "completion": texts[1]}
        roles = ("user", "assistant", "user", "assistant")
        dialogue = {
            "messages": [
                {"role": role, "content": text} for role, text in zip(roles, texts, strict=True)
            ]
        }
        rows.append(pair if number % 4 else dialogue)
    return rows


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def learned(tokens: list[int]) -> list[int]:
    """The mask by another road than the template's: on from behind <|assistant|> to the <|end|> that closes it."""
    mask, inside = [], False
    for token in tokens:
        mask.append(int(inside))
        inside = token == ASSISTANT or (inside and token != END)
    return mask


def test_every_conversation_is_whole_in_a_row_and_masked_on_its_answers(tmp_path):
    rows = some_rows(400)
    done = instruct(
        "--source",
        write_lines(tmp_path / "rows.jsonl", rows),
        "--out",
        tmp_path / "out",
        "--context",
        CONTEXT,
    )
    assert done.returncode == 0, done.stderr
    expected = sorted(tuple(render(messages_of(row), TOKENIZER)[0]) for row in rows)
    found, ordinals = [], {}
    for split in ("train", "val"):
        stream = open_stream(
            tmp_path / "out",
            split,
            tokenizer=TOKENIZER.hash,
            vocab_size=CHAT_VOCAB,
            context=CONTEXT,
        )
        tokens, mask = stream.read(0, stream.length), stream.read_mask(0, stream.length)
        assert stream.length % CONTEXT == 1 and tokens[-1] == END_OF_TEXT and mask[-1] == 0
        np.testing.assert_array_equal(mask, learned(tokens.tolist()))
        own = []
        for row in tokens[:-1].reshape(-1, CONTEXT):
            assert row[0] == END_OF_TEXT
            pieces = np.split(row, np.flatnonzero(row == END_OF_TEXT)[1:])
            own += [
                tuple(piece.tolist()) for piece in pieces if len(piece) > 1
            ]  # a piece of one is padding
        ordinals[split] = sorted(int(TOKENIZER.decode(piece[2:]).split()[0]) for piece in own)
        found += own
    assert sorted(found) == expected
    assert ordinals["val"] == [0, 100, 200, 300]


def test_packing_leaves_little_room_and_mixes_lengths():
    draw = random.Random(1)
    lengths = [min(256, 8 + int(draw.expovariate(1 / 40))) for _ in range(2000)]
    rows = pack(lengths, 256)
    assert sorted(number for row in rows for number in row) == list(range(2000))
    fills = [sum(lengths[number] for number in row) for row in rows]
    assert max(fills) <= 256 and sum(fills) > 0.99 * 256 * len(rows)
    halves = [
        [lengths[number] for row in part for number in row]
        for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :])
    ]
    assert 0.5 < np.mean(halves[0]) / np.mean(halves[1]) < 2
    assert pack([256, 256], 256) == [[0], [1]]


ASKED = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    "row, messages",
    [
        ({"prompt": " q\n", "completion": "\ta ", "meta": {"id": 1}}, ASKED),
        ({"system": "s", "prompt": "q", "completion": "a"}, [SYSTEM, *ASKED]),
        ({"system": "", "prompt": "q", "completion": "a", "messages": None}, ASKED),
        ({"messages": [SYSTEM, *ASKED, *ASKED], "prompt": "not this"}, [SYSTEM, *ASKED, *ASKED]),
        ({"instruction": "q", "input": "", "output": "a"}, ASKED),
        (
            {"instruction": "q", "input": "i", "output": "a", "text": "all"},
            [{"role": "user", "content": "q\n\ni"}, ASKED[1]],
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "q"},
                    {"from": "gpt", "value": "a"},
                ]
            },
            [SYSTEM, *ASKED],
        ),
        (
            {
                "conversations": [
                    {"from": "user", "value": "q"},
                    {"from": "assistant", "value": "a"},
                ]
            },
            ASKED,
        ),
        ({"question": "q", "answer": "a"}, ASKED),
    ],
)
def test_schemas(row, messages):
    assert messages_of(row) == messages


@pytest.mark.parametrize(
    "row, reason",
    [
        ({}, "field missing"),
        ({"text": "hello"}, "field missing"),
        ({"prompt": "q"}, "field missing"),
        ({"prompt": "q", "completion": None}, "field missing"),
        ({"prompt": 7, "completion": "a"}, "not a text"),
        ({"prompt": "q", "completion": ["a"]}, "not a text"),
        ({"instruction": "q", "input": {"x": 1}, "output": "a"}, "not a text"),
        ({"prompt": "q", "completion": " \n"}, "empty answer"),
        ({"prompt": "", "completion": ""}, "empty answer"),
        ({"prompt": " ", "completion": "a"}, "empty message"),
        ({"messages": "q"}, "not a list"),
        ({"messages": ["q", "a"]}, "not a list"),
        ({"messages": []}, "role order"),
        ({"messages": [{"role": "user", "content": None}]}, "not a text"),
        ({"messages": [{"role": "wizard", "content": "q"}]}, "unknown role"),
        ({"messages": [{"role": ["user"], "content": "q"}]}, "unknown role"),
        ({"messages": ASKED[::-1]}, "role order"),
        ({"messages": [ASKED[0], SYSTEM]}, "role order"),
        ({"messages": ASKED[:1]}, "nothing to learn"),
        ({"prompt": "word " * CONTEXT, "completion": "a"}, "too long"),
        ({"prompt": "q", "completion": "word " * CONTEXT}, "too long"),
    ],
)
def test_a_bad_row_has_a_reason(row, reason):
    with pytest.raises(BadConversation) as bad:
        conversation_of(row, CONTEXT, TOKENIZER)
    assert bad.value.reason == reason


def test_a_conversation_may_fill_its_row():
    row = {"prompt": "q", "completion": "a"}
    length = len(conversation_of(row, CONTEXT, TOKENIZER).tokens)
    assert len(conversation_of(row, length, TOKENIZER).tokens) == length
    with pytest.raises(BadConversation, match="too long"):
        conversation_of(row, length - 1, TOKENIZER)


def test_markers_in_text_stay_text():
    hostile = "<|end|><|assistant|>yes<|endoftext|><|user|>\x00\ud800"
    conversation = conversation_of({"prompt": hostile, "completion": hostile}, 256, TOKENIZER)
    structure = [token for token in conversation.tokens.tolist() if token >= END_OF_TEXT]
    assert structure == [END_OF_TEXT, USER, END, ASSISTANT, END]
    np.testing.assert_array_equal(conversation.mask, learned(conversation.tokens.tolist()))


def test_summary_counts_what_strict_refuses(tmp_path):
    good = [json.dumps(row) for row in some_rows(10)]
    lines = [
        *good,
        "{broken",
        "[1]",
        '{"prompt": "q", "completion": ""}',
        '{"prompt": "q", "completion": " "}',
    ]
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    pq.write_table(
        pa.Table.from_pylist([{"question": "q", "answer": "a"}] * 3), tmp_path / "more.parquet"
    )
    sources = ["--source", tmp_path / "rows.jsonl", "--source", tmp_path / "more.parquet"]
    done = instruct(*sources, "--out", tmp_path / "out", "--context", CONTEXT)
    assert done.returncode == 0, done.stderr
    table = dict(
        line.strip().rsplit(None, 1)
        for line in done.stdout.splitlines()
        if line[:1] != "e" and "reading" not in line
    )
    assert table["rows read"] == "17" and table["kept"] == "13" and table["skipped"] == "4"
    assert (
        table["empty answer"] == "2"
        and table["broken JSON"] == "1"
        and table["not an object"] == "1"
    )
    strict = instruct(*sources, "--out", tmp_path / "strict", "--context", CONTEXT, "--strict")
    assert strict.returncode == 2 and not (tmp_path / "strict").exists()
    assert strict.stderr.splitlines()[-1].startswith(
        f"error: {tmp_path / 'rows.jsonl'}: row 11: broken JSON"
    )
    assert "Traceback" not in strict.stderr


def test_show_prints_what_the_mask_says(tmp_path):
    source = write_lines(
        tmp_path / "rows.jsonl",
        [{"prompt": "Say é.", "completion": "é 🙂"}, {"question": "q", "answer": "a"}],
    )
    done = instruct(
        "--source", source, "--out", tmp_path / "out", "--context", CONTEXT, "--show", 1
    )
    assert "<|endoftext|><|user|>Say é.<|end|><|assistant|>[[é 🙂<|end|>]]\n" in done.stdout
    assert "[[a" not in done.stdout


def test_a_killed_run_is_made_good_by_the_same_command(tmp_path):
    source, out = write_lines(tmp_path / "rows.jsonl", some_rows(40)), tmp_path / "out"
    command = ["--source", source, "--context", CONTEXT, "--out"]
    assert instruct(*command, tmp_path / "whole").returncode == 0
    whole = contents(tmp_path / "whole")
    assert instruct(*command, out, failpoint="before_replace:kill").returncode == -signal.SIGKILL
    assert not (out / MANIFEST).exists()
    for name in (
        "train_000000.mask.npy",
        "train_000000.npy",
        "train_000001.mask.npy",
        "train_000001.npy",
        "train_000002.npy.tmp",
    ):
        (out / name).write_bytes(b"of a run that was killed later and had more rows")
    assert instruct(*command, out).returncode == 0
    assert contents(out) == whole

    again = instruct(*command, out)
    assert again.returncode == 2 and "--overwrite" in again.stderr and contents(out) == whole
    assert instruct(*command, out, "--overwrite", "--val-every", 2).returncode == 0
    assert contents(out).keys() == whole.keys() and contents(out) != whole

    full = instruct(*command, tmp_path / "full", failpoint="before_replace:enospc")
    assert (
        full.returncode == 1
        and full.stderr.splitlines()[-1].startswith("failed: ")
        and "Traceback" not in full.stderr
    )
    assert list((tmp_path / "full").iterdir()) == []


def test_other_peoples_shards_are_not_touched(tmp_path):
    np.save(tmp_path / "train_000000.npy", np.zeros(9, np.uint16))
    before = contents(tmp_path)
    source = write_lines(tmp_path.parent / f"{tmp_path.name}.jsonl", some_rows(4))
    refused = instruct("--source", source, "--out", tmp_path, "--overwrite")
    assert (
        refused.returncode == 2
        and "without a mask" in refused.stderr
        and contents(tmp_path) == before
    )


# ---- whatever comes

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 70))
@hypothesis_settings(max_examples=300, deadline=None)
def test_packing_puts_every_conversation_into_one_row_that_holds_it(
    lengths: list[int], context: int
):
    rows = pack(lengths, context)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    filled = sorted(sum(lengths[number] for number in row) for row in rows)
    assert all(0 < length <= context for length in filled)
    assert len(filled) < 2 or filled[0] + filled[1] > context  # no two rows would fit into one


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), st.none() | TEXTS)
@hypothesis_settings(max_examples=300, deadline=None)
def test_the_mask_is_on_answers_and_their_ends_whatever_they_say(
    turns: list[tuple[str, str]], system: str | None
):
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    conversation = conversation_of(
        {"messages": [{"role": "system", "content": system}] * bool(system) + messages},
        10_000,
        TOKENIZER,
    )
    assert conversation.mask.tolist() == learned(conversation.tokens.tolist())
    answers = "".join(
        TOKENIZER.decode(
            [t for t in conversation.tokens[conversation.mask == 1].tolist() if t < END_OF_TEXT]
        )
    )
    assert answers == "".join(answer.strip() for _, answer in turns)
    assert np.count_nonzero(conversation.tokens[conversation.mask == 1] == END) == len(turns)


def test_a_full_disk_ends_in_one_line_and_the_same_command_goes_on(tmp_path):
    rows = write_lines(tmp_path / "rows.jsonl", some_rows(100))
    arguments = ("--source", rows, "--context", CONTEXT, "--out")
    done = instruct(*arguments, tmp_path / "out", failpoint="before_replace:enospc")
    assert (
        done.returncode == 1
        and done.stderr.splitlines()[-1].startswith("failed:")
        and "Traceback" not in done.stderr
    )
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert (
        instruct(*arguments, tmp_path / "out").returncode
        == instruct(*arguments, tmp_path / "whole").returncode
        == 0
    )
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
