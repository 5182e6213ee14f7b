"""The command `python -m data_tools.index FOLDER`, the former name of data_tools.verify."""

from minigpt_jax.runtime.program import begin_program, exit_cleanly

if __name__ == "__main__":
    begin_program()  # before the imports below, which take time

from data_tools.verify import main

if __name__ == "__main__":
    exit_cleanly(main)
