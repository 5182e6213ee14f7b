"""Our weights in transformers' GPT-2, so that benchmarks and parity tests compare the same model; needs torch."""

from minigpt_jax.interop.gpt2 import to_gpt2
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
    state = {name: torch.tensor(array) for name, array in to_gpt2(params, config).items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    model.to(state["lm_head.weight"].dtype).load_state_dict(state, strict=True)
    return model
