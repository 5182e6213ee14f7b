"""Write a run in Hugging Face's format: transformers, vLLM and everything else that loads GPT-2 can use it.

    python -m minigpt_jax.interop.export_hf --run runs/finetune --out exported/ [--push user/name]

Weights (safetensors, f32), config, tokenizer, chat template, stop tokens and a model card with the facts of the run. The
folder appears whole or not at all.
"""

import argparse
import json
import tempfile
from pathlib import Path

import jax
from safetensors.numpy import save_file

from minigpt_jax.checkpoint import load_params
from minigpt_jax.errors import InputError, RunError, exit_cleanly
from minigpt_jax.interop import gpt2, vocabulary
from minigpt_jax.model import GPTConfig
from minigpt_jax.tokenizer import CHAT_VOCAB, END_OF_TEXT

GENERATION = {"do_sample": True, "temperature": 0.8, "top_p": 0.95}  # sample.py's own defaults


def main() -> int:
    """Write the folder; with --push, upload it."""
    parser = argparse.ArgumentParser(
        prog="python -m minigpt_jax.interop.export_hf",
        description="Write a run in Hugging Face's format.",
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write; must not exist or be empty"
    )
    parser.add_argument(
        "--push",
        metavar="USER/NAME",
        help="upload the folder to the hub, for all to see (log in first: hf auth login)",
    )
    options = parser.parse_args()
    out = options.out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"{options.out}: is {'not empty' if out.is_dir() else 'a file'}; choose another folder"
        )
    config = export(options.run, out)
    print(
        f"{options.out}: {config.parameters:,} parameters; in Python: AutoModelForCausalLM.from_pretrained({str(options.out)!r})"
    )
    if options.push:
        print(f"uploaded: {push(out, options.push)}")
    return 0


def export(run: Path, out: Path) -> GPTConfig:
    """Write the newest checkpoint of `run` to the folder `out`. Raises InputError where there is none."""
    params, config, meta = load_params(run)
    stop = gpt2.stop_tokens(config)
    ids = {
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": stop if len(stop) > 1 else stop[0],
        "pad_token_id": END_OF_TEXT,
    }
    generation = (
        GENERATION | ids | {"max_length": config.context}
    )  # there are no positions beyond it
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as place:
        unfinished = Path(place, "whole")
        unfinished.mkdir()
        write(unfinished, run, params, config, meta, generation)
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    return config


def write(
    folder: Path, run: Path, params: dict, config: GPTConfig, meta: dict, generation: dict
) -> None:
    """All files of an export, into an empty folder."""
    for name, content in (
        ("config.json", gpt2.to_config(config)),
        ("generation_config.json", generation),
        ("tokenizer.json", vocabulary.tokenizer_json(config.vocab_size)),
        (
            "tokenizer_config.json",
            vocabulary.tokenizer_config(
                config.vocab_size, config.context, gpt2.stop_tokens(config)[0]
            ),
        ),
    ):
        (folder / name).write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    (folder / "README.md").write_text(model_card(run, config, meta), encoding="utf-8")
    weights = folder / "model.safetensors"
    save_file(gpt2.to_gpt2(jax.device_get(params), config), weights, metadata={"format": "pt"})
    weights.chmod((folder / "config.json").stat().st_mode)  # safetensors lets nobody else read it


def model_card(run: Path, config: GPTConfig, meta: dict) -> str:
    """README.md of the model: what it is, how it was trained, what it is not."""
    chats, name, asked = config.vocab_size >= CHAT_VOCAB, run.resolve().name, meta["config"]
    facts = [
        (
            "architecture",
            f"GPT-2: {config.layers} layers, {config.heads} heads, width {config.embed}, context {config.context}",
        ),
        ("parameters", f"{config.parameters:,}"),
    ]
    if asked:
        facts += [
            (
                "began with",
                Path(asked["init_from"]).name if asked["init_from"] else "fresh weights",
            ),
            ("data", Path(asked["data"]["folder"]).name),
            ("steps", f"{meta['step']:,} of {asked['data']['batch']} x {config.context} tokens"),
            ("learning rate", f"{asked['schedule']['peak']:g}, {asked['schedule']['kind']}"),
        ]
    if meta["validation_loss"] is not None:
        facts.append(
            (
                "validation loss",
                f"{meta['validation_loss']:.4f} nats per {'supervised ' * chats}token",
            )
        )
    table = "\n".join(f"| {label} | {value} |" for label, value in facts)
    origin = (
        f"trained with miniGPT-JAX, run `{name}`"
        if asked
        else f"{meta['data']}, not trained further"
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2, minigpt-jax]
---

# {name}

A {"conversational" if chats else "language"} model: {origin}.

| | |
|---|---|
{table}

{_CHAT_USE if chats else _BASE_USE}
## Limits

A model of this size makes facts up, repeats itself and has no judgement. Whatever its training text says, it may say.
Its licence must suit what it began with and was trained on: add it above (`license:`) before you publish.
"""


_BASE_USE = """\
It continues text: documents began with `<|endoftext|>` in training, so put that first.
"""

_CHAT_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**ids)[0]))
```

**Text from strangers.** Turns are marked by `<|user|>`, `<|assistant|>`, `<|system|>` and `<|end|>`, and a conversation begins with
`<|endoftext|>`. Hugging Face's tokenizer reads these strings as markers wherever they stand, also inside a message, so a user could
write turns of others. Remove them from messages before you apply the template. (miniGPT-JAX itself treats them as plain text there.)
"""


def push(folder: Path, name: str) -> str:
    """Upload `folder` as the model `name` of the hub; its address. Raises RunError when the hub refuses."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        name = api.create_repo(name, exist_ok=True).repo_id
        return str(
            api.upload_folder(
                folder_path=folder, repo_id=name, commit_message="Upload from miniGPT-JAX"
            )
        )
    except Exception as error:  # its own, and those of whichever HTTP library it uses
        reason = next(
            (line for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise RunError(
            f"{name}: the hub did not take it ({reason}). {folder} is complete; upload it later with: hf upload {name} {folder}"
        ) from None


if __name__ == "__main__":
    exit_cleanly(main)
