"""What a model is worth, in numbers that others publish too: python -m minigpt_jax.evals.

Read scoring (probabilities of given continuations) first: hellaswag, harness (lm-evaluation-harness) and answers (of a
finetuned model) ask it. bits measures a whole text.
"""
