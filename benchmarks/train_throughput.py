"""Training speed beside PyTorch: our step and transformers' GPT-2 (SDPA, fused AdamW), eager and compiled, in f32 and bf16.

    python -m benchmarks.train_throughput                                            GPT-2 124M, 1024 tokens, one row
    python -m benchmarks.train_throughput --layers 6 --heads 6 --embed 384 --context 256 --batch 16 --dtypes float32
    python -m benchmarks.train_throughput --batch 32 --steps 10                      on a GPU

A step is everything: forward, backward, clipping and AdamW. Rivals take turns (rivals.py). "of matmul" is the share of
the rate of a large matrix product in the same precision, the faster of JAX's and torch's, measured among the rivals.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rivals import Measured, compete, serve, table
from configs.pretrain import get_config
from minigpt_jax.model import GPTConfig

DTYPES = ("float32", "bfloat16")
MATMUL = 4096  # rows and columns of the product that others are measured by
HORIZON = 10_000  # of the schedule: what matters is that its values are not zero


def main() -> None:
    """Measure and print the table, or be one of the rivals."""
    options = parse()
    if options.rival:
        kind, dtype, *how = options.rival.split("-")
        prepare = {
            "ours": ours,
            "torch": in_torch,
            "matmul": matmul,
            "torchmatmul": matmul_in_torch,
        }[kind]
        prepare(options, dtype, *how)
        return
    rivals = [f"ours-{d}" for d in options.dtypes] + [
        f"torch-{d}-{how}" for d in options.dtypes for how in ("eager", "compile")
    ]
    limits = [f"{kind}-{d}" for d in options.dtypes for kind in ("matmul", "torchmatmul")]
    rivals = [name for name in rivals + limits if not options.only or name in options.only]
    arguments = sys.argv[1:]
    report(options, compete("benchmarks.train_throughput", rivals, arguments, options.rounds))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_throughput", description="Training speed beside PyTorch."
    )
    for name, value in {
        "layers": 12,
        "heads": 12,
        "embed": 768,
        "context": 1024,
        "batch": 1,
        "steps": 2,
        "rounds": 5,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default: {value}")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        default=precisions(),
        help="default here: %(default)s",
    )
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
    parser.add_argument("--unroll", type=int, default=1, help="layers that we compile as one piece")
    parser.add_argument("--loss-chunk", type=int, default=128)
    parser.add_argument(
        "--isolate-documents",
        action="store_true",
        help="ours alone: documents of a row see only themselves, as in finetuning",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="leave out all others")
    parser.add_argument("--rival", help=argparse.SUPPRESS)
    return parser.parse_args()


def precisions() -> tuple[str, ...]:
    """Those that this machine multiplies: on a processor without bfloat16, torch takes minutes for a step of it."""
    description = Path("/proc/cpuinfo")
    words = set(description.read_text().split()) if description.exists() else set()
    has_gpu = Path("/proc/driver/nvidia/version").exists()
    return DTYPES if has_gpu or words & {"avx512_bf16", "amx_bf16", "bf16"} else DTYPES[:1]


def shape(options: argparse.Namespace) -> GPTConfig:
    """The model that all of them train."""
    return GPTConfig(
        layers=options.layers, heads=options.heads, embed=options.embed, context=options.context
    )


def report(options: argparse.Namespace, results: dict[str, Measured]) -> None:
    """The table."""
    config = shape(options)
    tokens, flops = options.steps * options.batch * config.context, config.flops_per_token
    rates = {
        dtype: max(
            (
                m.notes["flops"] / m.median
                for name, m in results.items()
                if "matmul" in name and name.endswith(dtype)
            ),
            default=float("nan"),
        )
        for dtype in options.dtypes
    }
    speeds = {name: tokens / m.median for name, m in results.items() if "matmul" not in name}
    peers = {name: speed for name, speed in speeds.items() if name.startswith("torch")}
    best = max(peers.values(), default=float("nan"))
    peak = next(
        (m.notes["peak_flops"] for m in results.values() if m.notes.get("peak_flops")), None
    )
    print(
        f"{config.parameters:,} parameters, {options.batch} x {config.context} tokens a step, {options.rounds} rounds of {options.steps} steps"
    )
    rows = []
    for name, m in results.items():
        if "matmul" in name:
            continue
        share = f"{speeds[name] * flops / rates[name.split('-')[1]]:.0%}"
        mfu = f"{speeds[name] * flops / peak:.1%}" if peak else "n/a"
        rows.append(
            [
                name,
                f"{speeds[name]:,.0f}",
                f"{tokens / max(m.seconds):,.0f} to {tokens / min(m.seconds):,.0f}",
                f"{speeds[name] / best:.2f}",
                f"{m.peak / 1e9:.2f} GB",
                f"{m.first:.1f} s",
                share,
                mfu,
            ]
        )
    print(
        table(
            [
                "",
                "tokens/s",
                "slowest to fastest",
                "of best torch",
                "peak memory",
                "first round",
                "of matmul",
                "MFU",
            ],
            rows,
        )
    )
    for dtype, rate in rates.items():
        print(f"{dtype} product of {MATMUL} x {MATMUL}: {rate / 1e9:,.0f} GFLOP/s")


# ---- the rivals


def ours(options: argparse.Namespace, dtype: str) -> None:
    """Our step, as train.py runs it."""
    import jax
    import jax.numpy as jnp

    from minigpt_jax import optim
    from minigpt_jax.hardware import peak_flops
    from minigpt_jax.model import GPT
    from minigpt_jax.sharding import batch_sharding, make_mesh
    from minigpt_jax.step import Batch, init_state, make_train_step
    from minigpt_jax.tokenizer import END_OF_TEXT

    def prepare() -> Callable[[], None]:
        c: Any = get_config()
        model = GPT(
            shape(options), dtype=jnp.dtype(dtype), remat=options.remat, unroll=options.unroll
        )
        mesh, optimizer = make_mesh(), optim.make_optimizer(**c.optimizer)
        schedule = partial(optim.learning_rate, horizon=HORIZON, **c.schedule)
        separator = END_OF_TEXT if options.isolate_documents else None
        step = make_train_step(
            model,
            optimizer,
            schedule,
            mesh,
            seed=0,
            loss_chunk=options.loss_chunk,
            separator=separator,
        )
        tokens = random_tokens(options)
        weights = np.ones((options.batch, options.context), np.uint8)
        batch = jax.device_put(
            Batch(tokens[None].astype(np.uint16), weights[None]), batch_sharding(mesh)
        )
        state = [init_state(model, optimizer, 0, mesh)]

        def work() -> None:
            for _ in range(options.steps):
                state[0], metrics = step(state[0], batch)
            jax.block_until_ready(metrics)

        return work

    def peak() -> int | None:
        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    serve(
        prepare, peak=peak, notes=lambda: {"peak_flops": peak_flops(jax.devices()[0].device_kind)}
    )


def in_torch(options: argparse.Namespace, dtype: str, how: str) -> None:
    """transformers' GPT-2 as its users train it: SDPA, autocast for bf16, AdamW fused, clipped gradients."""
    import torch

    from benchmarks.peer import fresh_gpt2

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def prepare() -> Callable[[], None]:
        torch.set_float32_matmul_precision("high")  # TF32 where a GPU has it, as JAX by default
        model = (
            fresh_gpt2(replace(shape(options), vocab_size=shape(options).padded_vocab))
            .to(device)
            .train()
        )  # padded as ours: GPUs want it even
        forward = torch.compile(model) if how == "compile" else model
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        inputs = torch.tensor(random_tokens(options)[:, :-1].astype(np.int64), device=device)

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

    serve(prepare, peak=lambda: torch.cuda.max_memory_allocated() if device == "cuda" else None)


