"""`--help` of a command comes immediately: it does not wait for JAX."""

import os
import subprocess
import sys

import pytest

from tests.harness import ROOT

COMMAND_TIMEOUT = 120
# Runs a module as a command, then reports which slow packages were imported.
PROGRAM = """
import runpy, sys
module = sys.argv.pop(1)
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as ended:
    slow = sorted({"jax", "flax", "matplotlib", "orbax"} & set(sys.modules))
    print("exit", ended.code, slow)
"""


@pytest.mark.parametrize("module", ["minigpt_jax.plan", "minigpt_jax.report"])
def test_help_does_not_import_jax(module: str):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, module, "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout and module in done.stdout
    assert done.stdout.splitlines()[-1] == "exit 0 []"
