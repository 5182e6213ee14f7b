"""Estimate the memory of a training step, and choose the micro-batch that fits a device.

train.py calls these functions before it compiles anything. tests/test_memory.py compares the
estimate with what XLA reports for compiled steps.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from minigpt_jax.errors import InputError
from minigpt_jax.unrolling import layers_per_piece, one_piece_pays

if TYPE_CHECKING:
    from minigpt_jax.model_config import GPTConfig

# The largest relative error that is expected of the estimate; of tiny models, and with large chunks
# of the loss, it is up to a third too high.
MARGIN = 0.15


class StepSettings(NamedTuple):
    """What decides the memory of a training step, apart from the model and the micro-batch."""

    dtype: str
    remat: str
    # The kernel, see `attention_kernel`.
    attention: str
    # Positions whose logits are in memory at the same time.
    loss_chunk: int
    on_cpu: bool
    # As compute.unroll: see `layers_per_piece`.
    unroll: int = 0
    # Devices that share one copy of the parameters, and of each layer (mesh.fsdp, mesh.tensor).
    fsdp: int = 1
    tensor: int = 1
    # With fsdp: whether a device keeps only its part of the gradient after each micro-batch.
    scatter_each: bool = False
    # Whether the kernels of triton_kernels.py compute the loss, and rotate NanoChat's heads.
    has_kernels: bool = False
    # As optimizer.kind.
    optimizer: str = "adamw"


class Memory(NamedTuple):
    """Bytes on one device at the moment when a step needs the most memory."""

    # Parameters and moments, in f32.
    state: float
    # In f32: of a micro-batch, the sum of all where there are several, and the device's part.
    gradients: float
    # Copies of the weights in the dtype of the matmuls.
    weights: float
    # Activations stored from the forward to the backward pass.
    activations: float
    # Temporary arrays of one layer, or of one chunk of logits.
    temporaries: float

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return sum(self)


def step_memory(
    config: "GPTConfig", settings: StepSettings, *, rows: int, accumulation_steps: int
) -> Memory:
    """Estimate for a step of `accumulation_steps` micro-batches with `rows` rows on each device."""
    embed = config.embed
    tokens = rows * config.context
    tensor = settings.tensor
    vocab = config.padded_vocab / tensor
    is_bf16 = settings.dtype == "bfloat16"
    is_widened = settings.on_cpu and _cpu_widens_bf16()
    element_bytes = 2 if is_bf16 and not is_widened else 4
    padding = config.tables * (config.padded_vocab - config.vocab_size) * embed
    # Parameters of one group of devices with the same "fsdp" index, and those that a device stores.
    whole = (config.parameters + padding) / tensor
    stored = whole / settings.fsdp
    matrices = config.matrix_parameters / tensor / settings.fsdp
    tables = config.tables * vocab * embed
    piece = _layers_per_piece(config, settings)
    # In one piece on a GPU, layers need no stacks.
    is_stacked = piece < config.layers or settings.on_cpu
    # A layer stores its input and the results of both norms, which every device has whole, and
    # q, k, v, the result of attention, input and result of the activation function, which "tensor"
    # splits. ReLU squared needs no input. Where no kernel rotates q and k, XLA keeps them unrotated
    # too.
    split = 12
    if not config.is_gpt2:
        # See `kernel_choice.rotary_kernels`.
        is_power_of_2 = config.head_dim & (config.head_dim - 1) == 0
        split = 8 if is_stacked or (settings.has_kernels and is_power_of_2) else 11
    stored_per_token = {
        "none": 3 * embed + split * embed / tensor,
        "dots": 2 * embed + 7 * embed / tensor,
        "full": embed,
    }[settings.remat]
    layer = 3 * tokens * config.mlp * 4 / tensor
    if settings.attention == "xla":
        layer += 2 * config.heads * config.context * tokens * 4 / tensor
    # The logits and their gradient in the dtype of the matmuls; in f32 too where no kernel of
    # triton_kernels.py computes the loss.
    logit_bytes = 2 * element_bytes if settings.has_kernels else 8 + element_bytes
    logits = rows * min(settings.loss_chunk, config.context) * vocab * logit_bytes
    activations = tokens * config.layers * stored_per_token * element_bytes
    if 1 < piece < config.layers:
        # The backward pass copies those of a piece out of the stacks that hold all.
        activations *= 1 + piece / config.layers
    weights = _copied_weights(config, settings, whole) * element_bytes
    if not is_stacked:
        # Gradients take the place of activations and weights, as the backward pass frees these.
        activations = max(activations, 4 * (whole - tables) - weights)
    return Memory(
        state=4 * state_values(stored, matrices, settings.optimizer),
        gradients=4 * _gradients(settings, whole, stored, accumulation_steps, is_stacked),
        weights=weights,
        activations=activations,
        # The second term is the f32 gradients of the tables; each chunk adds to that of the head.
        temporaries=max(layer, logits) + 4 * tables,
    )


def state_values(parameters: float, matrices: float, optimizer: str) -> float:
    """Numbers in `parameters` and their moments: two of Adam, one of Muon's `matrices`."""
    return 3 * parameters - (matrices if optimizer == "muon" else 0)


