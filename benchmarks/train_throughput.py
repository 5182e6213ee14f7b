"""Training speed compared with PyTorch: our step and transformers' GPT-2, eager and compiled.

    python -m benchmarks.train_throughput                        GPT-2 124M, 1024 tokens, one row
    python -m benchmarks.train_throughput --layers 6 --heads 6 --embed 384 --context 256 --batch 16
    python -m benchmarks.train_throughput --batch 32 --steps 10                          on a GPU

A step is everything: forward, backward, clipping and AdamW. transformers uses SDPA attention and
the fused AdamW. The column "of matmul" is the share of the rate of a large matmul in the same
precision, the faster of JAX's and torch's, which take turns with the others.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.contenders import Measured, run_interleaved, table, worker
from benchmarks.options import add_integers, model_config

DTYPES = ("float32", "bfloat16")
# Rows and columns of the matrices whose product others are compared with.
MATMUL_SIZE = 4096
# Matmuls in a round on a GPU, which does one in less time than it takes to start it.
GPU_MATMULS = 100
COLUMNS = (
    "",
    "tokens/s",
    "slowest to fastest",
    "of best torch",
    "peak memory",
    "first round",
    "of matmul",
    "MFU",
)


def main() -> None:
    """Measure and print the table, or be one of the contenders."""
    options = parse()
    if options.contender:
        kind, *arguments = options.contender.split("-")
        contender = {
            "ours": ours,
            "torch": in_torch,
            "matmul": matmul,
            "torchmatmul": matmul_in_torch,
        }[kind]
        contender(options, *arguments)
        return
    names = []
    for dtype in options.dtypes:
        names += [f"ours-{dtype}", f"torch-{dtype}-eager", f"torch-{dtype}-compile"]
        names += [f"matmul-{dtype}", f"torchmatmul-{dtype}"]
    if options.only:
        names = [name for name in names if name in options.only]
    module = "benchmarks.train_throughput"
    report(options, run_interleaved(module, names, sys.argv[1:], options.rounds))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_throughput",
        description="Training speed compared with PyTorch.",
    )
    add_integers(parser, layers=12, heads=12, embed=768, context=1024)
    add_integers(parser, batch=1, steps=2, rounds=5, unroll=1)
    parser.add_argument("--loss-chunk", type=int, default=128, help="default: 128")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        default=native_dtypes(),
        help="default here: %(default)s",
    )
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
    parser.add_argument(
        "--isolate-documents",
        action="store_true",
        help="ours alone: tokens attend to their own document only, as in finetuning",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="leave out all others")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    return parser.parse_args()


def native_dtypes() -> tuple[str, ...]:
    """The precisions that this machine multiplies.

    Without bfloat16 in the processor, a step of it in torch takes minutes.
    """
    has_gpu = Path("/proc/driver/nvidia/version").exists()
    description = Path("/proc/cpuinfo")
    flags = set(description.read_text().split()) if description.exists() else set()
    has_bfloat16 = flags & {"avx512_bf16", "amx_bf16", "bf16"}
    return DTYPES if has_gpu or has_bfloat16 else DTYPES[:1]


def report(options: argparse.Namespace, results: dict[str, Measured]) -> None:
    """Print the table."""
    config = model_config(options)
    limits = {name: m for name, m in results.items() if "matmul" in name}
    trained = {name: m for name, m in results.items() if "matmul" not in name}
    matmul_rates = {dtype: matmul_rate(limits, dtype) for dtype in options.dtypes}
    tokens = options.steps * options.batch * config.context
    speeds = {name: tokens / m.median for name, m in trained.items()}
    torch_speeds = [speed for name, speed in speeds.items() if name.startswith("torch")]
    best = max(torch_speeds, default=float("nan"))
    peaks = [m.notes["peak_flops"] for m in trained.values() if m.notes.get("peak_flops")]

    print(
        f"{config.parameters:,} parameters, {options.batch} x {config.context} tokens per step, "
        f"{options.rounds} rounds of {options.steps} steps"
    )
    rows = []
    for name, measured in trained.items():
        flops = speeds[name] * config.flops_per_token
        slowest = tokens / max(measured.seconds)
        fastest = tokens / min(measured.seconds)
        row = [
            name,
            f"{speeds[name]:,.0f}",
            f"{slowest:,.0f} to {fastest:,.0f}",
            f"{speeds[name] / best:.2f}",
            f"{measured.peak / 1e9:.2f} GB",
            f"{measured.first:.1f} s",
            f"{flops / matmul_rates[name.split('-')[1]]:.0%}",
            f"{flops / peaks[0]:.1%}" if peaks else "n/a",
        ]
        rows.append(row)
    print(table(COLUMNS, rows))
    for dtype, rate in matmul_rates.items():
        print(f"{dtype} matmul of {MATMUL_SIZE} x {MATMUL_SIZE}: {rate / 1e9:,.0f} GFLOP/s")


def matmul_rate(limits: dict[str, Measured], dtype: str) -> float:
    """FLOP/s of the fastest large matmul in `dtype`, NaN if none was measured."""
    rates = [m.notes["flops"] / m.median for name, m in limits.items() if name.endswith(dtype)]
    return max(rates, default=float("nan"))


# ---- the contenders


def ours(options: argparse.Namespace, dtype: str) -> None:
    """Our step, as train.py runs it."""
    import jax
    import jax.numpy as jnp

    from benchmarks.training import random_batch, training_step
    from minigpt_jax.hardware import peak_flops
    from minigpt_jax.model import GPT
    from minigpt_jax.sharding import make_mesh
    from minigpt_jax.step import init_state

    def prepare() -> Callable[[], None]:
        model = GPT(
            model_config(options),
            dtype=jnp.dtype(dtype),
            remat=options.remat,
            unroll=options.unroll,
        )
        mesh = make_mesh()
        optimizer, step = training_step(
            model,
            mesh,
            loss_chunk=options.loss_chunk,
            isolate_documents=options.isolate_documents,
        )
        batch = random_batch(options.batch, options.context, mesh)
        state = init_state(model, optimizer, 0, mesh)

        def work() -> None:
            nonlocal state
            for _ in range(options.steps):
                state, metrics = step(state, batch)
            jax.block_until_ready(metrics)

        return work

    def peak() -> int | None:
        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    def notes() -> dict:
        return {"peak_flops": peak_flops(jax.devices()[0].device_kind)}

    worker(prepare, peak=peak, notes=notes)


def in_torch(options: argparse.Namespace, dtype: str, mode: str) -> None:
    """transformers' GPT-2 as its users train it; `mode`: eager or compile."""
    import torch

    from benchmarks.training import random_tokens
    from benchmarks.transformers_gpt2 import fresh_gpt2

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def prepare() -> Callable[[], None]:
        # TF32 where a GPU has it, as in JAX by default.
        torch.set_float32_matmul_precision("high")
        config = model_config(options)
        # The vocabulary is padded as ours is, because GPUs are faster with it.
        model = fresh_gpt2(replace(config, vocab_size=config.padded_vocab)).to(device).train()
        forward = torch.compile(model) if mode == "compile" else model
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        tokens = random_tokens(options.batch, options.context + 1).astype(np.int64)
        inputs = torch.tensor(tokens[:, :-1], device=device)

        def work() -> None:
            for _ in range(options.steps):
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                    loss = forward(input_ids=inputs, labels=inputs, use_cache=False).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            loss.item()

        return work

    worker(prepare, peak=lambda: torch.cuda.max_memory_allocated() if device == "cuda" else None)


