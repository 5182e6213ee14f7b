"""The command `minigpt`, in a checkout and from a wheel that is installed somewhere else."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from minigpt_jax.__main__ import WORDS, run_word
from minigpt_jax.runs import checkpoint_steps
from tests.harness import ENVIRONMENT, ROOT, copy_run, fresh_python, tracked_files
from tests.in_process import run_main
from tests.test_readme import run_server

# ---- the words


@pytest.mark.parametrize("word", WORDS)
def test_every_word_shows_its_own_usage(word: str):
    done = run_main(run_word, *word.split(), "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: minigpt {word} [-h]")
    # The list of words has a line for it.
    assert re.search(rf"^  {word} +\w.{{20}}", run_main(run_word).stdout, re.MULTILINE)


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_without_a_word_all_are_listed(arguments: list[str]):
    done = run_main(run_word, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^  (\w+(?: \w+)?)  ", done.stdout, re.MULTILINE) == list(WORDS)


def test_half_of_a_word_lists_what_can_follow():
    for arguments in (["export"], ["export", "--help"]):
        done = run_main(run_word, *arguments)
        assert done.returncode == 0
        assert re.findall(r"^  (\w+ \w+) ", done.stdout, re.MULTILINE) == [
            "export hf",
            "export gguf",
        ]


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ("sampel", "did you mean minigpt sample?"),
        ("sampel --run runs/x", "did you mean minigpt sample?"),
        ("Serve", "did you mean minigpt serve?"),
        ("server", "did you mean minigpt serve?"),
        ("exprot gguf", "did you mean minigpt export gguf?"),
        ("export-hf", "did you mean minigpt export hf?"),
        ("export huf --run x", "did you mean minigpt export hf?"),
        ("export --run x", "expected one of export hf, export gguf"),
        ("chat", f"expected one of {', '.join(WORDS)}"),
        ("--run runs/x serve", f"expected one of {', '.join(WORDS)}"),
        ("train --config configs/pretrain.py", "python train.py --config configs/quickstart.py"),
        ("train --help", "python train.py --config configs/quickstart.py"),
    ],
)
def test_an_unknown_word_names_the_nearest(arguments: str, meant: str):
    done = run_main(run_word, *arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: minigpt {arguments.split()[0]}")
    assert meant in done.stderr and done.stderr.count("\n") == 1


def test_the_list_of_words_imports_none_of_them():
    loaded, code = fresh_python("""
        import json, sys
        from minigpt_jax.__main__ import WORDS, main
        sys.argv = ["minigpt", "--help"]
        try:
            main()
        except SystemExit as exit:
            slow = {"jax", "numpy", "argparse", *(module for module, _ in WORDS.values())}
            print(json.dumps([sorted(slow & set(sys.modules)), exit.code]))
    """)
    assert (loaded, code) == ([], 0)


# ---- an installed wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder into which pip installed the package, without the packages that it needs."""
    source = tmp_path_factory.mktemp("source")
    # A copy, because a build leaves files in the folder that it builds.
    for name in tracked_files():
        if not name.startswith(("tests/", "docs/", "benchmarks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-compile"]
    done = subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--target", target, source],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def command(installed: Path, *arguments: object) -> list[str]:
    """The installed command, as a command line for `environment`."""
    # The interpreter behind the virtual environment. That of the environment would also find the
    # checkout, which is installed there.
    python = getattr(sys, "_base_executable", sys.executable)
    return [python, str(installed / "bin" / "minigpt"), *map(str, arguments)]


def environment(installed: Path) -> dict[str, str]:
    """Python finds the installed package, then what it needs, and no checkout."""
    return ENVIRONMENT | {"PYTHONPATH": f"{installed}:{sysconfig.get_path('purelib')}"}


def minigpt(installed: Path, folder: Path, *arguments: object) -> str:
    """Run the installed command in `folder`; it must succeed. Returns stdout."""
    done = subprocess.run(
        command(installed, *arguments),
        cwd=folder,
        env=environment(installed),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_has_every_file_of_the_package_and_no_other(installed: Path):
    package = {name for name in tracked_files() if name.startswith("minigpt_jax/")}
    found = {
        str(path.relative_to(installed))
        for path in installed.rglob("*")
        if path.is_file() and not path.relative_to(installed).parts[0].endswith(".dist-info")
    }
    assert found == package | {"bin/minigpt"}


@pytest.mark.campaign
def test_a_wheel_samples_and_reports_outside_of_the_checkout(
    installed: Path, tmp_path: Path, finetuned_run: Path
):
    run = copy_run(finetuned_run, tmp_path / "runs")
    (run / "report.html").unlink()
    asked = ("--prompt", "What is 3 and 3?", "--max-new-tokens", 4, "--temperature", 0)
    # The newest run in runs/.
    assert minigpt(installed, tmp_path, "sample", *asked).strip()
    assert minigpt(installed, tmp_path, "report", "runs/finetuned") == (
        "runs/finetuned/report.html\n"
    )
    assert "<html" in (run / "report.html").read_text()


@pytest.mark.campaign
def test_every_other_word_of_a_wheel_works_outside_of_the_checkout(
    installed: Path,
    tmp_path: Path,
    trained_run: Path,
    finetuned_run: Path,
    corpus: Path,
    conversations: Path,
    questions: Path,
):
    runs = tmp_path / "runs"
    copy_run(trained_run, runs)
    copy_run(finetuned_run, runs)

    def run(*arguments: object) -> str:
        return minigpt(installed, tmp_path, *arguments)

    assert "bits per byte" in run("score", "bits", "--run", "runs/trained", "--source", corpus)
    hellaswag = run("score", "hellaswag", "--run", "runs/trained", "--source", questions)
    assert hellaswag.startswith("HellaSwag 0.")
    pairs = conversations.parent / "pairs.jsonl"
    answers = ("answers", "--run", "runs/finetuned", "--source", pairs, "--limit", 4)
    assert "are distinct" in run("score", *answers)
    run("export", "hf", "--run", "runs/finetuned", "--out", "exported")
    run("export", "gguf", "--run", "runs/finetuned", "--out", "finetuned.gguf")
    assert (tmp_path / "finetuned.gguf").stat().st_size > 10_000
    assert "minigpt sample --run" in run("import", "--source", "exported", "--out", "runs/back")
    assert checkpoint_steps(runs / "back") == [0]
    run_server(command(installed, "serve", "--port", 0), tmp_path, environment(installed))
