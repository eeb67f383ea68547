"""What deploy/ says of maskmill is true: its commands, settings and metrics exist, and its files parse."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import yaml

from maskmill.config import Config, from_tree, parse_set
from maskmill.pipeline.cli import main

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FILES = sorted(p for p in DEPLOY.rglob("*") if p.is_file())
SBATCH = DEPLOY / "slurm/generate.sbatch"
JOB = "deploy/slurm/generate.sbatch"


def sections(path: Path) -> list[str]:
    """The file's text, comments unwrapped: a whole line each, or the folded strings of YAML as one line."""
    text = path.read_text()
    lines = [re.sub(r"^\s*#\s?", "", line) for line in text.splitlines()]
    if path.suffix == ".yaml":
        lines += list(strings(yaml.safe_load(text)))
    return lines


def strings(tree: object) -> list[str]:
    """Every string in a tree."""
    if isinstance(tree, dict):
        return [s for value in tree.values() for s in strings(value)]
    if isinstance(tree, list):
        return [s for value in tree for s in strings(value)]
    return [tree] if isinstance(tree, str) else []


def commands() -> list[tuple[str, list[str]]]:
    """(file, words after `maskmill`) of each command line, also of those that the sbatch script completes."""
    names = "|".join(main.commands)
    start = re.compile(rf"(?:\bmaskmill|/maskmill:TAG|{re.escape(JOB)}) +(?=(?:{names}|IMAGES)\b)")
    found = []
    for path in FILES:
        for line in sections(path):
            for hit in start.finditer(line):
                rest = re.split(r"[`|&\[\]()#;]|\s{2,}", line[hit.end() :])[0]
                rest = rest.rsplit('"', 1)[0] if rest.count('"') % 2 else rest
                words = shlex.split(rest)
                if words[-1] == "$@":  # the usage line above it says what comes here
                    continue
                found.append((path.name, words if words[0] in main.commands else ["generate", *words]))
    return found


COMMANDS = commands()


def test_finds_the_commands() -> None:
    """The tests below look at something."""
    seen = {name for name, _ in COMMANDS}
    assert {"Dockerfile", "generate.sbatch", "rayjob.yaml", "cluster.yaml", "README.md"} <= seen
    assert any("run.actors=4" in words for _, words in COMMANDS)


@pytest.mark.parametrize(("name", "words"), COMMANDS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(COMMANDS)])
def test_command_is_known(name: str, words: list[str]) -> None:
    """click takes its options, and the config its --set keys."""
    command = main.commands[words[0]]
    context = command.make_context(words[0], words[1:])  # a ClickException if not
    if assignments := context.params.get("assignments"):
        from_tree(Config, parse_set(assignments))


def test_an_unknown_option_fails() -> None:
    with pytest.raises(click.ClickException):
        test_command_is_known("-", ["generate", "photos", "--out", "masks", "--actors", "4"])


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix in (".yaml", ".yml", ".json")], ids=lambda p: p.name)
def test_parses(path: Path) -> None:
    tree = (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_text())
    assert isinstance(tree, dict)


def test_dashboard_asks_for_metrics_that_exist() -> None:
    """Ray puts `ray_` before each name; the labels are the tags."""
    code = (ROOT / "pipeline/engines/metrics.py").read_text()
    made = {
        name: set(re.findall(r'"(\w+)"', tags or ""))
        for name, tags in re.findall(r'(?:Counter|Gauge)\("(\w+)", "[^"]*"(?:, \(([^)]*)\))?', code)
    }
    queries = [
        t["expr"] for p in json.loads((DEPLOY / "grafana/maskmill.json").read_text())["panels"] for t in p["targets"]
    ]
    asked = set(re.findall(r"ray_(\w+)", " ".join(queries)))
    assert asked == set(made)
    for query in queries:
        tags = set().union(*(made[name] for name in re.findall(r"ray_(\w+)", query)))
        assert set(re.findall(r"\bby \((\w+)\)", query)) <= tags


def test_kubernetes_gives_workers_time_to_stop() -> None:
    spec = yaml.safe_load((DEPLOY / "kuberay/rayjob.yaml").read_text())["spec"]
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] > Config().run.grace_s
    assert f"run.actors={workers['replicas']}" in spec["entrypoint"]
    assert workers["minReplicas"] == workers["replicas"] == workers["maxReplicas"]


def test_slurm_gives_the_driver_time_to_stop() -> None:
    """bash takes the script, and the signal comes early enough."""
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    text = SBATCH.read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", text, re.M))
    assert "requeue" in options and options["open-mode"] == "append"
    shell, number, seconds = re.split("[:@]", options["signal"])
    assert (shell, number) == ("B", "USR1")
    assert int(seconds) > Config().run.grace_s + 60  # Slurm looks once a minute
    assert re.search(r"^trap '.*' USR1$", text, re.M)


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix != ".json"], ids=lambda p: p.name)
def test_names_the_three_values(path: Path) -> None:
    assert re.search("change three values|three values to change", path.read_text(), re.I)
