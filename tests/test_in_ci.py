"""`spiritlevel check` before a commit and in a workflow: pre-commit itself, the action's steps."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/check.md").read_text(encoding="utf-8")
MODELS = """
from torch import nn


def clean():
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())


def swapped():
    layers = clean()
    layers[1].momentum = 0.99
    return layers
"""


def environment(folder: Path) -> dict[str, str]:
    """So that `spiritlevel` and `python` are those under test, and nothing comes from outside."""
    nowhere = "http://127.0.0.1:9"
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT / "src"),
        "PRE_COMMIT_HOME": str(folder / "pre-commit"),
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        **{
            f"GIT_{who}_{what}": f"{who}@example.org"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
    }


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def told_of(model: str, folder: Path, command: list[str], **options):
    """What came of a command in a folder whose `my.models:build` is that model."""
    (folder / "my").mkdir(exist_ok=True)
    (folder / "my/models.py").write_text(f"{MODELS}\n\nbuild = {model}\n")
    options.setdefault("env", environment(folder))
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, **options
    )


def valid(schema: str, path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, path], check=True
    )


# pre-commit


def repository(folder: Path, *, of_hooks: bool) -> str:
    """A git repository of all that is there, and its commit."""
    env = environment(folder.parent)
    git = ["git", "-C", str(folder)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        if of_hooks or command[0] != "commit":
            subprocess.run([*git, *command], check=True, env=env)
    if not of_hooks:
        return ""
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, env=env)
    return head.stdout.strip()


@pytest.mark.slow
def test_a_commit_with_a_bug_fails_and_names_the_rule_and_a_clean_one_passes(tmp_path):
    """By the configuration of docs/check.md, in a repository of the user's."""
    hooks, users = tmp_path / "hooks", tmp_path / "users"
    hooks.mkdir()
    users.mkdir()
    shutil.copy(ROOT / ".pre-commit-hooks.yaml", hooks)
    commit = repository(hooks, of_hooks=True)
    (told,) = (block for block in blocks("yaml") if "spiritlevel-check" in block)
    config = yaml.safe_load(told)
    config["repos"][0] |= {"repo": str(hooks), "rev": commit}
    (users / ".gitignore").write_text("__pycache__/\n")
    (users / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    repository(users, of_hooks=False)
    env = environment(tmp_path)
    install = [sys.executable, "-m", "pre_commit", "install"]
    subprocess.run(install, cwd=users, env=env, check=True, capture_output=True)

    shell = ["bash", "-c", "git add -A && git commit -m 'a model'"]
    wrong = told_of("swapped", users, shell, env=env)
    assert wrong.returncode == 1, wrong.stderr
    assert "spiritlevel check" in wrong.stderr
    assert "Failed" in wrong.stderr
    assert "SL101" in wrong.stderr
    right = told_of("clean", users, shell, env=env)
    assert right.returncode == 0, right.stderr
    assert re.search(r"spiritlevel check\.+Passed", right.stderr)
    (users / "notes.txt").write_text("nothing that a model is made of")
    beside = told_of("clean", users, shell, env=env)
    assert re.search(r"spiritlevel check\.+.*Skipped", beside.stderr)


# GitHub

ACTION = yaml.safe_load((ROOT / "action.yml").read_text())


def run_action(folder: Path, model: str, inputs: dict[str, str], **more: str):
    """Its steps, as GitHub runs them: inputs into each one's environment, bash for the rest.

    `more` goes into the environment, too.
    """
    given = {name: str(told.get("default", "")) for name, told in ACTION["inputs"].items()} | inputs
    for step in ACTION["runs"]["steps"]:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]  # which GitHub would write into the script as it is
        filled = {
            name: re.sub(r"\${{ inputs\.(\w+) }}", lambda m: given[m[1]], value)
            for name, value in step["env"].items()
        }
        script = folder / "step.sh"
        script.write_text(step["run"])
        bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        env = environment(folder) | {"GITHUB_ACTION_PATH": str(ROOT)} | more | filled
        done = told_of(model, folder, bash, env=env)
        if done.returncode:
            break
    return done


