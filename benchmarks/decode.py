"""Generation speed compared with transformers: our Generator and `generate` with its cache.

    python -m benchmarks.decode                           GPT-2 124M, 64 + 128 tokens, greedy
    python -m benchmarks.decode --rows 1 8
    python -m benchmarks.decode --dtypes float32 bfloat16 int8

On a GPU, some minutes:

    python -m benchmarks.decode --dtypes bfloat16 --rows 1 8 64 --rounds 3 \\
        --xla-flags=--xla_gpu_enable_command_buffer=+WHILE \\
        --xla-flags=--xla_gpu_enable_triton_gemm=false

int8 is `sample.py --quantize int8`; transformers has no equivalent, so it is compared with
transformers in bfloat16. The column "times" is our speed divided by that of the contender it names.
The limit for few rows is the memory: every token reads all weights once, and the keys and values
of its own row. "of memory" is how many of these bytes are read per second, divided by the rate at
which this machine sums a large array; where the data sheet of the device is known, "of data sheet"
is the same with its rate.

`--xla-flags`, which may be repeated: measure also with these flags ("flags1-...", "flags2-...").
`--temperature` and `--top-p`: draw, as sample.py does by default with 0.8 and 0.95.
"""

import argparse
import os
import sys
from collections.abc import Callable
from itertools import count

import numpy as np

from benchmarks.contenders import Measured, run_interleaved, table, worker
from benchmarks.options import add_integers, model_config
from minigpt_jax.hardware import memory_bandwidth
from minigpt_jax.model_config import GPTConfig
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
        if kind.startswith("flags"):
            flags = options.xla_flags[int(kind.removeprefix("flags")) - 1]
            # Read when JAX starts its backend.
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
            kind = "ours"
        {"ours": ours, "torch": in_torch, "memory": memory}[kind](options, dtype)
        return
    ways = ["ours", *(f"flags{i + 1}" for i in range(len(options.xla_flags)))]
    names = []
    for dtype in options.dtypes:
        names += [*(f"{way}-{dtype}" for way in ways), COMPARED_WITH[dtype]]
    names = [*dict.fromkeys(names), "memory"]
    for rows in options.rows:
        # Of an option that is given twice, the last counts.
        arguments = [*sys.argv[1:], "--rows", str(rows)]
        results = run_interleaved("benchmarks.decode", names, arguments, options.rounds)
        report(options, rows, results)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode",
        description="Generation speed compared with transformers.",
    )
    add_integers(parser, layers=12, heads=12, embed=768, context=1024)
    add_integers(parser, prompt=64, new=128, rounds=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[1], help="default: 1")
    parser.add_argument(
        "--dtypes", nargs="+", choices=list(BYTES_PER_WEIGHT), default=["float32", "bfloat16"]
    )
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--xla-flags", action="append", default=[], help="measure also with these")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    return parser.parse_args()


def report(options: argparse.Namespace, count: int, results: dict[str, Measured]) -> None:
    """Print the table of `count` rows."""
    config = model_config(options)
    limit = results.pop("memory")
    measured_rate = limit.notes["bytes"] / limit.median
    data_sheet = memory_bandwidth(limit.notes["device"])
    print(
        f"{limit.notes['device']}, {config.parameters:,} parameters; {count} rows of "
        f"{options.prompt} + {options.new} tokens; {options.rounds} rounds; memory read at "
        f"{measured_rate / 1e9:.1f} GB/s"
    )
    speeds = {name: count * options.new / m.median for name, m in results.items()}
    rows = []
    for name, measured in results.items():
        dtype = name.partition("-")[2]
        other = COMPARED_WITH[dtype]
        times = f"{speeds[name] / speeds[other]:.2f} {other}" if other in speeds else "-"
        # All rows together read the weights once.
        rate = token_bytes(options, count, dtype) * speeds[name] / count
        row = [
            name,
            f"{speeds[name]:.1f}",
            f"{count / speeds[name] * 1e3:.2f} ms",
            times,
            f"{measured.peak / 1e9:.2f} GB",
            f"{measured.first:.1f} s",
            f"{rate / measured_rate:.0%}",
            f"{rate / data_sheet:.0%}" if data_sheet else "-",
        ]
        rows.append(row)
    head = ["", "tokens/s", "a step", "times", "peak memory", "first text", "of memory"]
    print(table([*head, "of data sheet"], rows))


def token_bytes(options: argparse.Namespace, rows: int, dtype: str) -> float:
    """What a token of each row must read: all weights, and keys and values of half the new text."""
    config = model_config(options)
    # int8 quantizes the weights only.
    cached_width = 4 if dtype == "float32" else 2
    length = options.prompt + options.new / 2
    cached = rows * length * 2 * config.layers * config.embed * cached_width
    return config.parameters * BYTES_PER_WEIGHT[dtype] + cached


def random_prompts(options: argparse.Namespace) -> np.ndarray:
    """[rows, prompt] random ids of text, the same for all contenders."""
    shape = (options.rows[0], options.prompt)
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

    (rows,) = options.rows

    def prepare() -> Callable[[], None]:
        config = model_config(options)
        generator = make_generator(config)
        sampling = sampling_params(
            rows, config, temperature=options.temperature, top_p=options.top_p
        )
        prompts = random_prompts(options)
        calls = count()

        def work() -> None:
            # Another first token each time, so that nothing of the last text can be reused.
            prompts[:, 0] = next(calls)
            completions = generator.complete(prompts.tolist(), sampling, max_new_tokens=options.new)
            lengths = {len(completion.tokens) for completion in completions}
            # A token that is drawn may end a text; the other rows go on.
            if lengths != {options.new} and not options.temperature:
                raise RuntimeError(f"expected {options.new} tokens, found {lengths}")

        return work

    def make_generator(config: GPTConfig) -> Generator:
        mesh = make_mesh()
        state = init_state(GPT(config), optim.make_optimizer(), 0, mesh)
        params = jax.device_put(state.params, replicated(mesh))
        precision = {"quantize": dtype} if dtype == "int8" else {"dtype": jnp.dtype(dtype)}
        return Generator(params, config, load_tokenizer(), rows=rows, **precision)

    def peak() -> int | None:
        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    worker(prepare, peak=peak)


def in_torch(options: argparse.Namespace, dtype: str) -> None:
    """`generate` of transformers."""
    import torch

    from benchmarks.transformers_gpt2 import fresh_gpt2

    device = "cuda" if torch.cuda.is_available() else "cpu"
    drawing: dict = {"do_sample": False}
    if options.temperature:
        drawing = {"do_sample": True, "temperature": options.temperature}
        drawing |= {"top_p": options.top_p, "top_k": 0}

    def prepare() -> Callable[[], None]:
        # TF32 where a GPU has it, as in JAX by default.
        torch.set_float32_matmul_precision("high")
        model = fresh_gpt2(model_config(options)).to(device, getattr(torch, dtype)).eval()
        prompts = torch.tensor(random_prompts(options), device=device)

        def work() -> None:
            ids = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                **drawing,
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

    device = jax.devices()[0].device_kind
    worker(prepare, notes=lambda: {"bytes": LARGE * reads, "device": device})


if __name__ == "__main__":
    main()
