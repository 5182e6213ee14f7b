"""The shape of a model, which every checkpoint states, and the sizes that follow from it."""

import math
from dataclasses import dataclass

from minigpt_jax.errors import InputError

ARCHITECTURES = ("gpt2", "nanochat")
# The embedding has a multiple of so many rows: matrix units and meshes divide it well.
VOCAB_MULTIPLE = 128
# NanoChat's logits are LOGIT_CAP tanh(logits / LOGIT_CAP).
LOGIT_CAP = 15.0


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model. Defaults: GPT-2 124M.

    `architecture`: "gpt2" (model.py) or "nanochat" (nanochat.py, without dropout).
    """

    vocab_size: int = 50257
    context: int = 1024
    layers: int = 12
    heads: int = 12
    embed: int = 768
    dropout: float = 0.0
    architecture: str = "gpt2"

    def __post_init__(self):
        if self.architecture not in ARCHITECTURES:
            expected = " or ".join(ARCHITECTURES)
            raise InputError(f"model.architecture {self.architecture!r}: expected {expected}")
        if self.embed % self.heads:
            multiple = math.ceil(self.embed / self.heads) * self.heads
            raise InputError(
                f"model.embed {self.embed} must be a multiple of model.heads {self.heads}: "
                f"try {multiple}"
            )
        if self.is_gpt2:
            return
        if self.head_dim % 2:
            raise InputError(
                f"model.embed / model.heads = {self.head_dim} must be even for rotary positions: "
                f"try model.embed={2 * self.embed}"
            )
        if self.dropout:
            raise InputError(
                f"model.dropout {self.dropout}: NanoChat has no dropout; set it to 0, or "
                "model.architecture=gpt2"
            )

    @property
    def is_gpt2(self) -> bool:
        """Whether this is GPT-2, and not NanoChat."""
        return self.architecture == "gpt2"

    @property
    def name(self) -> str:
        """The name of the architecture in texts."""
        return "GPT-2" if self.is_gpt2 else "NanoChat"

    @property
    def logit_cap(self) -> float | None:
        """The bound of the logits, None where they have none."""
        return None if self.is_gpt2 else LOGIT_CAP

    @property
    def tables(self) -> int:
        """How many matrices [V, D] there are: NanoChat's head is not its embedding."""
        return 1 if self.is_gpt2 else 2

    @property
    def head_dim(self) -> int:
        """K = D / H."""
        return self.embed // self.heads

    @property
    def mlp(self) -> int:
        """F = 4 D, the width inside an MLP."""
        return 4 * self.embed

    @property
    def padded_vocab(self) -> int:
        """V, the rows of a table: `vocab_size` rounded up to a multiple of VOCAB_MULTIPLE."""
        return math.ceil(self.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def dimensions(self) -> dict[str, int]:
        """Sizes of the dimensions of weights that a mesh may split."""
        vocab = self.padded_vocab
        return {"embed": self.embed, "heads": self.heads, "mlp": self.mlp, "vocab": vocab}

    @property
    def matrix_parameters(self) -> int:
        """Weights in the matrices of the layers: 4 D^2 in attention and 8 D^2 in the MLP."""
        return 12 * self.layers * self.embed**2

    @property
    def parameters(self) -> int:
        """Their number, without the rows that pad the tables: 124,439,808 for GPT-2 124M."""
        matrices = self.matrix_parameters
        tables = self.tables * self.vocab_size * self.embed
        if not self.is_gpt2:
            return matrices + tables
        # Positions; biases and LayerNorms of the layers; the last LayerNorm.
        others = self.context + 13 * self.layers + 2
        return matrices + tables + others * self.embed

    @property
    def flops_per_token(self) -> int:
        """Of a forward and a backward pass (PaLM, appendix B).

        6 for each weight of a matrix (the head included), and 12 L D T for attention.
        """
        weights = self.matrix_parameters + self.vocab_size * self.embed
        return 6 * weights + 12 * self.layers * self.embed * self.context