def test_the_action_and_the_workflow_that_shows_it_are_what_github_takes(tmp_path):
    valid("vendor.github-actions", ROOT / "action.yml")
    (workflow,) = (block for block in blocks("yaml") if "runs-on" in block)
    (tmp_path / "check.yml").write_text(workflow)
    valid("vendor.github-workflows", tmp_path / "check.yml")
    (step,) = (
        step
        for step in yaml.safe_load(workflow)["jobs"]["check"]["steps"]
        if "spiritlevel@" in step.get("uses", "")
    )
    assert step["with"].keys() <= ACTION["inputs"].keys()


def commands_of_action(folder: Path, inputs: dict[str, str], *, there: bool) -> list[list[str]]:
    """What its steps have Python run, where spiritlevel is there, or a folder of its name alone.

    A `python` that keeps its arguments, and runs none but what looks whether spiritlevel is there.
    """
    users, tools = folder / "users", folder / "tools"
    (users / "spiritlevel").mkdir(parents=True)
    tools.mkdir()
    options = "" if there else "-ES"  # with neither PYTHONPATH nor what is installed
    (tools / "python").write_text(
        '#!/bin/bash\nprintf "%s\\0" "$@" >> "$TOLD"; echo >> "$TOLD"\n'
        f'if [ "$1" = -c ]; then exec "{sys.executable}" {options} "$@"; fi\n'
    )
    (tools / "python").chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    done = run_action(users, "clean", inputs, TOLD=str(folder / "told"), PATH=path)
    assert done.returncode == 0, done.stderr
    told = [line.split("\0")[:-1] for line in (folder / "told").read_text().splitlines()]
    return [command for command in told if command[0] == "-m"]


@pytest.mark.parametrize("model", ["a b", "-h", "*"])
def test_a_model_is_one_word_and_no_option_and_args_are_those_that_are_written(tmp_path, model):
    inputs = {"model": model, "args": "--ignore  * --fail-on info"}
    commands = commands_of_action(tmp_path, inputs, there=True)
    args = ["--ignore", "*", "--fail-on", "info"]
    assert commands == [["-m", "spiritlevel", "check", *args, "--", model]]


def test_a_folder_named_spiritlevel_does_not_stand_for_the_package(tmp_path):
    commands = commands_of_action(tmp_path, {"model": "ghostnet_100"}, there=False)
    assert commands == [
        ["-m", "pip", "install", str(ROOT)],
        ["-m", "spiritlevel", "check", "--", "ghostnet_100"],
    ]


@pytest.mark.slow
def test_the_action_ends_as_the_check_does_and_leaves_what_the_workflow_uploads(tmp_path):
    (workflow,) = (block for block in blocks("yaml") if "runs-on" in block)
    steps = yaml.safe_load(workflow)["jobs"]["check"]["steps"]
    inputs = steps[-2]["with"]
    done = run_action(tmp_path, "swapped", inputs)
    assert done.returncode == 1, done.stderr
    written = json.loads((tmp_path / steps[-1]["with"]["sarif_file"]).read_text())
    assert [result["ruleId"] for result in written["runs"][0]["results"]] == ["SL101"]
    assert run_action(tmp_path, "clean", inputs).returncode == 0
    assert run_action(tmp_path, "clean", {"model": "my.models:none"}).returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("which", ["model", "args"])
@pytest.mark.parametrize("what", ["{0}; touch hit", "{0} $(touch hit)", '{0}" `touch hit` "'])
def test_what_an_input_says_is_never_run(tmp_path, which, what):
    inputs = {"model": "my.models:build", "args": "--fail-on info"}
    done = run_action(tmp_path, "clean", inputs | {which: what.format(inputs[which])})
    assert done.returncode == 2, done.stdout
    assert not (tmp_path / "hit").exists()
