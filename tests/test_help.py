"""`--help` of every command answers without loading JAX."""

import pytest

from tests.harness import fresh_python

SCRIPTS = ("train.py", "sample.py")
MODULES = (
    "data_tools.fineweb",
    "data_tools.instruct",
    "data_tools.python_docs",
    "data_tools.verify",
    "data_tools.index",
    "minigpt_jax serve",
    "minigpt_jax.evals",
    "minigpt_jax.evals answers",
    "minigpt_jax.interop.export_gguf",
    "minigpt_jax.interop.export_hf",
    "minigpt_jax.interop.import_hf",
    "minigpt_jax.plan",
    "minigpt_jax.report",
    "minigpt_jax.server",
)


@pytest.mark.parametrize("command", [*SCRIPTS, *MODULES])
def test_help_loads_no_jax(command: str):
    printed, code, loaded = fresh_python(f"""
        import contextlib, io, json, runpy, sys
        from minigpt_jax.runtime import standard_streams
        # It would replace the stream that is read here.
        standard_streams.prepare_streams = lambda **_: None
        command, *arguments = {command.split()!r}
        sys.argv = [command, *arguments, "--help"]
        output, code = io.StringIO(), None
        with contextlib.redirect_stdout(output):
            try:
                if command.endswith(".py"):
                    runpy.run_path(command, run_name="__main__")
                else:
                    runpy.run_module(command, run_name="__main__", alter_sys=True)
            except SystemExit as exit:
                code = exit.code
        loaded = sorted({{"jax", "jaxlib", "torch"}} & set(sys.modules))
        print(json.dumps([output.getvalue(), code, loaded]))
    """)
    assert printed.startswith("usage:") and not code
    assert loaded == []