def matmul(options: argparse.Namespace, dtype: str) -> None:
    """A large matmul in JAX."""
    import jax
    import jax.numpy as jnp

    repeats = GPU_MATMULS if jax.default_backend() == "gpu" else 1

    def prepare() -> Callable[[], None]:
        shape = (MATMUL_SIZE, MATMUL_SIZE)
        a = jax.random.normal(jax.random.key(0), shape, jnp.dtype(dtype))
        b = jax.random.normal(jax.random.key(1), shape, jnp.dtype(dtype))
        multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))

        def work() -> None:
            for _ in range(repeats):
                c = multiply(a, b)
            c.block_until_ready()

        return work

    worker(prepare, notes=lambda: {"flops": 2 * MATMUL_SIZE**3 * repeats})


def matmul_in_torch(options: argparse.Namespace, dtype: str) -> None:
    """The same in torch."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    repeats = GPU_MATMULS if device == "cuda" else 1

    def prepare() -> Callable[[], None]:
        torch.set_float32_matmul_precision("high")
        shape = (MATMUL_SIZE, MATMUL_SIZE)
        a = torch.randn(shape, device=device).to(getattr(torch, dtype))
        b = torch.randn(shape, device=device).to(getattr(torch, dtype))

        def work() -> None:
            for _ in range(repeats):
                c = a @ b
            c[0, 0].item()

        return work

    worker(prepare, notes=lambda: {"flops": 2 * MATMUL_SIZE**3 * repeats})


if __name__ == "__main__":
    main()
