"""The command that writes the report of a run: python -m minigpt_jax.report runs/pretrain"""

from minigpt_jax.runtime.program import begin_program, exit_cleanly

if __name__ == "__main__":
    begin_program()  # before the imports below, which take time

import argparse

from minigpt_jax.runtime.files import user_path
from minigpt_jax.tracking.report import write_report


def main(program: str = "python -m minigpt_jax.report") -> None:
    """Write the page of one run and print its path. `program` is what the user typed."""
    parser = argparse.ArgumentParser(
        prog=program, description="Write the page of a run, report.html in its folder."
    )
    parser.add_argument("run", type=user_path, help="folder of the run, such as runs/pretrain")
    print(write_report(parser.parse_args().run))


if __name__ == "__main__":
    exit_cleanly(main)