def _layers_per_piece(config: "GPTConfig", settings: StepSettings) -> int:
    pays = one_piece_pays(settings.remat, settings.attention, settings.tensor > 1)
    return layers_per_piece(settings.unroll, config.layers, pays)


def _gradients(
    settings: StepSettings, whole: float, stored: float, steps: int, is_stacked: bool
) -> float:
    """Values of the gradients that a device holds beside the activations, in `steps` micro-batches.

    `is_stacked`: the gradients of all layers are in stacks, which exist before the first of them.
    """
    is_sum = steps > 1
    if settings.fsdp == 1:
        return whole * (is_stacked + is_sum)
    if not is_stacked and not is_sum:
        return stored
    # Each micro-batch makes a whole gradient.
    copies = 1.0
    if is_stacked and not settings.on_cpu:
        # To be scattered, it is copied in another order; with remat, where activations were.
        copies += 1 if settings.remat == "none" else 0.5
    if settings.scatter_each:
        return whole * copies + stored * (1 + is_sum)
    return whole * (copies + is_sum) + stored


def _copied_weights(config: "GPTConfig", settings: StepSettings, whole: float) -> float:
    """Values of the weights that a device holds for the matmuls, beside those that it stores."""
    if settings.fsdp > 1:
        return whole
    table = config.padded_vocab * config.embed / settings.tensor
    # With remat the copies are made again, layer by layer.
    if settings.dtype != "bfloat16" or settings.remat != "none":
        return table
    return table + config.matrix_parameters / settings.tensor


def scatters_each(
    rows: int, micro_batch: int, device_bytes: float, bytes_of: Callable[[bool, int], float]
) -> bool:
    """Whether fsdp should scatter gradients after each micro-batch and not once a step.

    Once a step is faster, but needs the memory of a whole gradient: it must leave space for the
    `micro_batch`, or if that is 0 for at least half of the rows that would fit without it.
    `bytes_of(each, n)`: the estimate for micro-batches of n rows.
    """
    once, each = (
        largest_micro_batch(rows, device_bytes, partial(bytes_of, way)) for way in (False, True)
    )
    return once < micro_batch <= each if micro_batch else 2 * once < each


def largest_micro_batch(rows: int, device_bytes: float, bytes_of: Callable[[int], float]) -> int:
    """The largest divisor of `rows` that fits `device_bytes` with a margin; 0 if one row does not.

    `bytes_of(n)`: the estimate for micro-batches of n rows.
    """
    for size in range(rows, 0, -1):
        if rows % size == 0 and bytes_of(size) * (1 + MARGIN) <= device_bytes:
            return size
    return 0


def choose_accumulation_steps(
    batch: int,
    data_parallel_size: int,
    *,
    micro_batch: int,
    device_bytes: float,
    bytes_of: Callable[[int], float],
) -> int:
    """Number A of micro-batches in a global batch of `batch` rows on `data_parallel_size` devices.

    `micro_batch`: rows that a device computes at the same time, 0 for the most that fit
    `device_bytes`. `bytes_of(n)`: the estimate for micro-batches of n rows. Raises InputError if
    the rows cannot be divided evenly (the message names the next batch that can), and if a
    micro-batch cannot fit (the message names one that does).
    """
    if batch % data_parallel_size:
        raise InputError(
            f"data.batch {batch} must be a multiple of the {data_parallel_size} devices that share "
            f"it: try {_next_multiple(batch, data_parallel_size)}"
        )
    rows = batch // data_parallel_size
    fitting = largest_micro_batch(rows, device_bytes, bytes_of)
    # If nothing fits, the error below reports what one row needs.
    size = micro_batch or fitting or 1
    if rows % size:
        raise InputError(
            f"data.batch {batch} must be a multiple of data.micro_batch {size} x devices "
            f"{data_parallel_size}: try {_next_multiple(batch, size * data_parallel_size)}"
        )
    # Refuse what the user chose only if it would not fit even if the estimate is MARGIN too high.
    if bytes_of(size) * (1 - MARGIN) > device_bytes:
        remedy = f"data.micro_batch {fitting} fits"
        if not fitting:
            remedy = (
                "not even one row fits: try compute.remat=full, more mesh.fsdp or a smaller model"
            )
        raise InputError(
            f"a micro-batch of {size} rows needs about {format_bytes(bytes_of(size))} on a device "
            f"that has {format_bytes(device_bytes)}: {remedy}"
        )
    return rows // size


def format_bytes(size: float) -> str:
    """Bytes as text: "1.5 GB", "498 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _cpu_widens_bf16() -> bool:
    """Whether XLA stores bf16 arrays in f32 on a CPU, as it did before JAX 0.11."""
    # Imported here, so that `python -m minigpt_jax.plan --help` does not wait for JAX.
    import jax

    return jax.__version_info__ < (0, 11)


def _next_multiple(value: int, unit: int) -> int:
    return -(-value // unit) * unit
