"""The subcommands of `python -m minigpt_jax.evals`: load a run, evaluate it, print the numbers."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax

from minigpt_jax import data
from minigpt_jax.architectures import grow_vocab, make_model
from minigpt_jax.errors import InputError
from minigpt_jax.evals import answers, bits, harness, hellaswag, scoring
from minigpt_jax.evals.answers import Answer, Pair
from minigpt_jax.hardware import resolve_compute_dtype
from minigpt_jax.loaded_run import LoadedRun, load_run
from minigpt_jax.runtime.backend import start_jax
from minigpt_jax.runtime.compilation_cache import enable_compilation_cache
from minigpt_jax.runtime.files import write_json
from minigpt_jax.sharding import data_parallel_size, make_mesh, replicated
from minigpt_jax.step import make_eval_step
from minigpt_jax.token_stream import open_stream
from minigpt_jax.tokenizer import END_OF_TEXT
from minigpt_jax.tracking.report import write_report

# Positions of each row whose logits are in memory at the same time. Few, as in
# configs/quickstart.py, because a run may be evaluated on a smaller machine than it was trained on.
LOSS_CHUNK = 32


def run_hellaswag(options: argparse.Namespace) -> None:
    """Print the accuracy on HellaSwag."""
    run, mesh = load(options.run)
    questions = hellaswag.load(options.source, run.config.context, options.limit)
    score = partial(scoring.score, run, mesh, batch=options.batch, dtype=options.dtype)
    start = time.monotonic()
    accuracy = hellaswag.accuracy(questions, score)
    rows_per_second = len(questions) / (time.monotonic() - start)
    error = hellaswag.standard_error(accuracy, len(questions))
    print(
        f"HellaSwag {accuracy:.4f} (standard error {error:.4f}) on {len(questions):,} rows, "
        f"{rows_per_second:,.1f} rows/s"
    )


def run_bits(options: argparse.Namespace) -> None:
    """Print loss per token and bits per byte of a token stream."""
    run, mesh = load(options.run)
    context = run.config.context
    stream = open_stream(
        options.source,
        options.split,
        tokenizer=run.tokenizer.hash,
        vocab_size=run.config.vocab_size,
        context=context,
    )
    # Attention stays within a document where it did in training, and in every finetuning stream.
    data_config = run.meta.get("config", {}).get("data", {})
    isolate = stream.masks is not None or data_config.get("isolate_documents", False)
    eval_step = make_eval_step(
        make_model(run.config, dtype=options.dtype or resolve_compute_dtype()),
        mesh,
        loss_chunk=LOSS_CHUNK,
        separator=END_OF_TEXT if isolate else None,
    )
    available = data.row_count(stream, context)
    rows = min(options.limit or available, available)
    batch = options.batch * data_parallel_size(mesh)
    start = time.monotonic()
    found = bits.measure(
        run.params, stream, eval_step, mesh, rows=rows, batch=batch, context=context
    )
    tokens_per_second = rows * context / (time.monotonic() - start)
    print(
        f"{options.split} of {options.source}: loss {found.loss:.4f} per token, "
        f"{found.bits_per_byte:.4f} bits per byte ({rows:,} rows of {context}, "
        f"{found.tokens:,} tokens in the loss, {tokens_per_second:,.0f} tokens/s)"
    )


def run_harness(options: argparse.Namespace) -> None:
    """Print lm-evaluation-harness's table."""
    run, mesh = load(options.run)
    if options.include_path and not options.include_path.is_dir():
        raise InputError(f"{options.include_path}: no such folder")
    _, table = harness.evaluate(
        run,
        mesh,
        tasks=[task.strip() for task in options.tasks.split(",") if task.strip()],
        limit=options.limit,
        include=options.include_path,
        batch=options.batch,
        dtype=options.dtype,
    )
    print(table)


