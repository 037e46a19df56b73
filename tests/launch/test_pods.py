"""Launchers: what they render to, and what the tools that read them say of it."""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from launch.pods import render
from mg_jax.errors import UserError

PODS = Path(render.__file__).parent
SHELL = ("again.sh", "tpu_vm.sh")


def rendered(name, **changes):
    return render.render(name, render.settings(PODS / "settings.env") | changes)


def bash(*args, **env):
    return subprocess.run(["bash", *map(str, args)], capture_output=True, text=True, timeout=60,
                          env={**os.environ, **env})  # fmt: skip


@pytest.mark.parametrize("name", SHELL)
def test_scripts_parse(name):
    assert bash("-n", PODS / name).returncode == 0


def test_shellcheck_finds_nothing():
    tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if tool is None:
        pytest.skip("no shellcheck: make setup EXTRAS=pods")
    done = subprocess.run([tool, "-x", *(PODS / n for n in SHELL)], capture_output=True, text=True,
                          cwd=PODS)  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "codes,starts,last",
    [((0,), 1, 0), ((75, 1, 137, 0), 4, 0), ((75, 2, 0), 2, 2), ((1, 65, 0), 2, 65)],
)
def test_again_goes_on_until_finished_or_bad_input(tmp_path, codes, starts, last):
    count = tmp_path / "count"
    script = tmp_path / "job.sh"
    script.write_text(
        f"n=$(cat {count} 2>/dev/null || echo 0)\necho $((n + 1)) > {count}\n"
        f"codes=({' '.join(map(str, codes))})\nexit ${{codes[$n]}}\n"
    )
    done = bash(PODS / "again.sh", "bash", script, PAUSE="0")
    assert done.returncode == last, done.stderr
    assert int(count.read_text()) == starts


def test_again_gives_up_and_passes_the_notice_on(tmp_path):
    done = bash(PODS / "again.sh", "false", PAUSE="0", RESTARTS="2")
    assert done.returncode == 1 and done.stderr.count("ended with 1") == 3
    mark = tmp_path / "told"
    job = f'trap "touch {mark}; exit 75" TERM; for i in $(seq 200); do sleep 0.05; done'
    process = subprocess.Popen(["bash", PODS / "again.sh", "bash", "-c", job])
    time.sleep(1)
    process.terminate()
    assert process.wait(30) == 75 and mark.exists()


def test_again_starts_nothing_after_a_notice_that_comes_between_two_starts(tmp_path):
    job = f"echo >> {tmp_path}/starts; exit 3"
    process = subprocess.Popen(["bash", PODS / "again.sh", "bash", "-c", job],
                               env={**os.environ, "PAUSE": "600"}, stderr=subprocess.PIPE,
                               text=True)  # fmt: skip
    assert "ended with 3" in process.stderr.readline()
    process.terminate()
    assert process.wait(30) == 3 and (tmp_path / "starts").read_text() == "\n"


def test_a_tpu_vm_is_made_and_used_by_one_set_of_names(tmp_path):
    for action in ("create", "setup", "train", "log", "delete"):
        done = bash(PODS / "tpu_vm.sh", action, DRY="1")
        assert done.returncode == 0, done.stderr
        assert "groma-instruction" in done.stdout and "--zone=us-west4-a" in done.stdout
    train = bash(PODS / "tpu_vm.sh", "train", DRY="1").stdout
    assert "--worker=all" in train and "launch.train" in train and "again.sh" in train
    assert ">> /mnt/bucket/runs/groma-instruction.$(hostname).log" in train
    setup = bash(PODS / "tpu_vm.sh", "setup", DRY="1").stdout
    assert "--recurse" not in setup and " archive --format=tar.gz " in setup.splitlines()[0]
    assert "me=$(id -u)" in setup and "--uid $me --gid $us" in setup
    mine = tmp_path / "mine.env"
    mine.write_text((PODS / "settings.env").read_text().replace("us-west4-a", "europe-west4-b"))
    done = bash(PODS / "tpu_vm.sh", "create", DRY="1", SETTINGS=str(mine))
    assert "--zone=europe-west4-b" in done.stdout
    made = bash(PODS / "tpu_vm.sh", "bucket", DRY="1").stdout
    assert "--enable-hierarchical-namespace" in made and "--location=us-west4" in made
    assert bash(PODS / "tpu_vm.sh").returncode == 2


def test_the_job_set_restarts_after_anything_but_bad_input():
    found = yaml.safe_load(rendered("jobset.yaml", HOSTS="4"))
    assert found["kind"] == "JobSet" and found["spec"]["failurePolicy"]["maxRestarts"] == 100
    (job,) = found["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 4 and spec["backoffLimit"] == 0
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2, 65]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 60
    (container,) = pod["containers"]
    command = container["args"][0]
    assert command.startswith("exec .venv/bin/python -m launch.train --distributed")
    (mount,) = container["volumeMounts"]
    assert f"--workdir {mount['mountPath']}/" in command


