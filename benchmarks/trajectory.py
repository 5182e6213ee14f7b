"""Train our model and transformers' GPT-2 side by side from the same weights on the same rows: do the curves agree?

    python -m benchmarks.trajectory --data data/openstax

One process, one loop, both models in float32: our compiled step, and a plain PyTorch loop of GPT2LMHeadModel with
AdamW, clipping and decay groups. Prints the losses as it goes, and at the end the mean difference over the last third.
"""

import argparse
import math
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import torch

from benchmarks.peer import transformers_gpt2
from minigpt_jax import data, optim
from minigpt_jax.errors import exit_cleanly
from minigpt_jax.model import GPT, GPTConfig
from minigpt_jax.sharding import make_mesh
from minigpt_jax.step import Batch, init_state, make_train_step
from minigpt_jax.token_stream import open_stream
from minigpt_jax.tokenizer import load_tokenizer


def main() -> int:
    """Run both and print the table; exit code 1 where they disagree."""
    parser = argparse.ArgumentParser(
        description="Our training curve beside that of PyTorch and transformers."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of token shards")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--embed", type=int, default=384)
    parser.add_argument("--peak", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=50)
    options = parser.parse_args()

    config = GPTConfig(
        context=options.context, layers=options.layers, heads=options.heads, embed=options.embed
    )
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
    mesh, model, optimizer = make_mesh(), GPT(config), optim.make_optimizer()
    state = init_state(model, optimizer, 0, mesh)
    step = make_train_step(model, optimizer, schedule, mesh, seed=0, loss_chunk=32)
    peer = transformers_gpt2(config, state.params)
    peer_step = torch_step(peer, schedule)

    expected = math.log(config.vocab_size) + config.embed * 0.02**2 / 2
    print(f"{config.parameters:,} parameters; ln V + D 0.02^2 / 2 = {expected:.4f}")
    print(f"{'step':>5} {'ours':>9} {'torch':>9} {'difference':>11}   seconds a step")
    curves, seconds = [], []
    for i in range(options.steps):
        rows = data.rows_at(0, i, options.batch, data.row_count(stream, config.context))
        tokens, weights = data.read_rows(stream, rows[None], config.context)
        began = time.perf_counter()
        state, metrics = step(state, Batch(tokens, weights))
        ours, between = float(metrics["loss"]), time.perf_counter()
        theirs = peer_step(i, tokens[0])
        seconds.append((between - began, time.perf_counter() - between))
        curves.append((ours, theirs))
        if i % 20 == 0 or i == options.steps - 1:
            a, b = np.median(seconds, axis=0)
            print(
                f"{i:>5} {ours:>9.4f} {theirs:>9.4f} {ours - theirs:>+11.5f}   {a:.2f} and {b:.2f}",
                flush=True,
            )
    last = np.mean(curves[options.steps * 2 // 3 :], axis=0)
    agree = abs(last[0] - last[1]) < 0.02 and abs(curves[0][0] - expected) < 0.05
    print(
        f"mean over steps {options.steps * 2 // 3} to {options.steps}: ours {last[0]:.4f}, torch {last[1]:.4f}, difference {last[0] - last[1]:+.5f}"
    )
    print(
        f"initial loss {curves[0][0]:.4f}, expected {expected:.4f}; the curves {'agree' if agree else 'DISAGREE'}"
    )
    return 0 if agree else 1


def torch_step(model, schedule):
    """A plain PyTorch training step: `step(i, tokens [B, T+1]) -> loss`."""
    decayed = [
        p for name, p in model.named_parameters() if name.endswith("weight") and "ln_" not in name
    ]
    plain = [p for name, p in model.named_parameters() if name.endswith("bias") or "ln_" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)

    def step(i: int, tokens: np.ndarray) -> float:
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(i))
        ids = torch.tensor(tokens.astype(np.int64))
        scores = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    exit_cleanly(main)
