"""Tests of minigpt_jax/runtime."""
