"""The command line of the evaluations: python -m minigpt_jax.evals hellaswag --run runs/pretrain

Subcommands: hellaswag, bits (per byte), lm-eval (lm-evaluation-harness) and answers (of a
finetuned model).
"""

from minigpt_jax.runtime.program import begin_program, exit_cleanly

if __name__ == "__main__":
    begin_program(output_needed=True)  # before the imports below, which take time

import argparse
from functools import partial

from minigpt_jax.evals import GENERATION_BATCH, SCORING_BATCH, STREAM_BATCH
from minigpt_jax.runtime.files import expand_home, user_path


def main(program: str = "python -m minigpt_jax.evals") -> None:
    """Parse the command line and run the subcommand. `program` is what the user typed."""
    options = make_parser(program).parse_args()
    # Imported after parsing: --help and a wrong flag need not wait for JAX.
    from minigpt_jax.evals import commands

    subcommand = {
        "hellaswag": commands.run_hellaswag,
        "bits": commands.run_bits,
        "lm-eval": commands.run_harness,
        "answers": commands.run_answers,
    }[options.subcommand]
    subcommand(options)


def make_parser(program: str) -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(prog=program, description="Evaluate a trained model.")
    subcommands = parser.add_subparsers(
        required=True, dest="subcommand", metavar="hellaswag|bits|lm-eval|answers"
    )

    def add(name: str, description: str, batch: int, limit: int | None = None):
        """A subcommand with the options that all of them have."""
        sub = subcommands.add_parser(name, help=description, description=description)
        sub.add_argument(
            "--run", type=user_path, required=True, help="folder of a run, such as runs/pretrain"
        )
        sub.add_argument(
            "--limit",
            type=partial(whole_number, minimum=1),
            default=limit,
            help=f"maximum number of rows (default: {limit or 'all'})",
        )
        sub.add_argument(
            "--batch",
            type=partial(whole_number, minimum=1),
            default=batch,
            help="rows that a device computes at a time (default: %(default)s)",
        )
        sub.add_argument(
            "--dtype",
            choices=("float32", "bfloat16"),
            help="precision of matmuls (default: float32 on a CPU, else bfloat16)",
        )
        return sub

    sub = add("hellaswag", "Accuracy on HellaSwag's validation split.", SCORING_BATCH)
    sub.add_argument(
        "--source",
        type=expand_home,
        default="Rowan/hellaswag",
        help="a .parquet or .jsonl file with the hub's columns, a folder, or a hub id",
    )
    sub = add("bits", "Loss per token and bits per byte of a token stream.", STREAM_BATCH)
    sub.add_argument("--source", type=user_path, required=True, help="a folder of token shards")
    sub.add_argument("--split", choices=("train", "val"), default="val")

    sub = add("lm-eval", "Tasks of lm-evaluation-harness.", SCORING_BATCH)
    sub.add_argument(
        "--tasks", required=True, help="comma-separated names, such as hellaswag,lambada_openai"
    )
    sub.add_argument("--include-path", type=user_path, help="a folder with more tasks")

    sub = add(
        "answers",
        "Compare a finetuned run with its base: writes answers.json and the report of the run.",
        GENERATION_BATCH,
        limit=50,
    )
    sub.add_argument(
        "--source",
        type=expand_home,
        required=True,
        help="rows with prompt and completion: a .jsonl, .json or .parquet file, a folder, "
        "or a hub id",
    )
    sub.add_argument(
        "--split",
        choices=("train", "val"),
        default="val",
        help="split of a source that has several (default: %(default)s)",
    )
    sub.add_argument(
        "--base", type=user_path, help="the run before finetuning (default: its init_from)"
    )
    sub.add_argument(
        "--show",
        type=partial(whole_number, minimum=0),
        default=3,
        metavar="N",
        help="number of answers to print (default: %(default)s)",
    )
    return parser


def whole_number(text: str, minimum: int) -> int:
    """A number from the command line that is at least `minimum`."""
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {minimum}")
    return int(text)


if __name__ == "__main__":
    exit_cleanly(main)
