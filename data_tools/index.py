"""The command `python -m data_tools.index FOLDER`, the former name of data_tools.verify."""

from data_tools.verify import main
from minigpt_jax.errors import exit_cleanly

if __name__ == "__main__":
    exit_cleanly(main)
