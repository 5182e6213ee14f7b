"""Compare an exported run with the programs that it was exported for: transformers and llama.cpp.

    python -m tests.interop.peers --run runs/quickstart_finetune

Prints one line per comparison and exits with 1 where they differ. Two texts count as equal if they
differ only from a token on where the two best logits are closer than a tie: 1e-4 for transformers,
1e-2 for llama.cpp, which computes GELU from a table. A NanoChat is compared with
transformers alone, because llama.cpp has no such architecture.
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
from minigpt_jax.architectures import AnyModel, make_model, output_head
from minigpt_jax.interop import gguf_file, hugging_face, vocabulary
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.loss import logits
from minigpt_jax.sampling import sampling_params
from minigpt_jax.tokenizer import END, END_OF_TEXT

TEXT = "what does the array return numpy list of a 12 élan 日本 ("
WORDS = [*TEXT.split(), ") ,", "don't\n", ""]
MAX_NEW_TOKENS = 50
CONVERSATIONS = 50
TIE_TRANSFORMERS, TIE_LLAMA_CPP = 1e-4, 1e-2

# Applies a chat template: messages -> token ids.
Template = Callable[[list[chat.Message]], list[int]]


def message(role: str, content: str) -> chat.Message:
    return {"role": role, "content": content}


def random_prompts(run: LoadedRun, count: int) -> list[list[int]]:
    """Token ids of random conversations that leave room for an answer."""
    draw = random.Random(0)
    prompts: list[list[int]] = []
    while len(prompts) < count:
        messages = [message("user", " ".join(draw.choices(WORDS, k=draw.randint(1, 6))))]
        if draw.random() < 0.3:
            messages.append(message("assistant", draw.choice(WORDS)))
            messages.append(message("user", draw.choice(WORDS)))
        ids = chat.prompt(messages, run.tokenizer)
        if len(ids) + MAX_NEW_TOKENS <= run.config.context:
            prompts.append(ids)
    return prompts


def our_logits(run: LoadedRun, ids: list[int]) -> np.ndarray:
    """[T, V] our logits."""
    # Padded to the whole context, so that one shape is compiled. No position attends to padding.
    row = np.zeros((1, run.config.context), np.int32)
    row[0, : len(ids)] = ids
    all_logits = np.asarray(_row_logits(make_model(run.config), run.params, row))
    return all_logits[0, : len(ids), : run.config.vocab_size]


@partial(jax.jit, static_argnames="model")
def _row_logits(model: AnyModel, params: dict, row: np.ndarray) -> jax.Array:
    hidden, _ = model.apply({"params": params}, row)
    config = model.config
    return logits(hidden, output_head(params), config.vocab_size, config.logit_cap)


def our_texts(run: LoadedRun, prompts: list[list[int]]) -> list[list[int]]:
    """Our greedy continuations, without stop tokens."""
    greedy = sampling_params(len(prompts), run.config, temperature=0.0)
    completions = run.generator(rows=len(prompts)).complete(
        prompts, greedy, max_new_tokens=MAX_NEW_TOKENS
    )
    return [completion.tokens for completion in completions]


def difference(
    run: LoadedRun, prompt: list[int], ours: list[int], theirs: list[int], tie: float
) -> str:
    """ "" for equal texts, "tie" where they differ from a near tie on, else where they differ."""
    pairs = enumerate(zip([*ours, END], [*theirs, END], strict=False))
    at = next((i for i, (a, b) in pairs if a != b), None)
    if at is None:
        return ""
    second, best = np.sort(our_logits(run, prompt + ours[:at])[-1])[-2:]
    if best - second < tie:
        return "tie"
    return f"token {at}: {ours[at : at + 1]} and {theirs[at : at + 1]}, logits {best}, {second}"


def report(name: str, differences: list[str]) -> list[str]:
    """Print the line of a comparison; returns the differences that are no ties."""
    real = [d for d in differences if d not in ("", "tie")]
    equal, ties = differences.count(""), differences.count("tie")
    total = len(differences)
    print(f"{name}: {equal} of {total} equal, {ties} ties, {len(real)} differ", *real[:3])
    return real


def compare_with_transformers(run: LoadedRun, folder: Path, count: int) -> list[str]:
    """Differences in logits, greedy texts, stops and chat template of an exported folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    stop_tokens = vocabulary.stop_tokens(run.config.vocab_size)
    prompts = random_prompts(run, count)
    theirs = []
    largest = 0.0
    for ids in prompts:
        with torch.no_grad():
            row = torch.tensor([ids])
            error = np.abs(model(row).logits[0].numpy() - our_logits(run, ids)).max()
            largest = max(largest, float(error))
            generated = model.generate(
                row,
                attention_mask=torch.ones_like(row),
                do_sample=False,
                max_length=len(ids) + MAX_NEW_TOKENS,
            )[0, len(ids) :].tolist()
        ends = [i for i, id in enumerate(generated) if id in stop_tokens]
        theirs.append(generated[: ends[0]] if ends else generated)
        if ends and ends[0] != len(generated) - 1:
            return report("generate stops", ["it continued after a stop token"])
    print(f"logits on {count} prompts: at most {largest:.1e} apart")
    found = [f"logits {largest:.1e} apart"] if largest > 1e-4 else []
    texts = zip(prompts, our_texts(run, prompts), theirs, strict=True)
    found += report(
        "greedy texts of transformers", [difference(run, *t, TIE_TRANSFORMERS) for t in texts]
    )

    def template(messages: list[chat.Message]) -> list[int]:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]

    return found + compare_templates(run, template)


