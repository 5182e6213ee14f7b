"""`/save` in a conversation with `python sample.py`: nothing is lost, neither a turn nor a file."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from minigpt_jax import chat, talk
from tests.known_answers import make_chat_run, make_text_run


@pytest.fixture
def converse(monkeypatch, capsys):
    """A conversation in this process: (run, what is typed) -> what is printed."""

    def call(run: Path, *typed: str) -> str:
        lines = iter(typed)
        monkeypatch.setattr(sys, "argv", ["sample.py", "--run", str(run), "--max-new-tokens", "8"])
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
        monkeypatch.setattr("builtins.input", lambda _: next(lines))
        assert talk.main() == 0
        return capsys.readouterr().out

    return call


def test_a_conversation_is_saved_as_text(tmp_path: Path, capsys):
    path = tmp_path / "talk.txt"
    messages: list[chat.Message] = [
        {"role": "user", "content": "Grüße 世界\nzwei"},
        {"role": "assistant", "content": " Hello! "},
    ]
    talk.save(messages, str(path))
    assert path.read_text(encoding="utf-8") == "user: Grüße 世界\nzwei\n\nassistant: Hello!\n"
    assert capsys.readouterr().out == f"Saved to {path}.\n"
    # A terminal can send bytes that are not UTF-8.
    cut = tmp_path / "cut.txt"
    talk.save([{"role": "user", "content": "cut \udcff off"}], str(cut))
    assert "cut" in cut.read_text(encoding="utf-8")


def test_a_conversation_that_cannot_be_saved_ends_in_a_message(tmp_path: Path, capsys):
    messages: list[chat.Message] = [{"role": "user", "content": "Hi"}]
    talk.save(messages, "")
    assert "A file name is missing: /save" in capsys.readouterr().out
    for name in (str(tmp_path / "no" / "such" / "folder"), "a\0b"):
        talk.save(messages, name)
        assert "Could not be saved" in capsys.readouterr().out
    talk.save(messages, str(tmp_path))
    assert capsys.readouterr().out == f"{tmp_path} exists: choose another name\n"


def test_save_never_overwrites_a_file_and_the_conversation_goes_on(converse, tmp_path: Path):
    kept, new = tmp_path / "kept.txt", tmp_path / "new.txt"
    kept.write_text("mine")
    typed = [f"/save {new}", "Once", f"/save {kept}", "Twice", f"/save {new}", "/quit"]
    out = converse(make_text_run(tmp_path / "text"), *typed)
    assert out.index("nothing to save yet") < out.index(f"{kept} exists: choose another name")
    assert out.endswith(f"Saved to {new}.\n")
    assert kept.read_text() == "mine"
    # All lines, though a pretrained model is given the last one only.
    saved = new.read_text(encoding="utf-8").split("\n\n")
    assert saved[::2] == ["user: Once", "user: Twice"]
    assert len(saved) == 4


def test_save_writes_the_turns_that_the_prompt_has_lost(converse, tmp_path: Path, monkeypatch):
    prompts = []
    real = talk.show
    monkeypatch.setattr(
        talk, "show", lambda session, ids: prompts.append(len(ids)) or real(session, ids)
    )
    # Two of these questions do not fit into the context of 16,384 tokens.
    questions = [f"{name}{' word' * 9000}" for name in ("first", "second")]
    path = tmp_path / "talk.txt"
    converse(make_chat_run(tmp_path / "chat"), *questions, f"/save {path}", "/quit")
    assert len(prompts) == 2 and max(prompts) < 10_000
    first, _, second, _ = path.read_text(encoding="utf-8").split("\n\n")
    assert [first, second] == [f"user: {question}" for question in questions]