def matmul(options: argparse.Namespace, dtype: str) -> None:
    """A large product, by JAX."""
    import jax
    import jax.numpy as jnp

    def prepare() -> Callable[[], None]:
        on_gpu = jax.default_backend() == "gpu"
        a, b = (
            jax.random.normal(jax.random.key(i), (MATMUL, MATMUL), jnp.dtype(dtype))
            for i in range(2)
        )
        product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))

        def work() -> None:
            for _ in range(products(on_gpu)):
                c = product(a, b)
            c.block_until_ready()

        return work

    serve(
        prepare, notes=lambda: {"flops": 2 * MATMUL**3 * products(jax.default_backend() == "gpu")}
    )


def matmul_in_torch(options: argparse.Namespace, dtype: str) -> None:
    """The same by torch."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def prepare() -> Callable[[], None]:
        torch.set_float32_matmul_precision("high")
        a, b = (
            torch.randn(MATMUL, MATMUL, device=device).to(getattr(torch, dtype)) for _ in range(2)
        )

        def work() -> None:
            for _ in range(products(device == "cuda")):
                c = a @ b
            c[0, 0].item()

        return work

    serve(prepare, notes=lambda: {"flops": 2 * MATMUL**3 * products(device == "cuda")})


def products(on_gpu: bool) -> int:
    """Large products in a round: a GPU does one in less time than it takes to ask for it."""
    return 100 if on_gpu else 1


def random_tokens(options: argparse.Namespace) -> np.ndarray:
    """[B, T+1] the same for all."""
    return np.random.default_rng(0).integers(0, 50256, (options.batch, options.context + 1))


if __name__ == "__main__":
    main()
