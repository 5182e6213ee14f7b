"""Ask a trained model for its numbers: python -m minigpt_jax.evals hellaswag --run runs/pretrain

Subcommands: hellaswag, bits (per byte), lm-eval (lm-evaluation-harness) and answers (of a finetuned model).
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from minigpt_jax import data, report
from minigpt_jax import mesh as meshes
from minigpt_jax.checkpoint import load_params
from minigpt_jax.compiled import keep_programs
from minigpt_jax.errors import InputError, exit_cleanly
from minigpt_jax.evals import answers, bits, harness, hellaswag, scoring
from minigpt_jax.model import GPT, GPTConfig, grow_vocab
from minigpt_jax.shards import open_stream, write_json
from minigpt_jax.step import make_eval_step
from minigpt_jax.tokenizer import END_OF_TEXT, load_tokenizer

LOSS_CHUNK = 32  # positions a row whose logits are in memory at once, as in configs/quickstart.py


class Loaded(NamedTuple):
    """A run's newest weights, whole on every device of `mesh`, and what its checkpoint says of them."""

    params: dict
    config: GPTConfig
    meta: dict
    mesh: jax.sharding.Mesh


def load(run: Path) -> Loaded:
    """The run in folder `run`. Raises InputError."""
    keep_programs(run.parent)
    mesh = meshes.make_mesh()
    return Loaded(*load_params(run, meshes.replicated(mesh)), mesh)


def run_hellaswag(options) -> None:
    """Accuracy on HellaSwag's validation split."""
    model = load(options.run)
    questions = hellaswag.load(options.source, model.config.context, options.limit)
    began = time.monotonic()
    ask = partial(scoring.score, model.params, model.config, model.mesh, batch=options.batch, dtype=options.dtype)
    accuracy = hellaswag.accuracy(questions, ask) or 0.0
    seconds, count = time.monotonic() - began, len(questions)
    error = hellaswag.standard_error(accuracy, count)
    print(f"HellaSwag {accuracy:.4f} (standard error {error:.4f}) on {count:,} rows, {count / seconds:,.1f} rows/s")


def run_bits(options) -> None:
    """Loss per token and bits per byte of a token stream."""
    model = load(options.run)
    context = model.config.context
    stream = open_stream(options.source, options.split, tokenizer=load_tokenizer().hash, vocab_size=model.config.vocab_size, context=context)
    trained = model.meta.get("config", {}).get("data", {})
    apart = stream.masks is not None or trained.get("isolate_documents", False)
    how = GPT(model.config, dtype=options.dtype or scoring.best_dtype())
    step = make_eval_step(how, model.mesh, loss_chunk=LOSS_CHUNK, separator=END_OF_TEXT if apart else None)
    rows = min(options.limit or data.row_count(stream, context), data.row_count(stream, context))
    batch = options.batch * meshes.data_shards(model.mesh)
    began = time.monotonic()
    found = bits.measure(model.params, stream, step, model.mesh, rows=rows, batch=batch, context=context)
    assert found, "nothing asked for it to be abandoned"
    speed = rows * context / (time.monotonic() - began)
    print(
        f"{options.split} of {options.source}: loss {found.loss:.4f} per token, {found.bits_per_byte:.4f} bits per byte "
        f"({rows:,} rows of {context}, {found.tokens:,} tokens with weight, {speed:,.0f} tokens/s)"
    )


def run_harness(options) -> None:
    """Tasks of lm-evaluation-harness."""
    model, tasks = load(options.run), [task for task in options.tasks.split(",") if task]
    if options.include_path and not options.include_path.is_dir():
        raise InputError(f"{options.include_path}: no such folder")
    table = harness.evaluate(
        model.params, model.config, load_tokenizer(), model.mesh,
        tasks=tasks, limit=options.limit, include=options.include_path, batch=options.batch, dtype=options.dtype,
    )[1]  # fmt: skip
    print(table)


def run_answers(options) -> None:
    """What finetuning did, into answers.json and the report of the run."""
    model, tokenizer = load(options.run), load_tokenizer()
    pairs, too_long = answers.load(options.source, model.config.context, tokenizer, options.limit)
    written = answers.write(model.params, model.config, tokenizer, pairs)
    how = {"batch": options.batch, "dtype": options.dtype}
    record = {"source": options.source, "answers": len(pairs), "too_long": too_long, **answers.summary(written)}
    record["loss"] = answers.loss_per_token(pairs, tokenizer, partial(scoring.score, model.params, model.config, model.mesh, **how))
    base = options.base or (model.meta.get("config", {}).get("init_from") or None)
    if base and (options.base or Path(base).is_dir()):
        record |= {"base": str(base), "base_loss": loss_of_base(Path(base), model, pairs, how)}
    write_json(options.run / answers.FILE, record)
    print(
        f"{record['answers']} answers: {record['ended']:.0%} end by themselves within {answers.TOKENS} tokens, {record['leaked']:.0%} leak marks, "
        f"{record['repetition']:.1%} of their {answers.GRAM}-word runs are repeated, {record['different']:.0%} differ from all others"
    )
    before = f" ({record['base_loss']:.4f} before finetuning)" if "base" in record else ""
    print(f"loss per token of the hoped-for answers {record['loss']:.4f}{before}; {too_long} pairs were too long for the model")
    print(f"report: {report.write(options.run)}")


def loss_of_base(run: Path, model: Loaded, pairs: list[answers.Pair], how: dict) -> float | None:
    """Loss of the same answers under the weights that finetuning began with, roles added as it added them."""
    params, config, _ = load_params(run, meshes.replicated(model.mesh))
    if replace(config, vocab_size=model.config.vocab_size, dropout=model.config.dropout) != model.config:
        raise InputError(f"{run}: not the base of this model: {config}, expected {model.config} but for its vocabulary")
    grown = grow_vocab(params, config.vocab_size, model.config)
    return answers.loss_per_token(pairs, load_tokenizer(), partial(scoring.score, grown, model.config, model.mesh, **how))


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m minigpt_jax.evals", description="Ask a trained model for its numbers.")
    commands = parser.add_subparsers(required=True, metavar="hellaswag|bits|lm-eval|answers")

    def command(name: str, run: Callable, batch: int, limit: int | None = None) -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        own.set_defaults(work=run)
        own.add_argument("--run", type=Path, required=True, help="folder of a run, such as runs/pretrain")
        own.add_argument("--limit", type=positive, default=limit, help=f"at most so many rows (default: {limit or 'all'})")
        own.add_argument("--batch", type=positive, default=batch, help=f"rows a device computes at once (default: {batch})")
        own.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the products (default: bfloat16 on a GPU, else float32)")
        return own

    own = command("hellaswag", run_hellaswag, scoring.BATCH)
    own.add_argument("--source", default="Rowan/hellaswag", help="a .parquet or .jsonl file in the hub's form, a folder, or a hub id")
    own = command("bits", run_bits, 8)
    own.add_argument("--source", type=Path, required=True, help="a folder of token shards")
    own.add_argument("--split", choices=("train", "val"), default="val")
    own = command("lm-eval", run_harness, scoring.BATCH)
    own.add_argument("--tasks", required=True, help="names with commas, such as hellaswag,lambada_openai")
    own.add_argument("--include-path", type=Path, help="a folder of further tasks")
    own = command("answers", run_answers, scoring.BATCH, limit=50)
    own.add_argument("--source", required=True, help="rows with prompt and completion: a .jsonl, .json or .parquet file, a folder, or a hub id")
    own.add_argument("--base", type=Path, help="the run before finetuning (default: where the run began)")
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
