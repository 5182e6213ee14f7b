"""transformers' GPT-2 in the shape of our model, for benchmarks and parity tests; needs torch."""

from minigpt_jax.interop.gpt2 import to_gpt2
from minigpt_jax.model_config import GPTConfig


def fresh_gpt2(config: GPTConfig):
    """A `GPT2LMHeadModel` with random weights (the same each time), SDPA and no dropout."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.context,
        n_embd=config.embed,
        n_layer=config.layers,
        n_head=config.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    shape._attn_implementation = "sdpa"
    torch.manual_seed(0)
    return GPT2LMHeadModel(shape)


def gpt2_with_weights(config: GPTConfig, params: dict):
    """A `GPT2LMHeadModel` that computes what our model computes from `params`, in their dtype."""
    import torch

    model = fresh_gpt2(config)
    state = {name: torch.tensor(array) for name, array in to_gpt2(params, config).items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    model.to(state["lm_head.weight"].dtype).load_state_dict(state, strict=True)
    return model
