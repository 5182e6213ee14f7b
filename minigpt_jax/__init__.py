"""miniGPT-JAX: train a GPT from raw web text to a chat assistant, in JAX."""
