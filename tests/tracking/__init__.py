"""Tests of minigpt_jax/tracking."""
