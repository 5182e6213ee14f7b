"""The model card of an exported run: README.md on the hub."""

from pathlib import Path
from string import Template

from minigpt_jax.interop.hub import is_pinned
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.mixture import shares_of

COMPLETION_USAGE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
ids = tokenizer("<|endoftext|>Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=$max_new_tokens)[0]))
```

It continues text. In training, every document began with `<|endoftext|>`, so put that first.
"""

# A backslash continues a line.
CHAT_USAGE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
messages = [{"role": "user", "content": "Hello"}]
ids = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
print(tokenizer.decode(model.generate(**ids, max_new_tokens=$max_new_tokens)[0]))
```

**Untrusted text.** Turns are marked by `<|user|>`, `<|assistant|>`, `<|system|>` and `<|end|>`, \
and a conversation begins with `<|endoftext|>`. Hugging Face's tokenizer reads these strings as \
special tokens everywhere, also inside a message, so a user could write turns of other roles. \
Remove them from messages before you apply the template. (miniGPT-JAX itself treats them as plain \
text there.)
"""

ROOM = """\
Always give `max_new_tokens`: transformers' own limits suit other models, and $beyond where prompt \
and answer together are longer than the context of $context tokens.
"""

# transformers from this version on has NanoChatForCausalLM.
NEEDS = """
It needs transformers 5 or later.
"""

LIMITS = """\
## Limits

A model of this size makes facts up, repeats itself and has no judgement. It can repeat whatever \
its training text contains. Its licence must suit what it began with and was trained on: add it \
above (`license:`) before you publish.
"""


def model_card(run: LoadedRun, name: str) -> str:
    """The text of README.md: what the model is, how it was trained, how to use it, its limits."""
    if run.meta.get("config"):
        origin = f"trained with miniGPT-JAX, run `{name}`"
    else:
        origin = f"{run.meta.get('data', 'weights from elsewhere')}, not trained further"
    table = "\n".join(f"| {label} | {value} |" for label, value in _facts(run))
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [{run.config.architecture}, minigpt-jax]
---

# {name}

A {"conversational" if run.can_chat else "language"} model: {origin}.

| | |
|---|---|
{table}

{_usage(run)}
{LIMITS}"""


def _usage(run: LoadedRun) -> str:
    """How to use the model, with numbers that its context has room for."""
    context = run.config.context
    usage = CHAT_USAGE if run.can_chat else COMPLETION_USAGE
    if run.config.is_gpt2:
        beyond, needs = "it fails", ""
    else:
        beyond, needs = "the text gets worse", NEEDS
    return Template(f"{usage}\n{ROOM}{needs}").substitute(
        context=context, max_new_tokens=max(min(256, context // 2), 1), beyond=beyond
    )


def _data(folder: str, mixture: str) -> str:
    shares = shares_of(folder, mixture)
    if len(shares) == 1:
        return Path(*shares).name
    total = sum(shares.values())
    return ", ".join(f"{share / total:.3g} {Path(name).name}" for name, share in shares.items())


def _facts(run: LoadedRun) -> list[tuple[str, str]]:
    """The rows of the table. Folders appear by name only, so that no path is published."""
    config = run.config
    architecture = (
        f"{config.name}: {config.layers} layers, {config.heads} heads, width {config.embed}, "
        f"context {config.context}"
    )
    facts = [("architecture", architecture), ("parameters", f"{config.parameters:,}")]
    if training := run.meta.get("config"):
        batch, schedule = training["data"]["batch"], training["schedule"]
        # Versions before that field had AdamW alone.
        kind = training["optimizer"].get("kind")
        facts += [
            ("began with", _origin(training["init_from"])),
            ("data", _data(training["data"]["folder"], training["data"].get("mixture", ""))),
            ("steps", f"{run.meta['step']:,} of {batch} x {config.context} tokens"),
            ("optimizer", "Muon and Adam" if kind == "muon" else "AdamW"),
            ("learning rate", f"{schedule['peak']:g}, {schedule['kind']}"),
        ]
    loss = run.meta.get("validation_loss")
    if loss is not None:
        unit = "nats per supervised token" if run.can_chat else "nats per token"
        facts.append(("validation loss", f"{loss:.4f} {unit}"))
    return facts


def _origin(init_from: str) -> str:
    """What a run began with: a model of the hub with its commit, or the name of another run."""
    if is_pinned(init_from):
        return init_from
    return Path(init_from).name if init_from else "fresh weights"
