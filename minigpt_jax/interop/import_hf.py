"""Make a run from weights in Hugging Face's format: to finetune (`init_from`), chat or score.

    minigpt import --source openai-community/gpt2 --out runs/gpt2

The source is a hub id (with "@revision" if wanted) or a folder with config.json and
model.safetensors, in one file or in several with an index. It may be a GPT-2 of any size, a
NanoChat with GPT-2's tokenizer, or a folder that export_hf wrote. Rows of its embedding that no
token of its tokenizer reaches are left out.
"""

from minigpt_jax.runtime.program import begin_program, exit_cleanly

if __name__ == "__main__":
    begin_program()  # before the imports below, which take time

import argparse
from pathlib import Path

from minigpt_jax.errors import InputError
from minigpt_jax.interop.hub import download
from minigpt_jax.runs import checkpoint_steps, lock
from minigpt_jax.runtime.files import expand_home, shell_word, user_path


def main(program: str = "python -m minigpt_jax.interop.import_hf") -> int:
    """Read the weights, check them, write the run. `program` is what the user typed."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Make a run from GPT-2 or NanoChat weights in Hugging Face's format.",
    )
    parser.add_argument(
        "--source",
        type=expand_home,
        required=True,
        help="hub id, such as openai-community/gpt2-medium, or a folder",
    )
    parser.add_argument(
        "--out", type=user_path, required=True, help="folder of the new run, such as runs/gpt2"
    )
    options = parser.parse_args()
    out: Path = options.out
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose another name")
    refuse_existing_run(out)

    # Imported after parsing: --help and a wrong flag need not wait for JAX.
    from minigpt_jax.interop.hugging_face import read_folder
    from minigpt_jax.interop.imported_run import write_run
    from minigpt_jax.runtime.backend import start_jax

    start_jax()
    config, params = read_folder(fetch(options.source))
    out.mkdir(parents=True, exist_ok=True)
    with lock(out):
        # Another import may have written to the same folder since the first check.
        refuse_existing_run(out)
        write_run(out, config, params, options.source)
    print(
        f"{out}: {config.name} with {config.parameters:,} parameters, "
        f"{config.vocab_size:,} token ids, context {config.context}"
    )
    run = shell_word(out)
    print(f"sample: minigpt sample --run {run}")
    file = "configs/finetune.py" if config.is_gpt2 else "configs/modern_finetune.py"
    model = " ".join(
        f"--config.model.{name}={getattr(config, name)}"
        for name in ("context", "layers", "heads", "embed")
    )
    train = f"python train.py --config {file} --config.init_from={run} {model}"
    print(f"finetune, in a checkout: {train}")
    return 0


def refuse_existing_run(out: Path) -> None:
    """Raise InputError where `out` has checkpoints."""
    if checkpoint_steps(out):
        raise InputError(f"{out}: already holds a run; choose another folder")


def fetch(source: str) -> Path:
    """The folder `source`, or the downloaded folder if it is a hub id.

    Raises InputError where there is neither.
    """
    return Path(source) if Path(source).is_dir() else download(source)


if __name__ == "__main__":
    exit_cleanly(main)
