"""The contenders of train_throughput that PyTorch runs: two models and a matmul."""

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.contenders import worker
from benchmarks.options import model_config

# The mode of torch.compile that "autotune" stands for. CUDA graphs would need memory of their own
# in each contender.
AUTOTUNE = "max-autotune-no-cudagraphs"
# Rows and columns of the matrices whose product others are compared with.
MATMUL_SIZE = 4096
# The same on a GPU.
GPU_MATMUL_SIZE = 8192
# Matmuls in a round on a GPU, which does one in less time than it takes to start it.
GPU_MATMULS = 100


def plain(options: argparse.Namespace, dtype: str, rows: str, mode: str) -> None:
    """A plain GPT-2 in torch; `mode`: eager, compile or autotune."""
    from benchmarks.plain_gpt2 import PlainGPT2, make_optimizer

    def make(device: str):
        model = PlainGPT2(model_config(options)).to(device).train()
        return model, make_optimizer(model), lambda forward, x, y: forward(x, y)

    torch_worker(options, dtype, rows, mode, make)


def transformers(options: argparse.Namespace, dtype: str, rows: str, mode: str) -> None:
    """transformers' GPT-2 as its users train it; `mode`: eager or compile."""
    import torch

    from benchmarks.transformers_gpt2 import fresh_gpt2

    def make(device: str):
        config = model_config(options)
        # The vocabulary is padded as ours is, because GPUs are faster with it.
        model = fresh_gpt2(replace(config, vocab_size=config.padded_vocab)).to(device).train()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        # It shifts the labels itself.
        return (
            model,
            optimizer,
            lambda forward, x, _: forward(input_ids=x, labels=x, use_cache=False).loss,
        )

    torch_worker(options, dtype, rows, mode, make)


def torch_worker(options: argparse.Namespace, dtype: str, rows: str, mode: str, make) -> None:
    """Train what `make(device)` returns: a model, its optimizer, and a function to its loss."""
    import torch

    from benchmarks.training import random_tokens

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def prepare() -> Callable[[], None]:
        # TF32 where a GPU has it, as in JAX by default.
        torch.set_float32_matmul_precision("high")
        model, optimizer, loss_of = make(device)
        compile_mode = AUTOTUNE if mode == "autotune" else None
        forward = model if mode == "eager" else torch.compile(model, mode=compile_mode)
        tokens = random_tokens(int(rows), options.context + 1).astype(np.int64)
        inputs = torch.tensor(tokens[:, :-1], device=device)
        targets = torch.tensor(tokens[:, 1:], device=device)

        def work() -> None:
            for _ in range(options.steps):
                optimizer.zero_grad(set_to_none=True)
                for _ in range(options.accumulation):
                    with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                        loss = loss_of(forward, inputs, targets) / options.accumulation
                    loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            loss.item()

        return work

    worker(
        prepare,
        peak=lambda: torch.cuda.max_memory_allocated() if device == "cuda" else None,
        notes=lambda: {
            "tokens": options.steps * options.accumulation * int(rows) * options.context
        },
    )


def matmul_in_torch(options: argparse.Namespace, dtype: str) -> None:
    """A large matmul in torch."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    repeats, size = (GPU_MATMULS, GPU_MATMUL_SIZE) if device == "cuda" else (1, MATMUL_SIZE)

    def prepare() -> Callable[[], None]:
        torch.set_float32_matmul_precision("high")
        shape = (size, size)
        a = torch.randn(shape, device=device).to(getattr(torch, dtype))
        b = torch.randn(shape, device=device).to(getattr(torch, dtype))

        def work() -> None:
            for _ in range(repeats):
                c = a @ b
            c[0, 0].item()

        return work

    worker(prepare, notes=lambda: {"flops": 2 * size**3 * repeats, "size": size})
