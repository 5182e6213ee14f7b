"""Ask a trained model for its numbers: python -m minigpt_jax.evals hellaswag --run runs/pretrain

Subcommands: hellaswag, bits (per byte), lm-eval (lm-evaluation-harness) and answers (of a finetuned model).
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from minigpt_jax import data
from minigpt_jax.checkpoint import load_params
from minigpt_jax.errors import InputError, exit_cleanly
from minigpt_jax.evals import answers, bits, harness, hellaswag, scoring
from minigpt_jax.model import GPT, GPTConfig, grow_vocab, resolve_compute_dtype
from minigpt_jax.runtime.compilation_cache import enable_compilation_cache
from minigpt_jax.runtime.files import write_json
from minigpt_jax.sharding import data_parallel_size, make_mesh, replicated
from minigpt_jax.step import make_eval_step
from minigpt_jax.token_stream import open_stream
from minigpt_jax.tokenizer import END_OF_TEXT, load_tokenizer
from minigpt_jax.tracking.report import write_report

NOBODY_STOPS_IT = "only train.py abandons an evaluation"
LOSS_CHUNK = 32  # positions a row whose logits are in memory at once, as in configs/quickstart.py


class Loaded(NamedTuple):
    """A run's newest weights, whole on every device of `mesh`, and what its checkpoint says of them."""

    params: dict
    config: GPTConfig
    meta: dict
    mesh: jax.sharding.Mesh


def load(run: Path) -> Loaded:
    """The run in folder `run`. Raises InputError."""
    mesh = make_mesh()
    loaded = Loaded(*load_params(run, replicated(mesh)), mesh)
    enable_compilation_cache(run.parent)
    return loaded


def run_hellaswag(options) -> None:
    """Accuracy on HellaSwag's validation split."""
    model = load(options.run)
    questions = hellaswag.load(options.source, model.config.context, options.limit)
    began = time.monotonic()
    ask = partial(
        scoring.score,
        model.params,
        model.config,
        model.mesh,
        batch=options.batch,
        dtype=options.dtype,
    )
    accuracy = hellaswag.accuracy(questions, ask)
    assert accuracy is not None, NOBODY_STOPS_IT
    seconds, count = time.monotonic() - began, len(questions)
    error = hellaswag.standard_error(accuracy, count)
    print(
        f"HellaSwag {accuracy:.4f} (standard error {error:.4f}) on {count:,} rows, {count / seconds:,.1f} rows/s"
    )


def run_bits(options) -> None:
    """Loss per token and bits per byte of a token stream."""
    model = load(options.run)
    context = model.config.context
    stream = open_stream(
        options.source,
        options.split,
        tokenizer=load_tokenizer().hash,
        vocab_size=model.config.vocab_size,
        context=context,
    )
    trained = model.meta.get("config", {}).get("data", {})
    apart = stream.masks is not None or trained.get("isolate_documents", False)
    how = GPT(model.config, dtype=options.dtype or resolve_compute_dtype())
    step = make_eval_step(
        how, model.mesh, loss_chunk=LOSS_CHUNK, separator=END_OF_TEXT if apart else None
    )
    rows = min(options.limit or data.row_count(stream, context), data.row_count(stream, context))
    batch = options.batch * data_parallel_size(model.mesh)
    began = time.monotonic()
    found = bits.measure(
        model.params, stream, step, model.mesh, rows=rows, batch=batch, context=context
    )
    assert found, NOBODY_STOPS_IT
    speed = rows * context / (time.monotonic() - began)
    print(
        f"{options.split} of {options.source}: loss {found.loss:.4f} per token, {found.bits_per_byte:.4f} bits per byte "
        f"({rows:,} rows of {context}, {found.tokens:,} tokens with weight, {speed:,.0f} tokens/s)"
    )


def run_harness(options) -> None:
    """Tasks of lm-evaluation-harness."""
    model, tasks = (
        load(options.run),
        [task.strip() for task in options.tasks.split(",") if task.strip()],
    )
    if options.include_path and not options.include_path.is_dir():
        raise InputError(f"{options.include_path}: no such folder")
    table = harness.evaluate(
        model.params,
        model.config,
        load_tokenizer(),
        model.mesh,
        tasks=tasks,
        limit=options.limit,
        include=options.include_path,
        batch=options.batch,
        dtype=options.dtype,
    )[1]
    print(table)


