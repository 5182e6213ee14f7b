"""Beside plain PyTorch: GPT-2 small with random weights, saved by transformers, imported, and asked the same questions.

python -m tests.evals.peer --source hellaswag_validation.parquet --rows 200
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import jax
import numpy as np

from minigpt_jax import load_run
from minigpt_jax.evals import hellaswag, scoring
from minigpt_jax.interop import import_gpt2
from minigpt_jax.sharding import make_mesh, replicated


def in_torch(model, questions: list[hellaswag.Question]) -> np.ndarray:
    """[questions, endings] mean loss of each ending by transformers' GPT-2, a row at a time."""
    import torch

    model.eval()
    losses = []
    for question in questions:
        for ending in question.endings:
            ids = torch.tensor([[*question.context, *ending]])
            with torch.no_grad():
                logits = model(ids[:, :-1]).logits[0, -len(ending) :]
            losses.append(torch.nn.functional.cross_entropy(logits, ids[0, -len(ending) :]).item())
    return np.array(losses).reshape(len(questions), -1)


def main() -> int:
    """Compare row by row; 1 where a choice differs that is no tie."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="HellaSwag's rows, a file or the hub")
    parser.add_argument("--rows", type=int, default=200, help="how many, from the first on")
    options = parser.parse_args()
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    questions = hellaswag.load(options.source, 1024)[: options.rows]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder, "saved"))
        import_gpt2.write_run(
            Path(folder, "run"),
            *import_gpt2.read_gpt2(Path(folder, "saved")),
            source="transformers",
        )
        run = load_run(Path(folder, "run"))
        params, config = run.params, run.config
    mesh = make_mesh()
    ask = partial(scoring.score, jax.device_put(params, replicated(mesh)), config, mesh)
    found = ask([(q.context, q.endings) for q in questions])
    assert found is not None
    ours, theirs = (
        np.array([[score.loss for score in own] for own in found]),
        in_torch(model, questions),
    )
    differ = np.flatnonzero(ours.argmin(1) != theirs.argmin(1))
    best = np.sort(theirs, axis=1)
    ties = [row for row in differ if best[row, 1] - best[row, 0] < 1e-4]
    print(
        f"{len(questions)} rows: losses at most {np.abs(ours - theirs).max():.1e} apart, {len(differ)} choices differ, {len(ties)} of them ties"
    )
    return int(len(differ) > len(ties))


if __name__ == "__main__":
    sys.exit(main())