def run_answers(options: argparse.Namespace) -> None:
    """Compare a finetuned run with its base; write answers.json and the report of the run."""
    run, mesh = load(options.run)
    pairs, too_long = answers.load(
        options.source,
        run.config.context,
        run.tokenizer,
        limit=options.limit,
        split=options.split,
    )
    base = load_base(options.base, run, mesh)
    # The keys are those of answers.json.
    models = {"finetuned": run} if base is None else {"finetuned": run, "before": base}
    generated = {}
    results = {}
    for name, model in models.items():
        batch_and_dtype = {"batch": options.batch, "dtype": options.dtype}
        generated[name] = answers.generate_answers(model, pairs, **batch_and_dtype)
        score = partial(scoring.score, model, mesh, **batch_and_dtype)
        loss = answers.loss_per_token(pairs, run.tokenizer, score)
        results[name] = answers.summarize(generated[name]) | {"loss": loss}
    facts = {
        "source": options.source,
        "step": run.meta["step"],
        "answers": len(pairs),
        "too_long": too_long,
        "tokens": answers.MAX_NEW_TOKENS,
    }
    write_json(options.run / answers.FILE, facts | results)
    # Before anything is printed, which fails where the output is closed.
    report = write_report(options.run)
    print_examples(pairs[: options.show], generated["finetuned"])
    print(
        f"{len(pairs)} answers of up to {answers.MAX_NEW_TOKENS} tokens; "
        f"{too_long} pairs were too long for the model"
    )
    print_results(results)
    print(f"report: {report}")


def print_examples(pairs: Sequence[Pair], generated: Sequence[Answer]) -> None:
    """Print questions with the generated and the reference answers."""
    for pair, answer in zip(pairs, generated, strict=False):
        print(f"question:  {pair.prompt}\nanswer:    {answer.text}\nreference: {pair.completion}\n")


def print_results(results: dict[str, dict[str, float]]) -> None:
    """Print a table with a column for each model."""
    rows = (
        ("end with a stop token", "ended", ".0%"),
        ("contain role markers", "leaked", ".0%"),
        ("are distinct", "distinct", ".0%"),
        (f"repeated {answers.NGRAM}-word sequences", "repetition", ".1%"),
        ("loss per supervised token", "loss", ".4f"),
    )
    labels = ["base" if name == "before" else name for name in results]
    print(f"{'':<28}" + "".join(f"{label:>12}" for label in labels))
    for title, key, form in rows:
        values = (format(result[key], form) for result in results.values())
        print(f"{title:<28}" + "".join(f"{value:>12}" for value in values))


def load(path: Path) -> tuple[LoadedRun, jax.sharding.Mesh]:
    """The run in folder `path`, replicated over a mesh of all devices, and that mesh.

    Raises InputError where there is no usable checkpoint.
    """
    start_jax()
    mesh = make_mesh()
    run = load_run(path, replicated(mesh))
    enable_compilation_cache(path.parent)
    return run, mesh


def load_base(requested: Path | None, run: LoadedRun, mesh: jax.sharding.Mesh) -> LoadedRun | None:
    """The run that finetuning started from, with the vocabulary of `run`.

    Without a `requested` folder it is the `init_from` of `run`; None where that no longer exists.
    Raises InputError where the requested run is not the base of `run`.
    """
    path = requested or Path(run.meta.get("config", {}).get("init_from") or "")
    if not (requested or path.name):
        return None
    try:
        base = load_run(path, replicated(mesh))
        # Finetuning may add the role markers and set another dropout.
        vocab_size, dropout = run.config.vocab_size, run.config.dropout
        expected = replace(base.config, vocab_size=vocab_size, dropout=dropout)
        if expected != run.config:
            raise InputError(
                f"{path}: not the base of this model: found {base.config}, "
                f"expected {run.config} with any vocabulary"
            )
    except InputError as error:
        if requested:
            raise
        print(f"note: no base to compare with ({error})", file=sys.stderr)
        return None
    params = grow_vocab(base.params, base.config.vocab_size, run.config)
    return replace(base, params=params, config=run.config)
