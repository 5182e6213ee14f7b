"""Training speed compared with PyTorch: our step, a plain GPT-2 in torch, and transformers' GPT-2.

    python -m benchmarks.train_throughput                        GPT-2 124M, 1024 tokens, one row
    python -m benchmarks.train_throughput --layers 6 --heads 6 --embed 384 --context 256 --batch 16
    python -m benchmarks.train_throughput --dtypes bfloat16 --batch 32 64 --steps 10 --rounds 3 \
        --autotune --sustain 30 --profile                                              on a GPU

A step is everything: forward, backward, clipping and AdamW. "plain" is benchmarks/plain_gpt2.py,
the strongest rival we know; "torch" is transformers with SDPA attention. Both have torch.compile
and the fused AdamW. Each has every size of --batch. The column "of matmul" is the share of the rate
of a large matmul in the same precision: the faster of JAX's and torch's, which take turns with the
others, or with --sustain the rate that a GPU keeps up when it is warm. With --modern NanoChat with
Muon takes part too, in the same size; Muon's own matmuls do not count for its MFU.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.contenders import Measured, run_interleaved, table, worker
from benchmarks.options import add_integers, model_config, modern
from benchmarks.torch_training import (
    AUTOTUNE,
    GPU_MATMUL_SIZE,
    GPU_MATMULS,
    MATMUL_SIZE,
    matmul_in_torch,
    plain,
    transformers,
)

DTYPES = ("float32", "bfloat16")
COLUMNS = (
    "",
    "rows",
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
            "plain": plain,
            "torch": transformers,
            "matmul": matmul,
            "torchmatmul": matmul_in_torch,
            "sustained": matmul,
            "profile": profile,
        }[kind]
        contender(options, *arguments)
        return
    names = contender_names(options)
    if options.only:
        names = [name for name in names if name in options.only]
    module = "benchmarks.train_throughput"
    results = run_interleaved(module, names, sys.argv[1:], options.rounds)
    # Alone, because a GPU that works for others too is warm in another way.
    alone = [f"sustained-{dtype}" for dtype in options.dtypes if options.sustain]
    modes = ("", "-modern") if options.modern else ("",)
    if options.profile:
        rows = options.batch[0]
        alone += [f"profile-{dtype}-{rows}{mode}" for dtype in options.dtypes for mode in modes]
    for name in alone:
        results |= run_interleaved(module, [name], sys.argv[1:], 1)
    report(options, results)


def contender_names(options: argparse.Namespace) -> list[str]:
    """Names such as "plain-bfloat16-32-compile": kind, precision, rows and mode."""
    names = []
    modes = ("eager", "compile", "autotune") if options.autotune else ("eager", "compile")
    for dtype in options.dtypes:
        for rows in options.batch:
            names.append(f"ours-{dtype}-{rows}")
            if options.xla_flags:
                names.append(f"ours-{dtype}-{rows}-flags")
            if options.without_kernels:
                names.append(f"ours-{dtype}-{rows}-xla")
            if options.modern:
                names.append(f"ours-{dtype}-{rows}-modern")
            names += [f"plain-{dtype}-{rows}-{mode}" for mode in modes]
            names += [f"torch-{dtype}-{rows}-{mode}" for mode in ("eager", "compile")]
        names += [f"matmul-{dtype}", f"torchmatmul-{dtype}"]
    return names


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_throughput",
        description="Training speed compared with PyTorch.",
    )
    add = parser.add_argument
    add_integers(parser, layers=12, heads=12, embed=768, context=1024)
    add_integers(parser, steps=2, rounds=5, unroll=0, accumulation=1)
    add("--batch", type=int, nargs="+", default=[1], help="rows of a micro-batch (default: 1)")
    add("--loss-chunk", type=int, default=128, help="default: 128")
    add(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        default=native_dtypes(),
        help="default here: %(default)s",
    )
    add("--remat", choices=("none", "dots", "full"), default="none")
    add(
        "--isolate-documents",
        action="store_true",
        help="ours alone: tokens attend to their own document only, as in finetuning",
    )
    add("--deterministic", action="store_true", help="ours alone: as config.deterministic")
    add("--autotune", action="store_true", help=f"plain torch also with mode={AUTOTUNE}")
    add("--sustain", type=float, default=0, help="seconds of matmuls before their rate is taken")
    add("--profile", action="store_true", help="print where a step goes, from a trace (GPU)")
    add("--xla-flags", help="ours also with these flags of XLA, beside those that train.py sets")
    add("--without-kernels", action="store_true", help="ours also without kernels in Pallas")
    add("--modern", action="store_true", help="ours also as NanoChat, trained with Muon")
    add("--only", nargs="+", metavar="NAME", help="leave out all others")
    add("--contender", help=argparse.SUPPRESS)
    return parser.parse_args()


def native_dtypes() -> tuple[str, ...]:
    """The precisions that this machine multiplies.

    Without bfloat16 in the processor, a step of it in torch takes minutes.
    """
    from minigpt_jax.runtime.startup import NVIDIA_DRIVER

    has_gpu = NVIDIA_DRIVER.exists()
    description = Path("/proc/cpuinfo")
    flags = set(description.read_text().split()) if description.exists() else set()
    has_bfloat16 = flags & {"avx512_bf16", "amx_bf16", "bf16"}
    return DTYPES if has_gpu or has_bfloat16 else DTYPES[:1]


def report(options: argparse.Namespace, results: dict[str, Measured]) -> None:
    """Print the table."""
    config = model_config(options)
    kinds = {name: name.split("-")[0] for name in results}
    trained = {name: m for name, m in results.items() if kinds[name] in ("ours", "plain", "torch")}
    rates = {dtype: matmul_rate(results, dtype) for dtype in options.dtypes}
    speeds = {name: m.notes["tokens"] / m.median for name, m in trained.items()}
    rivals = [speed for name, speed in speeds.items() if kinds[name] != "ours"]
    best = max(rivals, default=float("nan"))
    peaks = [m.notes["peak_flops"] for m in trained.values() if m.notes.get("peak_flops")]

    print(
        f"{config.parameters:,} parameters, rows of {config.context} tokens, "
        f"{options.rounds} rounds of {options.steps} steps"
    )
    rows = []
    for name, measured in trained.items():
        kind, dtype, batch, *mode = name.split("-")
        flops = speeds[name] * config.flops_per_token
        tokens = measured.notes["tokens"]
        row = [
            "-".join([kind, dtype, *mode]),
            batch,
            f"{speeds[name]:,.0f}",
            f"{tokens / max(measured.seconds):,.0f} to {tokens / min(measured.seconds):,.0f}",
            f"{speeds[name] / best:.2f}",
            f"{measured.peak / 1e9:.2f} GB",
            f"{measured.first:.1f} s",
            f"{flops / rates[dtype]:.0%}",
            f"{flops / peaks[0]:.1%}" if peaks else "n/a",
        ]
        rows.append(row)
    print(table(COLUMNS, rows))
    for name, measured in results.items():
        if kinds[name] in ("matmul", "torchmatmul", "sustained"):
            rate = measured.notes["flops"] / measured.median / 1e12
            print(f"{name}: {rate:,.2f} TFLOP/s, {measured.notes['size']} squared")
        elif kinds[name] == "profile":
            print(name, measured.notes["table"], sep="\n")


def matmul_rate(results: dict[str, Measured], dtype: str) -> float:
    """FLOP/s of a large matmul in `dtype`: sustained, else the fastest; NaN if not measured."""
    rates = {
        name: m.notes["flops"] / m.median
        for name, m in results.items()
        if name in (f"sustained-{dtype}", f"matmul-{dtype}", f"torchmatmul-{dtype}")
    }
    return rates.get(f"sustained-{dtype}") or max(rates.values(), default=float("nan"))


# ---- the contenders


def ours(options: argparse.Namespace, dtype: str, rows: str, mode: str = "") -> None:
    """Our step, as train.py runs it.

    `mode`: "flags" with `options.xla_flags` too, "xla" without the kernels of triton_kernels.py,
    "modern" for NanoChat with Muon.
    """
    import jax

    if mode == "xla":
        os.environ["MINIGPT_TRITON"] = "0"
    if mode == "flags":
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {options.xla_flags}"

    from minigpt_jax.hardware import peak_flops

    def prepare() -> Callable[[], None]:
        run, _ = training(options, dtype, int(rows), mode == "modern")
        return lambda: run(options.steps)

    def peak() -> int | None:
        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    def notes() -> dict:
        return {
            "peak_flops": peak_flops(jax.devices()[0].device_kind),
            "tokens": options.steps * options.accumulation * int(rows) * options.context,
        }

    worker(prepare, peak=peak, notes=notes)


def profile(options: argparse.Namespace, dtype: str, rows: str, mode: str = "") -> None:
    """The table "where a step goes" of our step. `mode`: "modern" for NanoChat with Muon."""
    from benchmarks.step_profile import profile_table, step_times

    text = ""

    def prepare() -> Callable[[], None]:
        nonlocal text
        run, compiled_text = training(options, dtype, int(rows), mode == "modern")
        text = profile_table(step_times(run, compiled_text))
        return lambda: run(1)

    worker(prepare, notes=lambda: {"table": text})


def training(
    options: argparse.Namespace, dtype: str, rows: int, is_modern: bool = False
) -> tuple[Callable[[int], None], str]:
    """A function that does so many steps of ours, and the text of the compiled step."""
    import jax
    import jax.numpy as jnp

    from benchmarks.training import random_batch, training_step
    from minigpt_jax.architectures import make_model
    from minigpt_jax.runtime.startup import set_xla_flags
    from minigpt_jax.sharding import make_mesh
    from minigpt_jax.step import init_state

    set_xla_flags(deterministic=options.deterministic)
    config = model_config(options)
    model = make_model(
        modern(config) if is_modern else config,
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
        optimizer_kind="muon" if is_modern else "adamw",
    )
    batch = random_batch(options.accumulation, rows, options.context, mesh)
    state = init_state(model, optimizer, 0, mesh)
    compiled = step.lower(state, batch).compile()

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)

    return run, compiled.as_text() or ""


def matmul(options: argparse.Namespace, dtype: str) -> None:
    """A large matmul in JAX, after `options.sustain` seconds of them."""
    import time

    import jax
    import jax.numpy as jnp

    is_gpu = jax.default_backend() == "gpu"
    repeats, size = (GPU_MATMULS, GPU_MATMUL_SIZE) if is_gpu else (1, MATMUL_SIZE)

    def prepare() -> Callable[[], None]:
        shape = (size, size)
        a = jax.random.normal(jax.random.key(0), shape, jnp.dtype(dtype))
        b = jax.random.normal(jax.random.key(1), shape, jnp.dtype(dtype))
        multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))

        def work() -> None:
            for _ in range(repeats):
                c = multiply(a, b)
            c.block_until_ready()

        ends = time.monotonic() + (options.sustain if "sustained" in options.contender else 0)
        while time.monotonic() < ends:
            work()
        return work

    worker(prepare, notes=lambda: {"flops": 2 * size**3 * repeats, "size": size})


if __name__ == "__main__":
    main()
