"""The image has what it needs and no secret, and the recipes for Kubernetes agree with it.

Its steps run in the campaign, because they install all that the product runs on.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from minigpt_jax.__main__ import WORDS
from minigpt_jax.errors import InputError
from minigpt_jax.server.command import parse_options
from tests import image
from tests.harness import ROOT, TINY, copy_run, tracked_files
from tests.test_readme import START_SECONDS, run_server

KEY = "a long random key"
IMAGES = {"minigpt-jax:cpu", "minigpt-jax:cuda"}


def pods() -> dict[str, dict]:
    """The pods of all recipes for Kubernetes, by the file and the name of what starts them."""
    texts = {path.name: path.read_text() for path in (ROOT / "examples").glob("*.yaml")}
    running = (ROOT / "docs" / "running.md").read_text()
    (texts["running.md"],) = re.findall(r"```yaml\n(.*?)```", running, re.DOTALL)
    return {
        f"{file}-{thing['metadata']['name']}": thing["spec"]["template"]["spec"]
        for file, text in texts.items()
        for thing in yaml.safe_load_all(text)
        if "template" in thing["spec"]
    }


def serve_options(words: list[str], monkeypatch: pytest.MonkeyPatch):
    """The options of a command line that starts the server."""
    assert words[0] == "minigpt" and words[1] == "serve" and words[1] in WORDS
    monkeypatch.setenv("MINIGPT_API_KEY", KEY)
    return parse_options(words[2:])


def test_the_image_holds_tracked_files_and_no_secret():
    tracked = tracked_files()
    for source in image.copied():
        assert any(name == source or name.startswith(f"{source}/") for name in tracked), source
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    assert [line[1:] for line in lines if line.startswith("!")] == sorted(image.copied())
    assert not re.search("key|token|secret|password", " ".join(image.variables()), re.IGNORECASE)
    # A plain name of a base image, and no address.
    assert re.fullmatch(r"python:3\.\d+-slim", image.only("FROM").rest)
    assert "://" not in (ROOT / "Dockerfile").read_text()


def test_nothing_runs_as_root():
    words = [instruction.word for instruction in image.instructions()]
    last_run = max(number for number, word in enumerate(words) if word == "RUN")
    assert words.index("USER") > last_run
    user, group = image.only("USER").rest.split(":")
    assert int(user) > 0 and int(group) > 0
    (made,) = (i.rest for i in image.instructions() if i.rest.startswith(image.AS_ROOT))
    assert f"--uid {user} " in made


@pytest.mark.parametrize("accelerator", ["cpu", "cuda", "gpu"])
def test_what_is_installed_for_an_accelerator(accelerator: str, tmp_path: Path):
    (step,) = (i.rest for i in image.instructions() if i.word == "RUN" and "ACCELERATOR" in i.rest)
    chosen, installed = step.rsplit(" && ", 1)
    assert shlex.split(installed)[:2] == ["pip", "install"]
    (tmp_path / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    done = subprocess.run(
        ["sh", "-c", chosen.replace("python ", f"{shlex.quote(sys.executable)} ")],
        cwd=tmp_path,
        env={"ACCELERATOR": accelerator},
        capture_output=True,
        text=True,
    )
    if accelerator == "gpu":
        assert done.returncode == 2
        assert done.stderr == "ACCELERATOR=gpu: expected cpu or cuda\n"
        return
    assert done.returncode == 0, done.stderr
    extras = (tmp_path / "extras.txt").read_text()
    assert ("cuda" in extras, "gigatoken" in extras) == (accelerator == "cuda", True)


def test_the_command_is_the_server_and_asks_for_its_key(monkeypatch: pytest.MonkeyPatch):
    options = serve_options(image.only("CMD").words(), monkeypatch)
    assert (options.host, options.runs) == ("0.0.0.0", "/runs")
    assert str(options.port) == image.only("EXPOSE").rest
    assert f" {options.port}," in image.only("HEALTHCHECK").words()[-1]
    monkeypatch.delenv("MINIGPT_API_KEY")
    with pytest.raises(InputError, match="set MINIGPT_API_KEY"):
        parse_options(image.only("CMD").words()[2:])


@pytest.mark.parametrize("name", pods())
def test_a_pod_fits_the_image(name: str):
    pod = pods()[name]
    (container,) = pod["containers"]
    assert container["image"] in IMAGES
    assert ("nvidia.com/gpu" in str(container["resources"])) == ("cuda" in container["image"])
    # Commands are found in the image's working directory.
    assert "workingDir" not in container
    words = container.get("command") or container["args"]
    assert words[0] in ("python", "minigpt", "sh")
    # Its user may write to the volumes, whose places are those of the image.
    user, group = map(int, image.only("USER").rest.split(":"))
    assert pod["securityContext"]["runAsNonRoot"] and user > 0
    assert pod["securityContext"]["fsGroup"] == group
    volumes = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert all(place == f"/{volume}" for volume, place in volumes.items())
    assert set(volumes) == {volume["name"] for volume in pod["volumes"]} <= {"data", "runs", "tmp"}


def test_the_service_leads_to_a_server_that_knows_its_name(monkeypatch: pytest.MonkeyPatch):
    text = (ROOT / "examples" / "kubernetes_serve.yaml").read_text()
    service, deployment = yaml.safe_load_all(text)
    template = deployment["spec"]["template"]
    assert service["spec"]["selector"] == template["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    pod = template["spec"]
    (container,) = pod["containers"]
    options = serve_options(container["args"], monkeypatch)
    assert options.allowed_host == [service["metadata"]["name"]]
    (port,), (outside,) = container["ports"], service["spec"]["ports"]
    assert port["containerPort"] == options.port
    assert outside["targetPort"] == port["name"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": port["name"]}
    (variable,) = container["env"]
    assert variable["name"] == "MINIGPT_API_KEY" and "secretKeyRef" in variable["valueFrom"]
    wait = float(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] > options.grace + wait
    rights = container["securityContext"]
    assert rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"]


def test_the_first_process_of_a_container_ends_at_sigterm():
    """The kernel drops the signal there, unless the process handles it."""
    program = """
        import os, signal, time
        from minigpt_jax.runtime.program import begin_program
        begin_program()
        print(os.getpid(), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    """
    code = "\n".join(line.strip() for line in program.splitlines())
    namespace = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    try:
        subprocess.run([*namespace, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no process namespaces here")
    done = subprocess.run(
        [*namespace, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("1\n", 143), done.stderr


@pytest.mark.campaign
def test_the_steps_of_the_image_give_a_server_a_trainer_and_data_tools(
    tmp_path: Path, finetuned_run: Path
):
    environment = image.build(tmp_path)
    app = tmp_path / "app"

    def run(*words: object, code: int = 0) -> str:
        done = subprocess.run(
            [image.inside(str(word), tmp_path) for word in words],
            cwd=app,
            env=environment,
            capture_output=True,
            text=True,
            timeout=START_SECONDS * 3,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    serve = image.only("CMD").words()
    assert "MINIGPT_API_KEY" in run(*serve, code=2)
    environment["MINIGPT_API_KEY"] = KEY
    missing = run(*serve, code=2)
    assert f"no trained run in {tmp_path}/runs/" in missing and missing.count("\n") == 1

    (tmp_path / "data" / "texts").mkdir()
    for number in range(40):
        text = " ".join(["some words of a text"] * 9)
        (tmp_path / "data" / "texts" / f"{number}.txt").write_text(text)
    tool = ("python", "-m", "data_tools.fineweb")
    part = ("--parts", "/data/parts", "--part", "0/1", "--val-every", "10")
    run(*tool, "--source", "/data/texts", *part)
    run(*tool, "--merge", "/data/parts", "--out", "/data/mine")
    small = {**TINY, "data.folder": "data/mine"}
    fields = [f"--config.{name}={value}" for name, value in small.items()]
    run("python", "train.py", "--config", "configs/quickstart.py", *fields)
    # By the link in the working directory.
    assert (tmp_path / "runs" / "quickstart" / "report.html").is_file()

    copy_run(finetuned_run, tmp_path / "runs")
    words = [image.inside(word, tmp_path) for word in serve]
    check = image.only("HEALTHCHECK").words()

    def healthy(address: str) -> None:
        run(*(word.replace("8000", address.rsplit(":", 1)[1]) for word in check))

    with pytest.raises(AssertionError):
        healthy("http://127.0.0.1:9")
    run_server([*words, "--port", "0"], app, environment, while_it_runs=healthy)
