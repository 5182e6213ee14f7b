"""Serve a trained model: python -m minigpt_jax.server

Serves a chat page and an OpenAI-compatible API for the newest run at http://127.0.0.1:8000 by
default; --run, --host and --port change it.
"""

from minigpt_jax.runtime.program import begin_program, exit_cleanly

if __name__ == "__main__":
    begin_program()  # before the imports below, which take time

from pathlib import Path

from minigpt_jax.runs import newest_run
from minigpt_jax.server.command import PROGRAM, models_by_name, open_listener, parse_options


def main(program: str = PROGRAM) -> int:
    """Serve until a signal comes. `program` is what the user typed, for the usage."""
    options = parse_options(program=program)
    runs = [Path(run) for run in options.run or [newest_run(Path(options.runs))]]
    folders = models_by_name(runs)
    # Before the model is loaded, so that a port in use is reported immediately.
    with open_listener(options.host, options.port) as listener:
        # Imported here so that --help and errors in the flags do not wait for JAX.
        from minigpt_jax.server.serve import serve_runs

        serve_runs(folders, listener, options)
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
