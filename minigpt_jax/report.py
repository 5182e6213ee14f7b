"""The command `python -m minigpt_jax.report RUN`: write the report of a run (see tracking/report.py)."""

from minigpt_jax.errors import exit_cleanly
from minigpt_jax.tracking.report import main

if __name__ == "__main__":
    exit_cleanly(main)
