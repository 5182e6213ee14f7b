"""An OpenAI-compatible server and a chat page over the engine: python -m minigpt_jax.server

Read in this order: __main__ (the command), app (the routes), schema (what may be asked), answers (what comes back),
guard (who may ask), connection (how long they may take).
"""
