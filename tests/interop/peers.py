"""A run of ours beside the programs it was exported for: transformers (torch) and llama.cpp, on the same words.

    python -m tests.interop.peers --run runs/quickstart_finetune

Prints one line a comparison and ends with 1 where they differ. A pair of texts counts as equal when they part only where
the two best logits are closer than a tie: 1e-4 for transformers, 1e-2 for llama.cpp, whose GELU is a table.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from minigpt_jax import chat, load_run
from minigpt_jax.generate import Generator
from minigpt_jax.interop import export_gguf, export_hf, gpt2
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.loss import logits
from minigpt_jax.model import GPT
from minigpt_jax.sampling import sampling_params
from minigpt_jax.tokenizer import END, END_OF_TEXT

WORDS = [
    "what",
    "does",
    "the",
    "array",
    "return",
    "numpy",
    "list",
    "of",
    "a",
    "12",
    "élan",
    "日本",
    "(",
    ") ,",
    "don't\n",
    "",
]
NEW = 50


def prompts(run: LoadedRun, count: int, seed: int = 0) -> list[list[int]]:
    """Ids of random conversations that wait for an answer, short enough to leave room for it."""
    draw, found = random.Random(seed), []
    while len(found) < count:
        turns = [{"role": "user", "content": " ".join(draw.choices(WORDS, k=draw.randint(1, 6)))}]
        if draw.random() < 0.3:
            turns = [
                *turns,
                {"role": "assistant", "content": draw.choice(WORDS)},
                {"role": "user", "content": draw.choice(WORDS)},
            ]
        ids = chat.prompt(turns, run.tokenizer)
        if len(ids) + NEW <= run.config.context:
            found.append(ids)
    return found


def scores(run: LoadedRun, ids: list[int]) -> np.ndarray:
    """[T, V] our logits."""
    row = np.zeros(
        (1, run.config.context), np.int32
    )  # one shape to compile; nothing sees what comes after it
    row[0, : len(ids)] = ids
    return np.asarray(_scores(GPT(run.config), run.params, row))[
        0, : len(ids), : run.config.vocab_size
    ]


@partial(jax.jit, static_argnums=0)
def _scores(model: GPT, params: dict, row: np.ndarray) -> jax.Array:
    hidden, _ = model.apply({"params": params}, row)
    return logits(hidden, params["wte"], model.config.vocab_size)


def greedy(run: LoadedRun, asked: list[list[int]]) -> list[list[int]]:
    """Our most likely continuations of up to NEW tokens, without what ends them."""
    writer = Generator(run.params, run.config, run.tokenizer, rows=len(asked))
    for _ in writer.stream(
        asked, sampling_params(len(asked), run.config, temperature=0.0), max_new_tokens=NEW
    ):
        pass
    return [answer.tokens for answer in writer.completions]


def parted(run: LoadedRun, asked: list[int], ours: list[int], theirs: list[int], tie: float) -> str:
    """ "" for equal texts, "tie" where they part at a near tie, else where they part."""
    at = next(
        (i for i, (a, b) in enumerate(zip([*ours, END], [*theirs, END], strict=False)) if a != b),
        None,
    )
    if at is None:
        return ""
    best = np.sort(scores(run, asked + ours[:at])[-1])[-2:]
    return (
        "tie"
        if best[1] - best[0] < tie
        else f"token {at}: {ours[at : at + 1]} and {theirs[at : at + 1]}, best logits {best}"
    )


def verdict(what: str, differences: list[str]) -> list[str]:
    """Print the line of a comparison; the real differences."""
    real, ties = [d for d in differences if d not in ("", "tie")], differences.count("tie")
    print(
        f"{what}: {len(differences) - len(real) - ties} of {len(differences)} equal, {ties} ties, {len(real)} differ",
        *real[:3],
    )
    return real


def beside_transformers(run: LoadedRun, folder: Path, count: int) -> list[str]:
    """Logits, greedy texts, stops and template of an exported folder; what differs."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder).eval(),
    )
    asked, stop = prompts(run, count), gpt2.stop_tokens(run.config)
    ours, theirs, far = greedy(run, asked), [], 0.0
    for ids in asked:
        with torch.no_grad():
            long = torch.tensor([ids])
            far = max(far, float(np.abs(model(long).logits[0].numpy() - scores(run, ids)).max()))
            made = model.generate(
                long,
                attention_mask=torch.ones_like(long),
                do_sample=False,
                max_length=len(ids) + NEW,
            )[0, len(ids) :].tolist()
        ended = [i for i, id in enumerate(made) if id in stop]
        theirs.append(made[: ended[0]] if ended else made)
        if ended and ended[0] != len(made) - 1:
            return verdict("generate stops", ["it went on after a stop token"])
    print(f"logits on {count} prompts: at most {far:.1e} apart")
    found = [f"logits {far:.1e} apart"] * (far > 1e-4)
    found += verdict(
        "greedy texts beside transformers",
        [parted(run, *texts, 1e-4) for texts in zip(asked, ours, theirs, strict=True)],
    )
    return found + template(
        run,
        lambda turns: tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"],
        50,
    )


