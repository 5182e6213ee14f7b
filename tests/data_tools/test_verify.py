"""Adopted data are sound to the last token, verified data are unchanged to the last byte."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_tools.fineweb import Recipe, prepare
from data_tools.verify import adopt, verify
from minigpt_jax.errors import InputError
from minigpt_jax.shard_writer import ShardWriter, write_manifest
from minigpt_jax.token_stream import Shard, open_stream
from minigpt_jax.tokenizer import CHAT_VOCAB, END_OF_TEXT, TEXT_VOCAB, load_tokenizer

TRAIN = ([END_OF_TEXT, 5, 6, END_OF_TEXT, 7], [8, END_OF_TEXT, 9])
VAL = [END_OF_TEXT, 1, 2, 50255]


def write_foreign(folder: Path) -> Path:
    """The layout of build-nanogpt: one validation file, then training files."""
    folder.mkdir()
    np.save(folder / "edufineweb_val_000000.npy", np.array(VAL, np.uint16))
    for number, tokens in enumerate(TRAIN, 1):
        np.save(folder / f"edufineweb_train_{number:06d}.npy", np.array(tokens, np.uint16))
    return folder


def write_masked(folder: Path) -> Path:
    """A small finetuning folder: tokens and loss masks."""
    folder.mkdir()
    splits: dict[str, tuple[list[Shard], int]] = {}
    for split in ("train", "val"):
        writer = ShardWriter(folder, split, 8, masked=True)
        writer.append(np.arange(20, dtype=np.uint16), np.ones(20, np.uint8))
        splits[split] = (writer.close(), 1)
    write_manifest(
        folder,
        splits,
        tokenizer=load_tokenizer().hash,
        vocab_size=CHAT_VOCAB,
        context=4,
        source="test",
    )
    return folder


def run(folder: Path, code: int, command: str = "data_tools.verify") -> str:
    """The output of the real program."""
    done = subprocess.run(
        [sys.executable, "-m", command, str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_files_made_elsewhere_are_adopted_and_then_verified(tmp_path: Path):
    folder = write_foreign(tmp_path / "tokens")
    output = run(folder, code=0)
    assert "8 tokens of 3 documents in 2 shards" in output
    assert "4 tokens of 1 documents in 1 shards" in output and "adopted" in output
    tokenizer = load_tokenizer().hash
    stream = open_stream(folder, "train", tokenizer=tokenizer, vocab_size=TEXT_VOCAB, context=4)
    assert stream.read(0, 8).tolist() == TRAIN[0] + TRAIN[1]
    former_name = run(folder, code=0, command="data_tools.index")
    assert "every file is as manifest.json says" in former_name


def test_our_own_folders_are_verified(tmp_path: Path):
    source = tmp_path / "texts.jsonl"
    source.write_text('{"text": "one"}\n{"text": "two"}\n')
    prepare(Recipe([str(source)]), tmp_path / "out", workers=1)
    documents = {split: count for split, (_, count) in verify(tmp_path / "out").items()}
    assert documents == {"train": 1, "val": 1}
    assert len(verify(write_masked(tmp_path / "masked"))["train"][0]) == 3


@pytest.mark.parametrize(
    "tokens",
    [
        np.array([TEXT_VOCAB], np.uint16),
        np.zeros(3, np.int32),
        np.zeros((2, 2), np.uint16),
        np.zeros(0, np.uint16),
    ],
    ids=["id too large", "wrong dtype", "two dimensions", "empty"],
)
def test_a_file_that_holds_no_tokens_of_ours_is_not_adopted(tmp_path: Path, tokens: np.ndarray):
    folder = write_foreign(tmp_path / "tokens")
    np.save(folder / "edufineweb_train_000002.npy", tokens)
    with pytest.raises(InputError, match=r"edufineweb_train_000002\.npy: "):
        adopt(folder)
    assert not (folder / "manifest.json").exists()


def test_folders_that_cannot_be_adopted_are_refused_in_one_line(tmp_path: Path):
    assert "no such folder" in run(tmp_path / "gone", code=2)

    none = write_foreign(tmp_path / "none")
    for path in none.glob("*.npy"):
        path.unlink()
    with pytest.raises(InputError, match=r"no \.npy file"):
        adopt(none)

    no_val = write_foreign(tmp_path / "no_val")
    (no_val / "edufineweb_val_000000.npy").unlink()
    with pytest.raises(InputError, match="no file of the val split"):
        adopt(no_val)

    unknown_name = write_foreign(tmp_path / "unknown_name")
    np.save(unknown_name / "tokens.npy", np.zeros(3, np.uint16))
    with pytest.raises(InputError, match="expected a token file with train_ or val_"):
        adopt(unknown_name)

    masked = write_masked(tmp_path / "masked")
    (masked / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"train_000000\.mask\.npy: .*data_tools\.instruct"):
        adopt(masked)
    assert not (masked / "manifest.json").exists()

    unfinished = write_foreign(tmp_path / "unfinished")
    (unfinished / "progress.json").write_text("{}")
    assert "interrupted" in run(unfinished, code=2)


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[-1] ^= 1
    elif kind == "cut":
        content = content[:-2]
    elif kind == "grow":
        content += b"\0\0"
    path.write_bytes(content)
    if kind == "delete":
        path.unlink()


def test_any_change_in_any_file_is_found(tmp_path: Path):
    sound = write_masked(tmp_path / "sound")
    for name in sorted(path.name for path in sound.glob("*.npy")):
        for kind in ("flip", "cut", "grow", "delete"):
            folder = tmp_path / f"{name}_{kind}"
            shutil.copytree(sound, folder)
            damage(folder / name, kind)
            with pytest.raises(InputError, match=name):
                verify(folder)


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
def test_a_damaged_manifest_is_refused(tmp_path: Path, manifest: str):
    folder = write_foreign(tmp_path / "tokens")
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(InputError, match="not a manifest of ours"):
        verify(folder)
