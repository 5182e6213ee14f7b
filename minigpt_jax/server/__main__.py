"""Serve a trained model: python -m minigpt_jax.server

Takes the newest run and answers http://127.0.0.1:8000: a chat page, and an API that OpenAI's clients speak.
"""

from minigpt_jax.errors import InputError, exit_cleanly


def main() -> int:
    """Serve, if what serving needs is installed."""
    try:
        from minigpt_jax.server import command
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise InputError(
            f"the server needs {error.name}, which is not installed: pip install starlette uvicorn"
        ) from None
    return command.main()


if __name__ == "__main__":
    exit_cleanly(main)
