"""The last act of `make demo`: put questions to the finetuned quickstart model and say plainly what its answers are worth.

python -m minigpt_jax.demo
"""

import argparse
import json
from pathlib import Path

from minigpt_jax import chat, load_run
from minigpt_jax.errors import InputError, exit_cleanly
from minigpt_jax.generate import Answer, Generator
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.sampling import sampling_params

ASKED, TOKENS = 50, 60


def main() -> int:
    """Count answers that end by themselves, show losses before and after, and a short conversation."""
    parser = argparse.ArgumentParser(description="Question the finetuned quickstart model.")
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart_finetune"))
    parser.add_argument("--questions", type=Path, default=Path("data/python_chat/questions.json"))
    options = parser.parse_args()
    if not options.questions.is_file():
        raise InputError(f"{options.questions}: missing; `make demo` writes it")
    pairs = json.loads(options.questions.read_text())

    evaluations = read_jsonl(options.run / "evaluations.jsonl")
    print(f"\nLoss per supervised token{'before':>18}{'after':>8}")
    for label, key in (
        ("functions it was trained on", "train_loss"),
        ("functions it never saw", "validation_loss"),
    ):
        print(f"  {label:<32}{evaluations[0][key]:>9.3f}{evaluations[-1][key]:>8.3f}")

    trained, unseen = (
        ask(options.run, [p["prompt"] for p in pairs[split][:ASKED]]) for split in ("train", "val")
    )
    for label, answers in (("trained", trained), ("unseen", unseen)):
        ended = sum(answer.reason == "stop" for answer in answers)
        different = len({answer.text for answer in answers})
        print(
            f"{len(answers)} {label} questions, answered greedily: {ended} answers end by themselves within {TOKENS} tokens, {different} differ"
        )

    print("\nA short conversation:")
    for pair, answer in (
        list(zip(pairs["train"], trained, strict=False))[:3]
        + list(zip(pairs["val"], unseen, strict=False))[:1]
    ):
        print(
            f"  > {pair['prompt']}\n    {answer.text}\n    (the documentation: {pair['completion']})"
        )
    print(
        f"""
What you see is a model of a few million parameters after minutes on a CPU. It has learned to write sentences that sound
like documentation, to answer in one sentence and to stop. It repeats what it was trained on, mixes functions up, and makes
up answers to everything else: it knows nothing. The same two commands with configs/pretrain.py and configs/finetune.py
train the real thing.

Go on chatting:   .venv/bin/python sample.py
In a browser:     .venv/bin/python -m minigpt_jax.server
The two reports:  {options.run.parent / "quickstart" / "report.html"}
                  {options.run / "report.html"}"""
    )
    return 0


def ask(run: Path, prompts: list[str]) -> list[Answer]:
    """The greedy answers of a finetuned run to `prompts`."""
    params, config, tokenizer = load_run(run)
    writer = Generator(params, config, tokenizer, rows=len(prompts))
    ids = [chat.prompt([{"role": "user", "content": prompt}], tokenizer) for prompt in prompts]
    for _ in writer.stream(
        ids, sampling_params(len(ids), config, temperature=0.0), max_new_tokens=TOKENS
    ):
        pass
    return writer.answers


if __name__ == "__main__":
    exit_cleanly(main)
