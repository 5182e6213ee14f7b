"""A server whose HTTP part fails ends with its error: it does not wait for a signal."""

import asyncio

import pytest

from minigpt_jax.server import serve
from minigpt_jax.server.app import App
from minigpt_jax.server.command import open_listener
from minigpt_jax.server.connection import DEADLINES, Server, ServerConfig
from minigpt_jax.server.guard import Guard
from minigpt_jax.server.models import ServedModel
from tests.server.serving import TIMEOUT, one_slot_engine, tiny_run


class FailingServer(Server):
    """Fails after its start."""

    async def main_loop(self) -> None:
        raise RuntimeError("the event loop failed")


def test_an_error_of_the_http_server_ends_the_process(monkeypatch: pytest.MonkeyPatch):
    run = tiny_run()
    engine = one_slot_engine(run)
    app = App([ServedModel("tiny", run, engine)]).routes()
    guard = Guard(app, host="127.0.0.1", key=None)
    # A request that never ends: the error must not wait for the end of the grace period either.
    guard.running = 1
    monkeypatch.setattr(
        serve, "make_server", lambda app: FailingServer(ServerConfig(app, DEADLINES))
    )
    with open_listener("127.0.0.1", 0) as listener:
        serving = serve.serve(
            guard, [engine], listener, grace=2 * TIMEOUT, stop_requested=lambda: False
        )
        with pytest.raises(RuntimeError, match="the event loop failed"):
            asyncio.run(asyncio.wait_for(serving, TIMEOUT))
    assert not engine.health()["alive"]
