"""One data tool at a time writes to a folder; the lock ends with its process and leaves no file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.fineweb import main as fineweb
from data_tools.folder_lock import lock
from data_tools.instruct import main as instruct
from data_tools.python_docs import main as python_docs
from data_tools.verify import main as verify
from minigpt_jax.errors import InputError
from tests.data_tools.preparations import (
    contents,
    finish,
    random_texts,
    start,
    workers_of,
    write_jsonl,
)
from tests.harness import ROOT, arguments

REFUSED = "another data tool is writing to this folder"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [{"text": text, "prompt": "a", "completion": text} for text in random_texts(1, 20, 9)]
    return write_jsonl(tmp_path / "rows.jsonl", rows)


TOOLS = {
    "fineweb": (fineweb, "--source", "SOURCE", "--out"),
    "instruct": (instruct, "--source", "SOURCE", "--out"),
    "python_docs": (python_docs, "--megabytes", "0.1", "--out"),
    "python_docs_chat": (python_docs, "--chat-out"),
    "verify": (verify,),
}


@pytest.mark.parametrize("name", TOOLS)
def test_a_second_tool_is_refused_and_changes_nothing(tmp_path: Path, source: Path, name: str):
    out = tmp_path / "out"
    main, *options = TOOLS[name]
    argv = [str(source) if option == "SOURCE" else option for option in options]
    with lock(out):
        (out / "train_000000.npy").write_bytes(b"of the first tool")
        before = contents(out)
        with arguments(name, *argv, out), pytest.raises(InputError, match=REFUSED):
            main()
        assert contents(out) == before


# A tool that has started a worker process.
HOLDER = """
import os, sys
from pathlib import Path
from data_tools.folder_lock import lock
from data_tools.worker_processes import WorkerProcesses
if __name__ == "__main__":
    with lock(Path(sys.argv[1])):
        # A name, without which its processes would end.
        workers = WorkerProcesses(abs)
        print(workers.call(-1), flush=True)
        sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux")
def test_the_lock_ends_with_its_process_and_workers_do_not_keep_it(tmp_path: Path, source: Path):
    out = tmp_path / "out"
    (tmp_path / "holder.py").write_text(HOLDER)
    holder = subprocess.Popen(
        [sys.executable, tmp_path / "holder.py", out],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"1\n"
    (worker,) = workers_of(holder.pid)
    # The kernel would keep the lock for as long as any process has the folder open.
    assert str(out) in open_files(holder.pid) and str(out) not in open_files(worker)
    output = finish(start(source, out), code=2)
    assert REFUSED in output and output.count("\n") == 1
    assert not list(out.iterdir())
    holder.kill()
    holder.communicate()
    finish(start(source, out), code=0)


def open_files(pid: int) -> list[str]:
    return [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]


def test_a_refused_command_leaves_no_folder(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("broken\n")
    command = [sys.executable, "-m", "data_tools.instruct", "--source", tmp_path / "rows.jsonl"]
    done = subprocess.run([*command, "--out", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "out").exists()


def test_a_file_is_no_folder_to_write_to(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(InputError, match="expected a folder"), lock(path):
            pass


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch, capsys):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    with lock(tmp_path / "out"):
        pass
    assert "has no locks (Operation not supported)" in capsys.readouterr().err
