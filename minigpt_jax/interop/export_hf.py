"""Write a run in Hugging Face's format, for transformers, vLLM and other programs that load it.

    minigpt export hf --run runs/finetune --out exported
    ... --push owner/name [--public]     upload it too, private unless --public

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
from minigpt_jax.errors import InputError, RunError
from minigpt_jax.interop.hub import check_upload, upload
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
        metavar="OWNER/NAME",
        help="upload the folder to this repository of the hub too (first: hf auth login)",
    )
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument(
        "--private",
        action="store_const",
        const="private",
        dest="visibility",
        help="if --push creates the repository, it is private (default)",
    )
    visibility.add_argument(
        "--public",
        action="store_const",
        const="public",
        dest="visibility",
        help="if --push creates the repository, everyone can see it",
    )
    options = parser.parse_args()
    out = options.out.absolute()
    if out.exists() and not out.is_dir():
        raise InputError(f"{options.out}: is a file; choose another folder")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{options.out}: is not empty; choose another folder")
    if options.push:
        check_upload(options.push)
    elif options.visibility:
        raise InputError(f"--{options.visibility}: is for a repository, so it needs --push")

    # Imported after parsing: --help and a wrong flag need not wait for JAX.
    from minigpt_jax.interop.hugging_face import write_folder

    run = load_run(options.run)
    write_folder(out, run, name=options.run.resolve().name)
    print(
        f"{options.out}: {run.config.parameters:,} parameters; "
        f"in Python: AutoModelForCausalLM.from_pretrained({str(options.out)!r})"
    )
    if options.push:
        print(f"uploaded: {push(out, options.push, private=options.visibility != 'public')}")
    return 0


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload `folder` to the hub; returns the address of the commit.

    Raises InputError or RunError, see `upload`, and says how to do it later.
    """
    try:
        return upload(folder, repository, "Upload from miniGPT-JAX", private=private)
    except (InputError, RunError) as error:
        later = f"hf upload {shell_word(repository)} {shell_word(folder)}"
        raise type(error)(
            f"{error}. {folder} is complete; upload it later with: {later}"
            + (" --private" if private else "")
        ) from None


if __name__ == "__main__":
    exit_cleanly(main)
