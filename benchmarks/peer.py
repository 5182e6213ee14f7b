"""Our weights in transformers' GPT-2, so that benchmarks and parity tests compare the same model; needs torch."""

import jax
import numpy as np

from minigpt_jax.model import GPTConfig


def transformers_gpt2(config: GPTConfig, params: dict):
    """A `GPT2LMHeadModel` in the dtype of `params`, without dropout, that computes what our model computes."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.context, n_embd=config.embed, n_layer=config.layers, n_head=config.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(shape)
    host = jax.tree.map(np.asarray, params)
    tensors = {"wte.weight": host["wte"][: config.vocab_size], "wpe.weight": host["wpe"], **_pair("ln_f", host["ln_f"], "scale")}
    for i in range(config.layers):
        layer = jax.tree.map(lambda a, i=i: a[i], host["layers"])
        tensors |= _pair(f"h.{i}.ln_1", layer["ln_1"], "scale") | _pair(f"h.{i}.ln_2", layer["ln_2"], "scale")
        for name, theirs, inputs in (("qkv", "c_attn", 1), ("out", "c_proj", 2)):
            tensors |= _pair(f"h.{i}.attn.{theirs}", layer["attention"][name], "kernel", inputs)
        tensors |= _pair(f"h.{i}.mlp.c_fc", layer["mlp"]["up"], "kernel") | _pair(f"h.{i}.mlp.c_proj", layer["mlp"]["down"], "kernel")
    state = {f"transformer.{name}": torch.tensor(array) for name, array in tensors.items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    model.to(state["lm_head.weight"].dtype).load_state_dict(state, strict=True)
    return model


def _pair(name: str, ours: dict, weight: str, inputs: int = 1) -> dict:
    """Weight and bias of one of our layers under transformers' names, as matrices [in, out]."""
    array = ours[weight]
    if weight == "kernel":
        array = array.reshape(int(np.prod(array.shape[:inputs])), -1)
    return {f"{name}.weight": array, f"{name}.bias": ours["bias"].reshape(-1)}
