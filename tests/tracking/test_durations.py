"""Lengths of time as text: exact for a measurement, rounded for an estimate."""

from minigpt_jax.tracking.durations import format_duration, format_estimate


def test_a_duration_has_its_two_largest_units():
    texts = {
        0: "0s",
        0.9: "0s",
        59.9: "59s",
        60: "1m00s",
        725: "12m05s",
        3599: "59m59s",
        3600: "1h00m",
        27_060: "7h31m",
        86_399: "23h59m",
        273_600: "3d04h",
    }
    assert {seconds: format_duration(seconds) for seconds in texts} == texts


def test_an_estimate_has_one_unit():
    texts = {
        60: "1 minutes",
        7200: "120 minutes",
        9000: "2.5 hours",
        172_800: "48.0 hours",
        267_840: "3.1 days",
    }
    assert {seconds: format_estimate(seconds) for seconds in texts} == texts
