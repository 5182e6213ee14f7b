"""The recipes of docs/running.md start what they promise."""

import re
import sys

import pytest
import yaml

from minigpt_jax import config
from tests.harness import ROOT
from tests.runtime.conftest import Join
from tests.runtime.launchers import kubernetes

TEXT = (ROOT / "docs" / "running.md").read_text()


@pytest.fixture(scope="module")
def job() -> dict:
    """The job of the Kubernetes recipe."""
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    service, job = yaml.safe_load_all(block)
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    assert service["metadata"]["name"] == job["spec"]["template"]["spec"]["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    return job


def container(job: dict) -> dict:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("index", [0, 1])
def test_the_pods_of_the_job_find_each_other(join: Join, job: dict, index: int):
    variables = {variable["name"]: variable["value"] for variable in container(job)["env"]}
    name, gpus = job["metadata"]["name"], container(job)["resources"]["limits"]["nvidia.com/gpu"]
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed" and spec["parallelism"] == spec["completions"]
    joined = join(kubernetes(index) | variables, gpus=gpus)
    assert joined == (index, spec["completions"], "all", f"{name}-0.{name}:8476")


@pytest.mark.filterwarnings("ignore:the load_module.* method is deprecated:DeprecationWarning")
def test_the_job_starts_interrupted_runs_again_and_gives_up_on_wrong_input(job: dict, monkeypatch):
    command = container(job)["command"]
    assert command[:2] == ["python", "train.py"]
    monkeypatch.chdir(ROOT)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    interrupted = config.parse(command[1:]).interrupted_exit_code
    actions = {
        code: rule["action"]
        for rule in job["spec"]["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
        for code in rule["onExitCodes"]["values"]
    }
    assert actions == {2: "FailJob", interrupted: "Ignore"} and interrupted > 2
    # Kubernetes accepts a policy with this one only.
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
