"""Writing speed beside transformers: our Generator and `generate` with its cache, greedy, from a prompt to the last token.

    python -m benchmarks.decode                           GPT-2 124M, 64 + 128 tokens, one row
    python -m benchmarks.decode --rows 8
    python -m benchmarks.decode --dtypes float32 bfloat16 int8

int8 is `sample.py --quantize int8`; transformers has nothing like it, so it stands beside transformers in bfloat16 ("times":
how much faster than whom). Rivals take turns (rivals.py). The floor of one row is the memory: every token reads all
weights once, so "of memory" is weight bytes a second over the rate at which this machine sums a large array.
"""

import argparse
import sys
from collections.abc import Callable

import numpy as np

from benchmarks.rivals import Measured, compete, serve, table
from minigpt_jax.model import GPTConfig

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
PEER = {"float32": "torch-float32", "bfloat16": "torch-bfloat16", "int8": "torch-bfloat16"}
READ = 2**30  # bytes that the measurement of memory reads at once


def main() -> None:
    """Measure and print the table, or be one of the rivals."""
    options = parse()
    if options.rival:
        kind, _, dtype = options.rival.partition("-")
        {"ours": ours, "torch": in_torch, "memory": memory}[kind](options, dtype)
        return
    rivals = dict.fromkeys(
        name for dtype in options.dtypes for name in (f"ours-{dtype}", PEER[dtype])
    )
    report(options, compete("benchmarks.decode", [*rivals, "memory"], sys.argv[1:], options.rounds))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode", description="Writing speed beside transformers."
    )
    for name, value in {
        "layers": 12,
        "heads": 12,
        "embed": 768,
        "context": 1024,
        "rows": 1,
        "prompt": 64,
        "new": 128,
        "rounds": 5,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default: {value}")
    parser.add_argument("--dtypes", nargs="+", choices=list(BYTES), default=["float32", "bfloat16"])
    parser.add_argument("--rival", help=argparse.SUPPRESS)
    return parser.parse_args()


def shape(options: argparse.Namespace) -> GPTConfig:
    """The model that all of them ask."""
    return GPTConfig(
        layers=options.layers, heads=options.heads, embed=options.embed, context=options.context
    )


def report(options: argparse.Namespace, results: dict[str, Measured]) -> None:
    """The table."""
    config, limit = shape(options), results.pop("memory")
    bandwidth = limit.notes["bytes"] / limit.median
    print(
        f"{config.parameters:,} parameters; {options.rows} rows of {options.prompt} + {options.new} tokens; {options.rounds} rounds; "
        f"memory read at {bandwidth / 1e9:.1f} GB/s"
    )
    speeds = {name: options.rows * options.new / m.median for name, m in results.items()}
    rows = []
    for name, m in results.items():
        dtype = name.partition("-")[2]
        peer = speeds.get(PEER[dtype], float("nan"))
        share = config.parameters * BYTES[dtype] * speeds[name] / options.rows / bandwidth
        rows.append(
            [
                name,
                f"{speeds[name]:.1f}",
                f"{speeds[name] / peer:.2f} {PEER[dtype]}",
                f"{m.peak / 1e9:.2f} GB",
                f"{m.first:.1f} s",
                f"{share:.0%}",
            ]
        )
    print(table(["", "tokens/s", "times", "peak memory", "first text", "of memory"], rows))


def ours(options: argparse.Namespace, dtype: str) -> None:
    """What sample.py does."""
    import jax
    import jax.numpy as jnp

    from minigpt_jax import optim
    from minigpt_jax.generate import Generator
    from minigpt_jax.model import GPT
    from minigpt_jax.sampling import sampling_params
    from minigpt_jax.sharding import make_mesh, replicated
    from minigpt_jax.step import init_state
    from minigpt_jax.tokenizer import load_tokenizer

    def prepare() -> Callable[[], None]:
        config = shape(options)
        mesh = make_mesh()
        params = jax.device_put(
            init_state(GPT(config), optim.make_optimizer(), 0, mesh).params, replicated(mesh)
        )
        how = {"quantize": dtype} if dtype == "int8" else {"dtype": jnp.dtype(dtype)}
        writer = Generator(params, config, load_tokenizer(), rows=options.rows, **how)
        prompts, calls = random_prompts(options), iter(range(10**9))

        def work() -> None:
            # Another first token each time: nothing of the last text may be used again.
            first = next(calls)
            asked = [[first, *prompt[1:]] for prompt in prompts.tolist()]
            for _ in writer.stream(
                asked,
                sampling_params(options.rows, config, temperature=0.0),
                max_new_tokens=options.new,
            ):
                pass
            written = {len(answer.tokens) for answer in writer.completions}
            if written != {options.new}:
                raise RuntimeError(f"{options.new} tokens were asked for, {written} came")

        return work

    serve(
        prepare, peak=lambda: (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    )


def in_torch(options: argparse.Namespace, dtype: str) -> None:
    """transformers' `generate`."""
    import torch

    from benchmarks.peer import fresh_gpt2

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def prepare() -> Callable[[], None]:
        torch.set_float32_matmul_precision("high")  # TF32 where a GPU has it, as JAX by default
        model = fresh_gpt2(shape(options)).to(device, getattr(torch, dtype)).eval()
        prompts = torch.tensor(random_prompts(options), device=device)

        def work() -> None:
            ids = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                use_cache=True,
                pad_token_id=50256,
                max_new_tokens=options.new,
                min_new_tokens=options.new,
            )
            ids[0, -1].item()

        return work

    serve(prepare, peak=lambda: torch.cuda.max_memory_allocated() if device == "cuda" else None)


def memory(options: argparse.Namespace, dtype: str) -> None:
    """The rate at which memory can be read."""
    import jax
    import jax.numpy as jnp

    reads = (
        100 if jax.default_backend() == "gpu" else 1
    )  # a GPU does one in less time than it takes to ask for it

    def prepare() -> Callable[[], None]:
        large = jnp.ones(READ // 4, jnp.float32)
        total = jax.jit(
            lambda a: a.reshape(1024, -1).sum(-1)
        )  # many rows: every core has its share

        def work() -> None:
            for _ in range(reads):
                sums = total(large)
            sums.block_until_ready()

        return work

    serve(prepare, notes=lambda: {"bytes": READ * reads})


def random_prompts(options: argparse.Namespace) -> np.ndarray:
    """[B, prompt] the same for all."""
    return np.random.default_rng(0).integers(0, 50256, (options.rows, options.prompt))


if __name__ == "__main__":
    main()
