"""Decide how many layers are compiled as one piece: it changes speed, memory and compile time."""

# The most layers that are compiled as one piece unless the config says so: 48 take a minute.
MAX_UNROLL = 48


def layers_per_piece(unroll: int, layers: int, pays: bool) -> int:
    """How many of `layers` are compiled as one piece: `unroll`, or for 0 the best number.

    `pays`: see `one_piece_pays`. Then up to MAX_UNROLL layers are one piece, because their weights
    and gradients are not copied into stacks; otherwise 1, which compiles fastest. Several pieces
    move more bytes and need more memory than single layers.
    """
    return unroll or (layers if pays and layers <= MAX_UNROLL else 1)


def one_piece_pays(remat: str, kernel: str, is_split: bool) -> bool:
    """Whether all layers should be one piece: with cuDNN's attention, where a GPU computes them.

    With `remat` XLA would keep what should be computed again. Where "tensor" splits the layers, one
    piece needs a quarter more memory and three times as long to compile (docs/log.md).
    """
    return remat == "none" and kernel == "cudnn" and not is_split
