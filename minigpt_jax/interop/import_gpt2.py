"""The former name of import_hf, for scripts that run or import it."""

from minigpt_jax.runtime.program import begin_program, exit_cleanly

if __name__ == "__main__":
    begin_program()  # before the import below, which takes time

from minigpt_jax.interop.import_hf import main

if __name__ == "__main__":
    exit_cleanly(main)
