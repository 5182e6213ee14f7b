"""Train our model and transformers' GPT-2 from the same weights on the same rows, compare losses.

    python -m benchmarks.trajectory --data data/openstax

One process, one loop, both models in float32: our compiled step, and a plain PyTorch loop of
GPT2LMHeadModel with AdamW, clipping and groups for weight decay. Prints the losses while it runs,
and at the end the mean difference over the last third.
"""

import argparse
import math
import time
from functools import partial

import jax
import numpy as np
import torch

from benchmarks.options import add_integers, model_config
from benchmarks.transformers_gpt2 import gpt2_with_weights
from minigpt_jax import data, optim
from minigpt_jax.model import GPT
from minigpt_jax.runtime.files import user_path
from minigpt_jax.runtime.program import exit_cleanly
from minigpt_jax.sharding import make_mesh
from minigpt_jax.step import Batch, init_state, make_train_step
from minigpt_jax.token_stream import open_stream
from minigpt_jax.tokenizer import load_tokenizer

# Largest difference of the mean losses over the last third.
MAX_DIFFERENCE = 0.02
# Largest difference of the first loss from its expectation.
MAX_INITIAL_DIFFERENCE = 0.05
# Standard deviation of the initial weights.
INITIAL_STD = 0.02
# Steps between two printed lines.
PRINT_EVERY = 20


def main() -> int:
    """Train both and print the table; exit code 1 if they disagree."""
    options = parse()
    config = model_config(options)
    stream = open_stream(
        options.data,
        "train",
        tokenizer=load_tokenizer().hash,
        vocab_size=config.vocab_size,
        context=config.context,
    )
    schedule = partial(
        optim.learning_rate,
        horizon=options.steps,
        peak=options.peak,
        warmup=options.warmup,
        floor=options.peak / 10,
    )
    mesh = make_mesh()
    model = GPT(config)
    optimizer = optim.make_optimizer()
    state = init_state(model, optimizer, 0, mesh)
    step = make_train_step(model, optimizer, schedule, mesh, seed=0, loss_chunk=32)
    torch_step = make_torch_step(gpt2_with_weights(config, state.params), schedule)

    # Logits of random weights have a variance of D std^2.
    expected = math.log(config.vocab_size) + config.embed * INITIAL_STD**2 / 2
    print(f"{config.parameters:,} parameters; ln V + D 0.02^2 / 2 = {expected:.4f}")
    print(f"{'step':>5} {'ours':>9} {'torch':>9} {'difference':>11}   seconds per step")
    losses = []
    seconds = []
    row_count = data.row_count(stream, config.context)
    for i in range(options.steps):
        rows = data.rows_at(0, i, options.batch, [row_count])
        tokens, weights = data.read_rows(stream, rows[None], config.context)
        began = time.perf_counter()
        state, metrics = step(state, Batch(tokens, weights))
        our_loss = float(metrics["loss"])
        between = time.perf_counter()
        torch_loss = torch_step(i, tokens[0])
        seconds.append((between - began, time.perf_counter() - between))
        losses.append((our_loss, torch_loss))
        if i % PRINT_EVERY == 0 or i == options.steps - 1:
            ours, theirs = np.median(seconds, axis=0)
            print(
                f"{i:>5} {our_loss:>9.4f} {torch_loss:>9.4f} {our_loss - torch_loss:>+11.5f}   "
                f"{ours:.2f} and {theirs:.2f}",
                flush=True,
            )
    return compare(losses, expected)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trajectory",
        description="Our training curve compared with that of PyTorch and transformers.",
    )
    parser.add_argument("--data", type=user_path, required=True, help="folder of token shards")
    add_integers(parser, steps=300, batch=8, warmup=50)
    add_integers(parser, context=256, layers=6, heads=6, embed=384)
    parser.add_argument("--peak", type=float, default=1e-3, help="learning rate (default: 0.001)")
    return parser.parse_args()


def compare(losses: list[tuple[float, float]], expected: float) -> int:
    """Print whether the (our, torch) losses agree; returns the exit code."""
    begin = len(losses) * 2 // 3
    ours, theirs = np.mean(losses[begin:], axis=0)
    initial = losses[0][0]
    agree = abs(ours - theirs) < MAX_DIFFERENCE
    agree &= abs(initial - expected) < MAX_INITIAL_DIFFERENCE
    print(
        f"mean over steps {begin} to {len(losses)}: ours {ours:.4f}, torch {theirs:.4f}, "
        f"difference {ours - theirs:+.5f}"
    )
    verdict = "agree" if agree else "DISAGREE"
    print(f"initial loss {initial:.4f}, expected {expected:.4f}; the curves {verdict}")
    return 0 if agree else 1


def make_torch_step(model, schedule):
    """A plain PyTorch training step: `step(i, tokens [B, T+1]) -> loss`."""
    decayed = []
    others = []
    for name, parameter in model.named_parameters():
        is_matrix = name.endswith("weight") and "ln_" not in name
        (decayed if is_matrix else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)

    def step(i: int, tokens: np.ndarray) -> float:
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(i))
        ids = torch.tensor(tokens.astype(np.int64))
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    exit_cleanly(main)
