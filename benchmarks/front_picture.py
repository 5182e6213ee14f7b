"""Make the picture at the top of the README: the chat page beside the loss of the runs behind it.

    python -m benchmarks.front_picture --runs runs --out docs/images

Needs the two runs of `make demo`, playwright and Chromium. Writes front_light.png and
front_dark.png.
"""

import argparse
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("agg")
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np

from minigpt_jax.runtime.files import read_jsonl, user_path

Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
QUESTIONS = ("What does len do?", "What does os.path.join do?")
WIDTH, HEIGHT = 620, 640
INK = {"light": "#1c2024", "dark": "#e4e7ea"}
PAPER = {"light": "#ffffff", "dark": "#15181b"}


def main() -> None:
    """Write both pictures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.front_picture", description=__doc__)
    parser.add_argument("--runs", type=user_path, default=Path("runs"))
    parser.add_argument("--out", type=user_path, default=Path("docs/images"))
    options = parser.parse_args()
    with serving(options.runs / "quickstart_modern_finetune") as address:
        for scheme in SCHEMES:
            page = screenshot(address, scheme)
            compose(page, options.runs, scheme, options.out / f"front_{scheme}.png")


@contextmanager
def serving(run: Path) -> Iterator[str]:
    """The address of a server of `run`."""
    command = [sys.executable, "-m", "minigpt_jax.server", "--run", str(run), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        for line in process.stderr:
            if match := re.search(r"http://[\w.]+:\d+", line):
                yield match[0]
                break
    finally:
        process.terminate()
        process.wait()


def screenshot(address: str, scheme: Scheme) -> np.ndarray:
    """[2 HEIGHT, 2 WIDTH, 4] pixels of the page after QUESTIONS were asked."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--headless", "--no-sandbox"]
        )
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT},
            device_scale_factor=2,
            color_scheme=scheme,
        )
        # So that the picture is the same every time.
        page.add_init_script("localStorage['minigpt.settings'] = '{\"temperature\": 0}'")
        page.goto(address)
        for number, question in enumerate(QUESTIONS, 1):
            page.fill("#message", question)
            page.click("#send")
            page.wait_for_selector(f".message.assistant >> nth={number - 1}")
            page.wait_for_selector("#send:not([hidden])")
        pixels = page.screenshot()
        browser.close()
    return matplotlib.image.imread(io.BytesIO(pixels))


def compose(page: np.ndarray, runs: Path, scheme: Scheme, out: Path) -> None:
    """Draw the page on the left and the loss of both runs on the right."""
    ink = INK[scheme]
    style: dict[Any, Any] = {
        name: ink
        for name in (
            "text.color",
            "axes.labelcolor",
            "axes.edgecolor",
            "xtick.color",
            "ytick.color",
        )
    }
    style["font.size"] = 11
    with plt.rc_context(style):
        figure = plt.figure(figsize=(12.4, 6.4), dpi=100, facecolor=PAPER[scheme])
        left = figure.add_axes((0, 0, 0.5, 1))
        left.imshow(page)
        left.axis("off")
        for bottom, name, title in (
            (0.58, "quickstart_modern", "pretraining"),
            (0.10, "quickstart_modern_finetune", "finetuning"),
        ):
            draw_loss(figure.add_axes((0.57, bottom, 0.40, 0.34)), runs / name, title, ink)
        figure.savefig(out, facecolor=PAPER[scheme])
        plt.close(figure)


def draw_loss(axes, run: Path, title: str, ink: str) -> None:
    """The loss of each step, and the validation loss where it was measured."""
    steps = read_jsonl(run / "metrics.jsonl")
    evaluations = read_jsonl(run / "evaluations.jsonl")
    axes.plot([r["step"] for r in steps], [r["loss"] for r in steps], color="#3b82f6", linewidth=1)
    axes.plot(
        [r["step"] for r in evaluations],
        [r["validation_loss"] for r in evaluations],
        "o-",
        color="#ea7317",
    )
    axes.legend(["training", "validation"], frameon=False)
    axes.set_title(f"{title}: loss per token", loc="left", fontsize=12)
    axes.set_xlabel("step")
    axes.set_facecolor("none")
    axes.grid(color=ink, alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