def compare_templates(run: LoadedRun, template: Template) -> list[str]:
    """Differences in the ids of random conversations of several turns."""
    draw = random.Random(1)
    differences = []
    for _ in range(CONVERSATIONS):
        messages: list[chat.Message] = []
        if draw.random() < 0.5:
            messages.append(message("system", " ".join(draw.choices(WORDS, k=4))))
        for _ in range(draw.randint(1, 4)):
            for role in ("user", "assistant"):
                content = " ".join(draw.choices(WORDS, k=draw.randrange(6)))
                messages.append(message(role, content))
        # The user's message is the last one.
        messages.pop()
        equal = list(template(messages)) == chat.prompt(messages, run.tokenizer)
        differences.append("" if equal else repr(messages))
    return report("chat templates", differences)


def compare_with_llama_cpp(run: LoadedRun, file: Path, count: int, exact: bool) -> list[str]:
    """Differences in greedy texts and chat template of a GGUF file.

    Without `exact`, it only has to generate something.
    """
    import llama_cpp
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    model = llama_cpp.Llama(
        str(file),
        n_ctx=run.config.context,
        logits_all=False,
        verbose=False,
        # A cache in f32, as ours. llama.cpp's default is f16.
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
    )
    prompts = random_prompts(run, count)
    theirs = []
    for ids in prompts:
        model.reset()
        generated: list[int] = []
        for id in model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
            if id in (END, END_OF_TEXT) or len(generated) == MAX_NEW_TOKENS:
                break
            generated.append(id)
        theirs.append(generated)
    if not exact:
        print(f"{file.name}: generates {run.tokenizer.decode(theirs[0])[:60]!r}")
        return [] if any(theirs) else ["no answer at all"]
    texts = zip(prompts, our_texts(run, prompts), theirs, strict=True)
    found = report("greedy texts of llama.cpp", [difference(run, *t, TIE_LLAMA_CPP) for t in texts])
    formatter = Jinja2ChatFormatter(
        model.metadata["tokenizer.chat_template"], "<|end|>", "<|endoftext|>"
    )

    def template(messages: list[chat.Message]) -> list[int]:
        text = formatter(messages=messages).prompt
        return model.tokenize(text.encode(), add_bos=False, special=True)

    return found + compare_templates(run, template)


def main() -> int:
    """Export a run and compare; programs that are not installed are left out."""
    parser = argparse.ArgumentParser(
        description="Compare a finetuned run with transformers and llama.cpp."
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=64)
    options = parser.parse_args()
    run = load_run(options.run)
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            hugging_face.write_folder(folder / "hf", run, "run")
            found += compare_with_transformers(run, folder / "hf", options.prompts)
        except ImportError as error:
            print(f"transformers: left out ({error})")
        try:
            for dtype in ("f32", "q8_0") if run.config.is_gpt2 else ():
                file = folder / f"{dtype}.gguf"
                gguf_file.write_file(file, run, name="run", dtype=dtype)
                found += compare_with_llama_cpp(run, file, 8, exact=dtype == "f32")
        except ImportError as error:
            print(f"llama.cpp: left out ({error})")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