def template(run: LoadedRun, apply: Callable[[list], list[int]], count: int) -> list[str]:
    """Ids of random conversations of several turns from another program's template; what differs."""
    draw, differences = random.Random(1), []
    for _ in range(count):
        turns = (
            [{"role": "system", "content": " ".join(draw.choices(WORDS, k=4))}]
            if draw.random() < 0.5
            else []
        )
        for _ in range(draw.randint(1, 4)):
            turns += [
                {"role": role, "content": " ".join(draw.choices(WORDS, k=draw.randrange(6)))}
                for role in ("user", "assistant")
            ]
        turns.pop()
        differences.append(
            "" if list(apply(turns)) == chat.prompt(turns, run.tokenizer) else repr(turns)
        )
    return verdict("chat templates", differences)


def beside_llama(run: LoadedRun, file: Path, count: int, exact: bool) -> list[str]:
    """Greedy texts and template of a GGUF file in llama.cpp; what differs. Not `exact`: it need only answer."""
    import llama_cpp
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    # A cache in f32, like ours: llama.cpp's own default is f16.
    kinds = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    model = llama_cpp.Llama(
        str(file), n_ctx=run.config.context, logits_all=False, verbose=False, **kinds
    )
    asked, theirs = prompts(run, count), []
    for ids in asked:
        model.reset()
        made: list[int] = []
        for id in model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
            if id in (END, END_OF_TEXT) or len(made) == NEW:
                break
            made.append(id)
        theirs.append(made)
    if not exact:
        print(f"{file.name}: answers, {run.tokenizer.decode(theirs[0])[:60]!r}")
        return [] if any(theirs) else ["no answer at all"]
    found = verdict(
        "greedy texts beside llama.cpp",
        [
            parted(run, *texts, 1e-2)
            for texts in zip(asked, greedy(run, asked), theirs, strict=True)
        ],
    )
    words = Jinja2ChatFormatter(
        model.metadata["tokenizer.chat_template"], "<|end|>", "<|endoftext|>"
    )
    return found + template(
        run,
        lambda turns: model.tokenize(
            words(messages=turns).prompt.encode(), add_bos=False, special=True
        ),
        50,
    )


def main() -> int:
    """Export a run and compare; programs that are not installed are left out by name."""
    parser = argparse.ArgumentParser(
        description="A finetuned run beside transformers and llama.cpp."
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=64)
    options = parser.parse_args()
    run, found = load_run(options.run), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            export_hf.export(options.run, folder / "hf")
            found += beside_transformers(run, folder / "hf", options.prompts)
        except ImportError as error:
            print(f"transformers: left out ({error})")
        tensors = gpt2.to_gpt2(run.params, run.config)
        try:
            for kind in ("f32", "q8_0"):
                export_gguf.write(folder / f"{kind}.gguf", "run", run.config, tensors, kind)
                found += beside_llama(run, folder / f"{kind}.gguf", 8, exact=kind == "f32")
        except ImportError as error:
            print(f"llama.cpp: left out ({error})")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
