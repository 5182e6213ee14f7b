"""Damage to a checkpoint: a few of what the campaign makes hundreds of."""

import pytest

from tests.faults.scenarios import Place, damage_checkpoint


@pytest.mark.parametrize("seed", range(1000, 1008))
def test_damage_to_a_checkpoint_is_never_silent(place: Place, seed: int):
    outcome = damage_checkpoint(place, seed)
    assert not (outcome.problems or outcome.silent), outcome.line()
