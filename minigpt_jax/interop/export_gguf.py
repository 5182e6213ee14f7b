"""Write a run as one GGUF file, for llama.cpp and programs built on it (Ollama, LM Studio).

    minigpt export gguf --run runs/finetune --out model.gguf --type q8_0

The run must be a GPT-2: llama.cpp has no NanoChat.
"""

from minigpt_jax.runtime.program import begin_program, exit_cleanly

if __name__ == "__main__":
    begin_program()  # before the imports below, which take time

import argparse
import tempfile
from pathlib import Path

from minigpt_jax import load_run
from minigpt_jax.errors import InputError
from minigpt_jax.runtime.files import shell_word, user_path


def main(program: str = "python -m minigpt_jax.interop.export_gguf") -> int:
    """Write the file. `program` is what the user typed."""
    parser = argparse.ArgumentParser(prog=program, description="Write a run as a GGUF file.")
    parser.add_argument("--run", type=user_path, required=True, help="folder of a run")
    parser.add_argument(
        "--out", type=user_path, required=True, help="file to write, such as model.gguf"
    )
    parser.add_argument(
        "--type",
        choices=("f32", "f16", "q8_0"),
        default="f16",
        help="of the matrices; vectors stay f32 (default: %(default)s)",
    )
    options = parser.parse_args()
    out = options.out.absolute()
    if out.exists():
        raise InputError(f"{options.out}: exists; choose another name")

    # Imported after parsing: --help and a wrong flag need not wait for JAX.
    from minigpt_jax.interop.gguf_file import check_architecture, write_file

    run = load_run(options.run)
    check_architecture(run.config)
    out.parent.mkdir(parents=True, exist_ok=True)
    # The file is complete or absent, also after a crash.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        unfinished = Path(temporary, "unfinished")
        write_file(unfinished, run, name=options.run.resolve().name, dtype=options.type)
        unfinished.rename(out)
    size = out.stat().st_size / 1e6
    print(f"{options.out}: {size:,.1f} MB, {options.type}; llama-cli -m {shell_word(options.out)}")
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
