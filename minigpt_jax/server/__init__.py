"""An OpenAI-compatible server and a chat page for a trained model: python -m minigpt_jax.server

Read in this order: __main__ and command (the command line), serve (start and stop), app (the
routes), models (which runs there are), schema and parse (HTTP to requests), request, turns, engine
and device_batch (requests to tokens), streaming, waiting and responses (tokens to HTTP), stats and
metrics (counts), guard and connection (access and deadlines).
"""