def run_answers(options) -> None:
    """What finetuning did, into answers.json and the report of the run."""
    model, tokenizer = load(options.run), load_tokenizer()
    pairs, too_long = answers.load(options.source, model.config.context, tokenizer, options.limit)
    base = base_of(options.base, model)
    columns = {"finetuned": model.params} | ({} if base is None else {"before": base})
    how = {"batch": options.batch, "dtype": options.dtype}
    found = {}
    for name, params in columns.items():
        written = answers.write(params, model.config, tokenizer, pairs, **how)
        loss = answers.loss_per_token(
            pairs, tokenizer, partial(scoring.score, params, model.config, model.mesh, **how)
        )
        found[name] = answers.summary(written) | {"loss": loss}
    facts = {
        "source": options.source,
        "step": model.meta["step"],
        "answers": len(pairs),
        "too_long": too_long,
        "tokens": answers.TOKENS,
    }
    write_json(options.run / answers.FILE, facts | found)
    print(
        f"{len(pairs)} answers of up to {answers.TOKENS} tokens; {too_long} pairs were too long for the model"
    )
    for name, own in found.items():
        print(
            f"{name:<10} {own['ended']:.0%} end by themselves, {own['leaked']:.0%} leak marks, {own['repetition']:.1%} of their "
            f"{answers.GRAM}-word runs are repeated, {own['distinct']:.0%} are distinct; loss per token of the hoped-for answers {own['loss']:.4f}"
        )
    print(f"report: {write_report(options.run)}")


def base_of(asked: Path | None, model: Loaded) -> dict | None:
    """The weights that finetuning began with, roles added as it added them; None where nobody asks for them and they are gone.

    Raises InputError where the run that is `asked` for is not the base of `model`.
    """
    run = asked or Path(model.meta.get("config", {}).get("init_from") or "")
    if not (asked or run.name):
        return None
    try:
        params, config, _ = load_params(run, replicated(model.mesh))
        if (
            replace(config, vocab_size=model.config.vocab_size, dropout=model.config.dropout)
            != model.config
        ):
            raise InputError(
                f"{run}: not the base of this model: {config}, expected {model.config} but for its vocabulary"
            )
    except InputError as error:
        if asked:
            raise
        print(f"note: nothing to compare with ({error})", file=sys.stderr)
        return None
    return grow_vocab(params, config.vocab_size, model.config)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m minigpt_jax.evals", description="Ask a trained model for its numbers."
    )
    commands = parser.add_subparsers(required=True, metavar="hellaswag|bits|lm-eval|answers")

    def command(
        name: str, run: Callable, batch: int, limit: int | None = None
    ) -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        own.set_defaults(work=run)
        own.add_argument(
            "--run", type=Path, required=True, help="folder of a run, such as runs/pretrain"
        )
        own.add_argument(
            "--limit",
            type=positive,
            default=limit,
            help=f"at most so many rows (default: {limit or 'all'})",
        )
        own.add_argument(
            "--batch",
            type=positive,
            default=batch,
            help=f"rows a device computes at once (default: {batch})",
        )
        own.add_argument(
            "--dtype",
            choices=("float32", "bfloat16"),
            help="of the products (default: float32 on a CPU, else bfloat16)",
        )
        return own

    own = command("hellaswag", run_hellaswag, scoring.BATCH)
    own.add_argument(
        "--source",
        default="Rowan/hellaswag",
        help="a .parquet or .jsonl file in the hub's form, a folder, or a hub id",
    )
    own = command("bits", run_bits, 8)
    own.add_argument("--source", type=Path, required=True, help="a folder of token shards")
    own.add_argument("--split", choices=("train", "val"), default="val")
    own = command("lm-eval", run_harness, scoring.BATCH)
    own.add_argument(
        "--tasks", required=True, help="names with commas, such as hellaswag,lambada_openai"
    )
    own.add_argument("--include-path", type=Path, help="a folder of further tasks")
    own = command("answers", run_answers, answers.BATCH, limit=50)
    own.add_argument(
        "--source",
        required=True,
        help="rows with prompt and completion: a .jsonl, .json or .parquet file, a folder, or a hub id",
    )
    own.add_argument(
        "--base", type=Path, help="the run before finetuning (default: where the run began)"
    )
    return parser


def positive(text: str) -> int:
    """A number of rows."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def main() -> None:
    """What the command line says."""
    options = arguments().parse_args()
    options.work(options)


if __name__ == "__main__":
    exit_cleanly(main)
