"""Nothing gets past the index: what it adopts is sound to the last token, what it verifies is unchanged to the last byte."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_tools.fineweb import prepare
from data_tools.verify import adopt, verify
from minigpt_jax.errors import InputError
from minigpt_jax.shard_writer import ShardWriter, write_manifest
from minigpt_jax.token_stream import Shard, open_stream
from minigpt_jax.tokenizer import CHAT_VOCAB, END_OF_TEXT, load_tokenizer

TRAIN = [END_OF_TEXT, 5, 6, END_OF_TEXT, 7], [8, END_OF_TEXT, 9]


def foreign(folder: Path) -> Path:
    """The layout of build-nanogpt: one validation file, then training files."""
    folder.mkdir()
    np.save(folder / "edufineweb_val_000000.npy", np.array([END_OF_TEXT, 1, 2, 50255], np.uint16))
    for number, tokens in enumerate(TRAIN, 1):
        np.save(folder / f"edufineweb_train_{number:06d}.npy", np.array(tokens, np.uint16))
    return folder


def run(folder: Path, code: int) -> str:
    """The real program; what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "data_tools.index", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def masked(folder: Path) -> Path:
    """A small finetuning folder: tokens and loss masks."""
    folder.mkdir()
    splits: dict[str, tuple[list[Shard], int]] = {}
    for split in ("train", "val"):
        writer = ShardWriter(folder, split, 8, masked=True)
        writer.append(np.arange(20, dtype=np.uint16), np.ones(20, np.uint8))
        splits[split] = writer.close(), 1
    write_manifest(
        folder,
        splits,
        tokenizer=load_tokenizer().hash,
        vocab_size=CHAT_VOCAB,
        context=4,
        source="test",
    )
    return folder


def test_files_made_elsewhere_are_adopted_and_then_verified(tmp_path: Path):
    folder = foreign(tmp_path / "tokens")
    said = run(folder, code=0)
    assert (
        "8 tokens of 3 documents in 2 shards" in said
        and "4 tokens of 1 documents in 1 shards" in said
        and "adopted" in said
    )
    stream = open_stream(
        folder, "train", tokenizer=load_tokenizer().hash, vocab_size=50257, context=4
    )
    assert stream.read(0, 8).tolist() == TRAIN[0] + TRAIN[1]
    assert "every file is as manifest.json says" in run(folder, code=0)


def test_our_own_folders_are_verified(tmp_path: Path):
    (tmp_path / "texts.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    prepare([str(tmp_path / "texts.jsonl")], tmp_path / "out", workers=1)
    assert {split: documents for split, (_, documents) in verify(tmp_path / "out").items()} == {
        "train": 1,
        "val": 1,
    }
    assert len(verify(masked(tmp_path / "masked"))["train"][0]) == 3


@pytest.mark.parametrize(
    "tokens",
    [
        np.array([50257], np.uint16),
        np.zeros(3, np.int32),
        np.zeros((2, 2), np.uint16),
        np.zeros(0, np.uint16),
    ],
)
def test_a_file_that_holds_no_tokens_of_ours_is_not_adopted(tmp_path: Path, tokens: np.ndarray):
    folder = foreign(tmp_path / "tokens")
    np.save(folder / "edufineweb_train_000002.npy", tokens)
    with pytest.raises(InputError, match=r"edufineweb_train_000002\.npy: "):
        adopt(folder)
    assert not (folder / "manifest.json").exists()


def test_folders_that_cannot_be_adopted_are_refused_in_one_line(tmp_path: Path):
    assert "no such folder" in run(tmp_path / "gone", code=2)
    for case, complaint in {
        "none": "no .npy file",
        "val": "no file of the val split",
        "name": "expected a token file with train_ or val_",
    }.items():
        folder = foreign(tmp_path / case)
        for path in folder.glob("*.npy"):
            if case == "none" or (case == "val" and "_val_" in path.name):
                path.unlink()
        if case == "name":
            np.save(folder / "tokens.npy", np.zeros(3, np.uint16))
        with pytest.raises(InputError, match=complaint):
            adopt(folder)
    unfinished = foreign(tmp_path / "unfinished")
    (unfinished / "progress.json").write_text("{}")
    assert "interrupted" in run(unfinished, code=2)


def test_any_change_in_any_file_is_found(tmp_path: Path):
    sound = masked(tmp_path / "sound")
    for path in sorted(sound.glob("*.npy")):
        for change in ("flip", "cut", "grow", "delete"):
            folder = tmp_path / "changed"
            shutil.copytree(sound, folder)
            content = bytearray((folder / path.name).read_bytes())
            content[-1] ^= 1
            changed = {
                "flip": content,
                "cut": content[:-2],
                "grow": content + b"\0\0",
                "delete": b"",
            }[change]
            (folder / path.name).write_bytes(changed)
            if change == "delete":
                (folder / path.name).unlink()
            with pytest.raises(InputError, match=path.name):
                verify(folder)
            shutil.rmtree(folder)


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        "{}",
        '{"format": 1}',
        '{"format": 1, "splits": {"train": {"shards": [{"file": 1}]}}}',
    ],
)
def test_a_manifest_that_says_nothing_useful_is_refused(tmp_path: Path, manifest: str):
    folder = foreign(tmp_path / "tokens")
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(InputError, match="not a manifest of ours"):
        verify(folder)
