"""The files of examples/deploy: what they ask of jakiro-serve exists, and they agree with each other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from jakiro_serve.cli import main
from paths import ROOT

DEPLOY = ROOT / "examples/deploy"
OPTIONS = {name for option in main.params for name in option.opts}


def parts(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    assert match is not None, pattern
    return match[1]


def check_command(words: list[str]) -> None:
    """Every option is one of jakiro-serve's, and takes its value."""
    context = main.make_context("jakiro-serve", [*words], resilient_parsing=True)
    assert {word for word in words if word.startswith("--")} <= OPTIONS
    assert not context.args


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.jetson"])
def test_an_image_starts_the_server_and_copies_what_there_is(name: str) -> None:
    text = (DEPLOY / name).read_text()
    entry, more = (json.loads(found(rf"^{word} (\[.*\])$", text)) for word in ("ENTRYPOINT", "CMD"))
    assert entry[0] == "jakiro-serve"
    check_command([*entry[1:], *more])
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources)
    declared = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in declared for extra in found(r"\[([a-z,]+)\]\"", text).split(","))
    assert f"EXPOSE {entry[entry.index('--port') + 1]}" in text


def test_compose_uses_the_image_s_file_and_port() -> None:
    service = parts(DEPLOY / "compose.yaml")[0]["services"]["jakiro"]
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    check_command(service["command"])
    assert service["ports"] == ["127.0.0.1:8000:8000"]


def test_the_manifest_fits_the_server() -> None:
    """Its form was checked against Kubernetes' own schemas when it was written; this holds it to the server."""
    kinds = {each["kind"]: each for each in parts(DEPLOY / "kubernetes.yaml")}
    pod = kinds["Deployment"]["spec"]["template"]
    container = pod["spec"]["containers"][0]
    check_command(container["args"])
    drain = int(container["args"][container["args"].index("--drain-seconds") + 1])
    assert pod["spec"]["terminationGracePeriodSeconds"] > drain
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    labels = pod["metadata"]["labels"].items()
    assert kinds["Service"]["spec"]["selector"].items() <= labels
    assert kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["spec"]["volumes"]}
