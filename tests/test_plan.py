"""The micro-batch that is chosen cuts the batch evenly, fits the memory, and is the largest that does."""

from dataclasses import replace

import pytest

from minigpt_jax.errors import InputError
from minigpt_jax.model import GPTConfig
from minigpt_jax.plan import accumulation, activation_bytes

GIB = 2**30


def parts(batch: int, shards: int, micro: int = 0, row_bytes: int = GIB, device_bytes: int | None = 10 * GIB) -> int:
    return accumulation(batch, shards, micro_batch=micro, row_bytes=row_bytes, device_bytes=device_bytes)


def test_the_parts_make_up_the_batch_for_every_size():
    for shards in (1, 2, 3, 8):
        for rows in range(1, 40):
            for row_bytes in (GIB // 100, GIB, 3 * GIB, 100 * GIB):
                accum = parts(rows * shards, shards, row_bytes=row_bytes)
                micro, rest = divmod(rows, accum)
                assert rest == 0 and accum * micro * shards == rows * shards
                room = 0.4 * 10 * GIB / row_bytes
                assert micro <= room or micro == 1  # it fits, or there is no smaller one
                larger = [m for m in range(micro + 1, rows + 1) if rows % m == 0]
                assert all(m > room for m in larger)  # and it is the largest that does


def test_a_given_micro_batch_is_taken_whatever_the_memory():
    assert parts(24, 2, micro=3, row_bytes=1000 * GIB) == 4
    assert parts(24, 2, micro=12) == 1
    assert parts(512, 8, micro=16) == 4


def test_memory_that_is_not_known_counts_as_8_gib_of_activations():
    assert parts(32, 1, device_bytes=None) == parts(32, 1, device_bytes=20 * GIB) == 4


@pytest.mark.parametrize(("batch", "shards", "micro"), [(6, 4, 0), (1, 8, 0), (512, 3, 0), (24, 2, 5), (24, 2, 24), (10, 1, 4), (96, 32, 4)])
def test_parts_that_do_not_come_out_even_are_refused_with_a_size_that_would_do(batch: int, shards: int, micro: int):
    with pytest.raises(InputError, match=rf"data\.batch {batch} must be a multiple of .*: try \d+$") as refused:
        parts(batch, shards, micro=micro)
    better = int(str(refused.value).split()[-1])
    assert better > batch and parts(better, shards, micro=micro) >= 1
    unit = shards * max(micro, 1)
    assert better - batch < unit  # the next one


def test_activations_shrink_with_rematerialisation_and_with_fused_attention():
    config = GPTConfig()
    sizes = [activation_bytes(config, itemsize=2, remat=remat, fused_attention=False) for remat in ("none", "dots", "full")]
    assert sizes[0] > sizes[1] > sizes[2] > 0
    for remat, unfused in zip(("none", "dots", "full"), sizes, strict=True):
        fused = activation_bytes(config, itemsize=2, remat=remat, fused_attention=True)
        assert fused < unfused or (remat == "full" and fused == unfused)
        assert activation_bytes(config, itemsize=4, remat=remat, fused_attention=True) == 2 * fused


def test_activations_grow_as_the_paper_says():
    """Korthikanti et al. 2022, table 2: s b h (34 + 5 a s / h) bytes a layer in 16 bit."""
    for config in (GPTConfig(), GPTConfig(layers=24, heads=16, embed=1024), GPTConfig(context=256, layers=4, heads=4, embed=128)):
        s, h, a = config.context, config.embed, config.heads
        assert activation_bytes(config, itemsize=2, remat="none", fused_attention=False) == config.layers * s * h * (34 + 5 * a * s / h)
        longer = replace(config, context=2 * s)
        fused = [activation_bytes(c, itemsize=2, remat="none", fused_attention=True) for c in (config, longer)]
        assert fused[1] == 2 * fused[0]  # without the scores it is linear in the context