def test_the_image_of_the_job_set_is_made_of_what_there_is():
    text = re.sub(r"\\\n\s*", "", (PODS / "Dockerfile").read_text())
    steps = [
        line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")
    ]
    assert steps[0] == ["FROM", "python:3.12-slim"]
    given = dict(step[1].split("=") for step in steps if step[0] == "ARG")
    root = PODS.parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert given["EXTRAS"] in extras["optional-dependencies"]
    (home,) = [value for kind, value in steps if kind == "WORKDIR"]
    pod = yaml.safe_load(rendered("jobset.yaml"))["spec"]["replicatedJobs"][0]
    (container,) = pod["template"]["spec"]["template"]["spec"]["containers"]
    assert container["workingDir"] == home
    assert [value for kind, value in steps if kind == "COPY"] == [". ."]
    assert steps[-1] == ["RUN", "make setup EXTRAS=$EXTRAS"]
    makefile = (root / "Makefile").read_text()
    assert "\nsetup:" in makefile and "VENV ?= .venv\n" in makefile  # where the job looks for it
    docs = (root / "docs" / "pods.md").read_text()
    (built,) = re.findall(r"^ {4}(git archive HEAD \| docker build .*)$", docs, re.M)
    assert f"#   {built}\n" in (PODS / "Dockerfile").read_text()
    assert (root / built.split(" -f ")[1].split()[0]).samefile(PODS / "Dockerfile")
    assert built.split("--build-arg ")[1].split("=")[0] in given


def test_the_job_in_the_job_set_is_what_kubernetes_takes():
    validate = pytest.importorskip("kubernetes_validate")
    found = yaml.safe_load(rendered("jobset.yaml"))
    (job,) = found["spec"]["replicatedJobs"]
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"},
             **job["template"]}  # fmt: skip
    validate.validate(whole, validate.latest_version(), strict=True)
    whole["spec"]["paralelism"] = 2
    with pytest.raises(validate.ValidationError):
        validate.validate(whole, validate.latest_version(), strict=True)


def test_the_job_set_is_what_its_controller_takes():
    models = pytest.importorskip("kubeflow_trainer_api.models")
    known = models.JobsetV1alpha2JobSet
    found = yaml.safe_load(rendered("jobset.yaml"))
    assert known.from_dict(found).to_dict() == found  # a field that it does not know gets lost
    policy = found["spec"]["failurePolicy"]
    policy["maxRestart"] = 2
    assert known.from_dict(found).to_dict() != found
    policy["maxRestarts"] = "many"
    with pytest.raises(ValueError, match="maxRestarts"):
        known.from_dict(found)


def test_the_slurm_job_is_requeued_unless_finished_or_wrong(tmp_path):
    text = rendered("slurm.sbatch", HOME_DIR=str(tmp_path))
    assert "#SBATCH --requeue" in text and "#SBATCH --signal=TERM@300" in text
    assert "${SLURM_RESTART_COUNT:-0}" in text and "${NAME}" not in text
    assert "#SBATCH --output=/mnt/bucket/runs/groma-instruction-%j.log" in text
    (tmp_path / "job").write_text(text)
    (tmp_path / "bin").mkdir()
    for code, again in ((0, False), (2, False), (65, False), (75, True), (1, True)):
        given = f'echo "$JAX_LOCAL_DEVICE_IDS"; exit {code}'
        for name, body in (("srun", given), ("scontrol", f"touch {tmp_path}/asked")):
            tool = tmp_path / "bin" / name
            tool.write_text(f"#!/bin/bash\n{body}\n")
            tool.chmod(0o755)
        (tmp_path / "asked").unlink(missing_ok=True)
        path = f"{tmp_path}/bin:{os.environ['PATH']}"
        done = bash(tmp_path / "job", PATH=path, SLURM_JOB_ID="7")
        assert done.returncode == code and (tmp_path / "asked").exists() == again, done.stderr
        assert done.stdout == "0,1,2,3,4,5,6,7\n"


def test_the_sky_job_names_its_slice_and_mounts_its_bucket():
    found = yaml.safe_load(rendered("sky.yaml"))
    assert found["resources"]["accelerators"] == "tpu-v5litepod-32"
    (mount,) = found["file_mounts"]
    assert f"--workdir {mount}/" in found["run"] and "again.sh" in found["run"]
    # which knows exit codes; SkyPilot, told to restart after errors, would not
    assert "RESTARTS=100" in found["run"] and "job_recovery" not in found["resources"]


def test_what_the_settings_show_can_be_written_so(tmp_path):
    text = (PODS / "settings.env").read_text()
    (shown,) = [word for word in text.splitlines() if word.startswith("#") and "FLAGS=" in word]
    file = tmp_path / "mine.env"
    file.write_text(text.replace("\nFLAGS=\n", "\n" + shown[shown.index("FLAGS=") :] + "\n"))
    flags = "--config.data=coco:a.json,images --config.init_from=FOLDER"
    assert render.settings(file)["FLAGS"] == flags
    assert f" {flags} " in bash(PODS / "tpu_vm.sh", "train", DRY="1", SETTINGS=str(file)).stdout


def test_settings_that_are_wrong_are_named(tmp_path, capsys):
    bad = tmp_path / "bad.env"
    bad.write_text("NAME groma\n")
    with pytest.raises(UserError, match="bad.env:1: write NAME=value"):
        render.settings(bad)
    with pytest.raises(UserError, match="WORKDIR=/x: write MOUNTED_BUCKET/runs/NAME"):
        rendered("sky.yaml", WORKDIR="/x")
    bad.write_text("NAME=groma\n")
    with pytest.raises(UserError, match="sky.yaml: WORKDIR is missing in the settings"):
        render.render("sky.yaml", render.settings(bad))
    with pytest.raises(UserError, match="NMAE=x: write NAME=VALUE"):
        render.main(["sky.yaml", "NMAE=x"])
    render.main(["sky.yaml", "NAME=other"])
    assert "name: other" in capsys.readouterr().out


def test_no_secret_is_in_the_files():
    for file in PODS.iterdir():
        if file.is_file():
            text = file.read_text(encoding="utf-8").lower()
            assert not any(w in text for w in ("password", "api_key", "token=", "secret=")), file
