"""Write a run in Hugging Face's format, for transformers, vLLM and other programs that load it.

    minigpt export hf --run runs/finetune --out exported/ [--push user/name]

The folder gets weights (safetensors, f32), config, tokenizer, chat template, stop tokens and a
model card with the facts of the run. It is complete or absent, also after a crash. For a NanoChat,
transformers must be version 5 or later.
"""

from minigpt_jax.runtime.program import begin_program, exit_cleanly

if __name__ == "__main__":
    begin_program()  # before the imports below, which take time

import argparse
from pathlib import Path

from minigpt_jax import load_run
from minigpt_jax.errors import InputError, RunError, first_line
from minigpt_jax.runtime.files import shell_word, user_path


def main(program: str = "python -m minigpt_jax.interop.export_hf") -> int:
    """Write the folder; with --push, upload it. `program` is what the user typed."""
    parser = argparse.ArgumentParser(
        prog=program, description="Write a run in Hugging Face's format."
    )
    parser.add_argument("--run", type=user_path, required=True, help="folder of a run")
    parser.add_argument(
        "--out", type=user_path, required=True, help="folder to write; must not exist or be empty"
    )
    parser.add_argument(
        "--push",
        metavar="USER/NAME",
        help="upload the folder to the hub, where everyone can see it (first: hf auth login)",
    )
    options = parser.parse_args()
    out = options.out.absolute()
    if out.exists() and not out.is_dir():
        raise InputError(f"{options.out}: is a file; choose another folder")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{options.out}: is not empty; choose another folder")

    # Imported after parsing: --help and a wrong flag need not wait for JAX.
    from minigpt_jax.interop.hugging_face import write_folder

    run = load_run(options.run)
    write_folder(out, run, name=options.run.resolve().name)
    print(
        f"{options.out}: {run.config.parameters:,} parameters; "
        f"in Python: AutoModelForCausalLM.from_pretrained({str(options.out)!r})"
    )
    if options.push:
        print(f"uploaded: {push(out, options.push)}")
    return 0


def push(folder: Path, name: str) -> str:
    """Upload `folder` as the model `name` of the hub; returns its address.

    Raises RunError if the hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        name = api.create_repo(name, exist_ok=True).repo_id
        commit = api.upload_folder(
            folder_path=folder, repo_id=name, commit_message="Upload from miniGPT-JAX"
        )
    # The hub's own errors, and those of whichever HTTP library it uses.
    except Exception as error:
        raise RunError(
            f"{name}: the upload to the hub failed ({first_line(error)}). "
            f"{folder} is complete; upload it later with: hf upload "
            f"{shell_word(name)} {shell_word(folder)}"
        ) from None
    return str(commit)


if __name__ == "__main__":
    exit_cleanly(main)
