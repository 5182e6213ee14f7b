"""Generation speed compared with transformers: our Generator and `generate` with its cache, greedy.

    python -m benchmarks.decode                           GPT-2 124M, 64 + 128 tokens, one row
    python -m benchmarks.decode --rows 8
    python -m benchmarks.decode --dtypes float32 bfloat16 int8

int8 is `sample.py --quantize int8`; transformers has no equivalent, so it is compared with
transformers in bfloat16. The column "times" is our speed divided by that of the contender it names.
The limit for one row is the memory: every token reads all weights once, so "of memory" is weight
bytes per second divided by the rate at which this machine sums a large array.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import count

import numpy as np

from benchmarks.contenders import Measured, run_interleaved, table, worker
from benchmarks.options import add_integers, model_config
from minigpt_jax.model import GPTConfig
from minigpt_jax.tokenizer import END_OF_TEXT

BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "int8": 1}
# The contender that each of our precisions is compared with.
COMPARED_WITH = {
    "float32": "torch-float32",
    "bfloat16": "torch-bfloat16",
    "int8": "torch-bfloat16",
}
# Bytes of the array that measures the memory.
LARGE = 2**30
# Sums in a round on a GPU, which does one in less time than it takes to start it.
GPU_READS = 100


def main() -> None:
    """Measure and print the table, or be one of the contenders."""
    options = parse()
    if options.contender:
        kind, _, dtype = options.contender.partition("-")
        contender = {"ours": ours, "torch": in_torch, "memory": memory}[kind]
        contender(options, dtype)
        return
    names = []
    for dtype in options.dtypes:
        names += [f"ours-{dtype}", COMPARED_WITH[dtype]]
    names = [*dict.fromkeys(names), "memory"]
    report(options, run_interleaved("benchmarks.decode", names, sys.argv[1:], options.rounds))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode",
        description="Generation speed compared with transformers.",
    )
    add_integers(parser, layers=12, heads=12, embed=768, context=1024)
    add_integers(parser, rows=1, prompt=64, new=128, rounds=5)
    parser.add_argument(
        "--dtypes", nargs="+", choices=list(BYTES_PER_WEIGHT), default=["float32", "bfloat16"]
    )
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    return parser.parse_args()


def report(options: argparse.Namespace, results: dict[str, Measured]) -> None:
    """Print the table."""
    config = model_config(options)
    limit = results.pop("memory")
    bandwidth = limit.notes["bytes"] / limit.median
    print(
        f"{config.parameters:,} parameters; {options.rows} rows of {options.prompt} + "
        f"{options.new} tokens; {options.rounds} rounds; memory read at {bandwidth / 1e9:.1f} GB/s"
    )
    speeds = {name: options.rows * options.new / m.median for name, m in results.items()}
    rows = []
    for name, measured in results.items():
        dtype = name.partition("-")[2]
        other = COMPARED_WITH[dtype]
        ratio = speeds[name] / speeds.get(other, float("nan"))
        bytes_per_s = config.parameters * BYTES_PER_WEIGHT[dtype] * speeds[name] / options.rows
        row = [
            name,
            f"{speeds[name]:.1f}",
            f"{ratio:.2f} {other}",
            f"{measured.peak / 1e9:.2f} GB",
            f"{measured.first:.1f} s",
            f"{bytes_per_s / bandwidth:.0%}",
        ]
        rows.append(row)
    print(table(["", "tokens/s", "times", "peak memory", "first text", "of memory"], rows))


def random_prompts(options: argparse.Namespace) -> np.ndarray:
    """[rows, prompt] random ids of text, the same for all contenders."""
    shape = (options.rows, options.prompt)
    return np.random.default_rng(0).integers(0, END_OF_TEXT, shape)


# ---- the contenders


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
        config = model_config(options)
        generator = make_generator(config)
        sampling = sampling_params(options.rows, config, temperature=0.0)
        prompts = random_prompts(options)
        calls = count()

        def work() -> None:
            # Another first token each time, so that nothing of the last text can be reused.
            prompts[:, 0] = next(calls)
            completions = generator.complete(prompts.tolist(), sampling, max_new_tokens=options.new)
            lengths = {len(completion.tokens) for completion in completions}
            if lengths != {options.new}:
                raise RuntimeError(f"expected {options.new} tokens, found {lengths}")

        return work

    def make_generator(config: GPTConfig) -> Generator:
        mesh = make_mesh()
        state = init_state(GPT(config), optim.make_optimizer(), 0, mesh)
        params = jax.device_put(state.params, replicated(mesh))
        precision = {"quantize": dtype} if dtype == "int8" else {"dtype": jnp.dtype(dtype)}
        return Generator(params, config, load_tokenizer(), rows=options.rows, **precision)

    def peak() -> int | None:
        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    worker(prepare, peak=peak)


def in_torch(options: argparse.Namespace, dtype: str) -> None:
    """`generate` of transformers."""
    import torch

    from benchmarks.transformers_gpt2 import fresh_gpt2

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def prepare() -> Callable[[], None]:
        # TF32 where a GPU has it, as in JAX by default.
        torch.set_float32_matmul_precision("high")
        model = fresh_gpt2(model_config(options)).to(device, getattr(torch, dtype)).eval()
        prompts = torch.tensor(random_prompts(options), device=device)

        def work() -> None:
            ids = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                use_cache=True,
                pad_token_id=END_OF_TEXT,
                max_new_tokens=options.new,
                min_new_tokens=options.new,
            )
            ids[0, -1].item()

        return work

    worker(prepare, peak=lambda: torch.cuda.max_memory_allocated() if device == "cuda" else None)


def memory(options: argparse.Namespace, dtype: str) -> None:
    """The rate at which memory is read."""
    import jax
    import jax.numpy as jnp

    reads = GPU_READS if jax.default_backend() == "gpu" else 1

    def prepare() -> Callable[[], None]:
        large = jnp.ones(LARGE // 4, jnp.float32)
        # Many rows, so that every core has its share.
        total = jax.jit(lambda a: a.reshape(1024, -1).sum(-1))

        def work() -> None:
            for _ in range(reads):
                sums = total(large)
            sums.block_until_ready()

        return work

    worker(prepare, notes=lambda: {"bytes": LARGE * reads})


if __name__ == "__main__":
    main()
