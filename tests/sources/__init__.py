"""Tests of minigpt_jax.sources."""
