"""Talk to a trained model: python sample.py, the same as `minigpt sample` (minigpt_jax/talk.py)."""

from minigpt_jax.runtime.program import begin_program, exit_cleanly

if __name__ == "__main__":
    begin_program(output_needed=True)  # before the import below, which takes time

from minigpt_jax.talk import main

if __name__ == "__main__":
    exit_cleanly(main)
