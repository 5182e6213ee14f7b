"""Evaluations that others publish numbers of too: python -m minigpt_jax.evals.

Read scoring (log probabilities of given continuations) first: hellaswag, harness (the adapter to
lm-evaluation-harness) and answers (of a finetuned model) call it. bits measures a token stream.
__main__ parses the command line, commands does what it asks for.
"""

# Rows that one device computes at a time. They stand here because --help prints them, and this
# file does not import JAX.
SCORING_BATCH = 16
GENERATION_BATCH = 64
STREAM_BATCH = 8
