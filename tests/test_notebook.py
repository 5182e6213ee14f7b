"""The notebook's cells run from the first to the last, in IPython, with a small model on a CPU."""

import json
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from minigpt_jax.__main__ import run_word
from tests import image
from tests.harness import ENVIRONMENT, ROOT, link_checkout, run_module
from tests.in_process import run_main
from tests.test_readme import SMALLER

NOTEBOOK = ROOT / "examples" / "minigpt_colab.ipynb"
ADDRESS = "ADDRESS_OF_THIS_REPOSITORY"
RUNS = ("quickstart_modern", "quickstart_modern_finetune")


def cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_text())["cells"]


def small_cells() -> list[str]:
    """The code of the cells; the one with the parameters has small ones."""
    options = " ".join(f"--config.{name}={value}" for name, value in SMALLER.items())
    small = {"REPOSITORY": ADDRESS, "MEGABYTES": 0.1, "OPTIONS": options, "EXTRAS": "fast"}
    codes = []
    for cell in cells():
        if cell["cell_type"] == "code":
            code = "".join(cell["source"])
            if "parameters" in cell["metadata"].get("tags", ()):
                names = [line.split(" = ")[0] for line in code.splitlines() if line[0] != "#"]
                assert names == list(small)
                code = "\n".join(f"{name} = {value!r}" for name, value in small.items())
            codes.append(code)
    return codes


def run_here(command: str) -> None:
    """What a `!` of the notebook does; all but the trainings in this process."""
    program, *rest = shlex.split(command)
    if program in ("git", "pip"):
        # The folder is there, and the packages are installed.
        return
    if program == "minigpt":
        done = run_main(run_word, *rest)
        assert done.returncode == 0 and done.stdout.strip(), done.stderr
    elif rest[0] == "-m":
        run_module(*rest[1:])
    else:
        subprocess.run([sys.executable, *rest], env=ENVIRONMENT, check=True)


def test_the_notebook_is_stored_as_it_should_be():
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["metadata"]["accelerator"]) == (4, "GPU")
    assert len({cell["id"] for cell in cells()}) == len(cells())
    for cell in cells():
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert f'REPOSITORY = \\"{ADDRESS}\\"' in NOTEBOOK.read_text()


def test_the_cells_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("IPython")
    from IPython.core.interactiveshell import InteractiveShell

    link_checkout(tmp_path / "minigpt-jax")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shell = InteractiveShell()
        monkeypatch.setattr(
            shell, "system", lambda command: run_here(shell.var_expand(command, depth=1))
        )
        for code in small_cells():
            result = shell.run_cell(code)
            result.raise_error()
    folder = tmp_path / "minigpt-jax" / "runs"
    assert sorted(run.name for run in folder.glob("[a-z]*")) == list(RUNS)
    assert "<html" in result.result.data


@pytest.mark.campaign
def test_the_cells_run_as_they_are_in_a_fresh_environment(tmp_path: Path):
    """They install from this repository, as it is committed."""
    environment = image.new_environment(tmp_path / "venv")
    subprocess.run(["pip", "install", "--quiet", "ipython"], env=environment, check=True)
    script = tmp_path / "notebook.ipy"
    code = "\n".join(small_cells()).replace("\\\n", "")
    lines = code.replace(ADDRESS, str(ROOT)).splitlines()
    checked = "assert not _exit_code"
    script.write_text(
        "".join(f"{line}\n{checked}\n" if line[:1] == "!" else f"{line}\n" for line in lines)
    )
    command = ["python", "-m", "IPython", script.name]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for run in RUNS:
        assert (tmp_path / "minigpt-jax" / "runs" / run / "report.html").is_file()
