"""Compare our scores with plain PyTorch's, for GPT-2 small with random weights.

python -m tests.evals.peer --source hellaswag_validation.parquet --rows 200
"""

import argparse
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from minigpt_jax.evals import hellaswag, scoring
from minigpt_jax.interop.hugging_face import read_folder
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.sharding import make_mesh, replicated
from minigpt_jax.tokenizer import load_tokenizer

# Two endings whose losses are closer than this may be ordered either way.
TIE = 1e-4


def losses_in_torch(model, questions: list[hellaswag.Question]) -> np.ndarray:
    """[questions, endings] mean loss of each ending by transformers' GPT-2, one row at a time."""
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
    parser.add_argument("--rows", type=int, default=200, help="number of rows, from the first on")
    options = parser.parse_args()
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config, params = read_folder(Path(folder))
    questions = hellaswag.load(options.source, config.context)[: options.rows]
    mesh = make_mesh()
    run = LoadedRun(jax.device_put(params, replicated(mesh)), config, load_tokenizer())
    scores = scoring.score(run, mesh, [(q.context, q.endings) for q in questions])
    ours = np.array([[score.loss for score in endings] for endings in scores])
    theirs = losses_in_torch(model, questions)
    differ = np.flatnonzero(ours.argmin(1) != theirs.argmin(1))
    best = np.sort(theirs, axis=1)
    ties = [row for row in differ if best[row, 1] - best[row, 0] < TIE]
    print(
        f"{len(questions)} rows: losses at most {np.abs(ours - theirs).max():.1e} apart, "
        f"{len(differ)} choices differ, {len(ties)} of them ties"
    )
    return int(len(differ) > len(ties))


if __name__ == "__main__":
    sys.exit(main())
