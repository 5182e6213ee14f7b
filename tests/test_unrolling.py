"""How many layers are compiled as one piece."""

import pytest

from configs.pretrain import SIZES
from minigpt_jax.unrolling import MAX_UNROLL, layers_per_piece, one_piece_pays


def test_a_gpu_compiles_the_layers_of_every_size_as_one_piece_and_those_of_deeper_models_singly():
    layers = [size["layers"] for size in SIZES.values()]
    assert [layers_per_piece(0, n, pays=True) for n in layers] == layers
    # Two pieces of half the layers would need more memory than either.
    assert layers_per_piece(0, MAX_UNROLL + 2, pays=True) == 1
    assert {layers_per_piece(0, n, pays=False) for n in layers} == {1}
    assert layers_per_piece(12, 48, pays=True) == 12


@pytest.mark.parametrize(
    ("remat", "kernel", "is_split", "pays"),
    [
        ("none", "cudnn", False, True),
        ("dots", "cudnn", False, False),
        ("full", "cudnn", False, False),
        ("none", "xla", False, False),
        ("none", "cpu", False, False),
        ("none", "cudnn", True, False),
    ],
)
def test_one_piece_pays_with_cudnn_alone(remat: str, kernel: str, is_split: bool, pays: bool):
    assert one_piece_pays(remat, kernel, is_split) == pays
