"""Wrong models: each is our package with one mistake, which a check of tests/parity.py must see."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """The text `old` of a file of the package becomes `new`, and `check` must fail."""

    what: str
    file: str
    old: str
    new: str
    check: str
    # How often `old` occurs in the file.
    times: int = 1


PRE_NORM = """\
        x, y = LayerNorm(self.dtype, name="ln_1")(x)
        y, cache = attention(y, cache, positions, segments)
        x = x + drop(self, y, self.config.dropout, dropout_rows)
        x, y = LayerNorm(self.dtype, name="ln_2")(x)
        x = x + drop(self, mlp(y), self.config.dropout, dropout_rows)
"""
POST_NORM = """\
        y, cache = attention(x, cache, positions, segments)
        _, x = LayerNorm(self.dtype, name="ln_1")(x + y)
        _, x = LayerNorm(self.dtype, name="ln_2")(x + mlp(x))
"""
SUMS = """\
        total = _loss_sum(vocab_size, cap, chunk, hidden, table, targets, weights)
        weight = weights.sum(dtype=sum_dtype)"""
OUT_OF_ATTENTION = 'Linear(shape, axes, 2, 0.0, self.dtype, use_bias=False, name="out")'
TURNED = "first * cos + second * sin, second * cos - first * sin"
HEAD = 'params["lm_head" if "lm_head" in params else "wte"]'
BLOCK_OF_QUERIES = "block_mask = jnp.tri(end - start, end, start, dtype=bool)"

MUTANTS = [
    Mutant(
        "erf GELU",
        "functional",
        "approximate=True",
        "approximate=False",
        "outputs",
        times=2,
    ),
    Mutant(
        "epsilon of LayerNorm",
        "functional",
        "LAYER_NORM_EPS = 1e-5",
        "LAYER_NORM_EPS = 1e-6",
        "outputs",
    ),
    Mutant(
        "no 1 / sqrt(K)",
        "attention",
        "scores = scores / math.sqrt(q.shape[-1])",
        "",
        "outputs",
    ),
    Mutant(
        "post-LayerNorm",
        "model",
        PRE_NORM,
        POST_NORM,
        "outputs",
    ),
    Mutant(
        "no last LayerNorm",
        "model",
        '_, y = LayerNorm(self.dtype, name="ln_f")(x)',
        "y = x",
        "outputs",
    ),
    Mutant(
        "no bias",
        "layers",
        "y = y + jnp.broadcast_to(bias, y.shape)",
        "",
        "outputs",
    ),
    Mutant(
        "positions from 1",
        "model",
        "jnp.arange(tokens.shape[1])",
        "jnp.arange(1, tokens.shape[1] + 1)",
        "outputs",
    ),
    Mutant(
        "each token attends to the next",
        "attention",
        BLOCK_OF_QUERIES + "[None]",
        BLOCK_OF_QUERIES.replace("start, dtype", "start + 1, dtype") + "[None]",
        "outputs",
    ),
    Mutant(
        "each token attends to the next, on a CPU",
        "attention",
        BLOCK_OF_QUERIES + "\n",
        BLOCK_OF_QUERIES.replace("start, dtype", "start + 1, dtype") + "\n",
        "outputs on a CPU",
    ),
    Mutant(
        "no gradient of the softmax's sum, on a CPU",
        "attention",
        "(weights * (d_weights - delta[:, start:]))",
        "(weights * d_weights)",
        "gradients on a CPU",
    ),
    Mutant(
        "no gradient of the variance of LayerNorm",
        "functional",
        "- along_mean - normal * along_normal)",
        "- along_mean)",
        "gradients",
    ),
    Mutant(
        "no gradient past LayerNorm",
        "functional",
        "d_x = d_x + inverse_std",
        "d_x = inverse_std",
        "gradients",
    ),
    Mutant(
        "mean over all tokens",
        "loss",
        SUMS,
        SUMS.replace("weights", "jnp.ones_like(weights)"),
        "outputs",
    ),
    Mutant(
        "gradient of all tokens",
        "loss",
        "- is_target) * weights[..., None]",
        "- is_target)",
        "gradients",
    ),
    Mutant(
        "mean of means",
        "loss",
        "return total, weight ",
        "return total / weight, jnp.ones((), sum_dtype) ",
        "accumulation",
    ),
    Mutant(
        "no gradient through the output head",
        "step",
        "        output_head(params),\n        targets,",
        "        jax.lax.stop_gradient(output_head(params)),\n        targets,",
        "training",
    ),
    Mutant(
        "weight decay of biases and scales",
        "optim",
        "weight_decay, mask=decay_mask",
        "weight_decay",
        "training",
    ),
    Mutant(
        "b2 of Adam",
        "optim",
        "b2: float = 0.95",
        "b2: float = 0.999",
        "training",
    ),
    Mutant(
        "warm-up from 0",
        "optim",
        "peak * (step + 1)",
        "peak * step",
        "schedule",
    ),
    Mutant(
        "residual layers start as large as the others",
        "model",
        "std = INIT_STD / math.sqrt(2 * c.layers)",
        "std = INIT_STD",
        "start",
        times=2,
    ),
    Mutant(
        "rotary angles with the usual sign",
        "functional",
        TURNED,
        "first * cos - second * sin, second * cos + first * sin",
        "NanoChat outputs",
    ),
    Mutant(
        "rotary pairs of neighbours",
        "functional",
        "first, second = jnp.split(x, 2, axis=-1)",
        "first, second = x[..., ::2], x[..., 1::2]",
        "NanoChat outputs",
    ),
    Mutant(
        "rotary base",
        "nanochat",
        "ROTARY_BASE = 10_000",
        "ROTARY_BASE = 500_000",
        "NanoChat outputs",
    ),
    Mutant(
        "half of each head is turned",
        "nanochat",
        "* frequencies[",
        "* jnp.where(jnp.arange(head_dim // 2) < head_dim // 4, frequencies, 0)[",
        "NanoChat outputs",
    ),
    Mutant(
        "values are turned and normalised too",
        "functional",
        "rotate_and_normalise(k, cos, sin), v",
        "rotate_and_normalise(k, cos, sin), rotate_and_normalise(v, cos, sin)",
        "NanoChat outputs",
    ),
    Mutant(
        "no gradient past RMSNorm",
        "functional",
        "((d_x + _rms_norm_gradient(",
        "((_rms_norm_gradient(",
        "NanoChat gradients",
    ),
    Mutant(
        "queries and keys are not normalised",
        "functional",
        "(_rotate(wide, cos, sin) * inverse)",
        "_rotate(wide, cos, sin)",
        "NanoChat outputs",
    ),
    Mutant(
        "no norm after the embedding",
        "nanochat",
        "residual stream.\n        _, x = rms_norm(x)",
        "residual stream.",
        "NanoChat outputs",
    ),
    Mutant(
        "epsilon of RMSNorm",
        "functional",
        "RMS_NORM_EPS = 1e-6",
        "RMS_NORM_EPS = 1e-5",
        "NanoChat outputs on a CPU",
    ),
    Mutant(
        "ReLU without its square",
        "functional",
        "jnp.square(jnp.maximum(x, 0))",
        "jnp.maximum(x, 0)",
        "NanoChat outputs",
    ),
    Mutant(
        "no cap of the logits",
        "model_config",
        "None if self.is_gpt2 else LOGIT_CAP",
        "None",
        "NanoChat outputs",
    ),
    Mutant(
        "the head is the embedding",
        "architectures",
        HEAD,
        'params["wte"]',
        "NanoChat outputs",
    ),
    Mutant(
        "no gradient of the cap",
        "loss",
        "d_scores *= 1 - jnp.square(capped / cap)",
        "pass",
        "NanoChat gradients",
    ),
    Mutant(
        "no gradient of the mean square",
        "functional",
        "inverse * (d_y - y * (d_y * y).mean(-1, keepdims=True))",
        "inverse * d_y",
        "NanoChat gradients",
    ),
    Mutant(
        "the gradient of queries and keys is turned the wrong way",
        "functional",
        "_rotate(d_rotated, cos, -sin)",
        "_rotate(d_rotated, cos, sin)",
        "NanoChat gradients on a CPU",
    ),
    Mutant(
        "a bias",
        "nanochat",
        OUT_OF_ATTENTION,
        OUT_OF_ATTENTION.replace("False", "True"),
        "NanoChat start",
    ),
    Mutant(
        "attention starts with an effect",
        "nanochat",
        OUT_OF_ATTENTION,
        OUT_OF_ATTENTION.replace("0.0", "std"),
        "NanoChat start",
    ),
    Mutant(
        "the head starts with an effect",
        "nanochat",
        '"lm_head", nn.initializers.zeros,',
        '"lm_head", init,',
        "NanoChat start",
    ),
]
