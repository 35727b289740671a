"""The workspace in Weights & Biases names what our runs log, and is saved online or as a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import LoggedRun
from deepinterest import dashboard
from wandb_service import Service, serve

pytest.importorskip("wandb_workspaces")

ON_A_GPU = {"gpu.0.gpu", "gpu.0.memoryAllocated"}  # of the machine, where there is one


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_ENTITY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)


def written(path: Path = Path("outputs/wandb_workspace.json")) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def panels(view: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The panels of each section."""
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def test_every_figure_of_the_workspace_is_logged(logged_run: LoggedRun) -> None:
    assert dashboard.main([]) == 0
    view = written()
    history, machine = logged_run.items("history"), logged_run.items("stats")
    summary, config = logged_run.items("summary", "update"), logged_run.settings
    seen = set()
    for panel in (panel for section in panels(view).values() for panel in section):
        kind, content = panel["viewType"], panel["config"]
        seen.add(kind)
        names = content.get("metrics", [])
        if kind == "Run History Line Plot":
            logged = machine if names[0].startswith("system/") else history
            names = [name.removeprefix("system/") for name in names]
            if names[0] in ON_A_GPU:
                continue
            assert len(logged[names[0]]) > 1, names  # a curve
            assert content["xAxis"] in (*history, "_runtime")
        elif kind == "Media Browser":
            for name in content["mediaKeys"]:
                assert history[f"{name}._type"] == ["image-file"]
        elif kind == "Scatter Plot":
            names = [content[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis")]
        elif kind == "Parallel Coordinates Plot":
            for place, _, name in (column["accessor"].partition(":") for column in content["columns"]):
                if place == "summary":
                    names.append(name)
                else:
                    first, *rest = name.split(".")
                    value = config[first]
                    assert rest.pop(0) == "value"
                    for key in rest:
                        value = value[key]
        elif kind == "Parameter Importance":
            names = [content["targetKey"]]
        if kind != "Run History Line Plot":
            assert set(names) <= set(summary), (kind, names)
    assert len(seen) == 7, seen
    pinned = view["spec"]["section"]["runSets"][0]["runFeed"]["columnPinned"]
    assert {name.removeprefix("summary:") for name in pinned} - set(summary) == {"run:displayName"}


def test_sections(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert dashboard.main(["--entity", "team", "--project", "mine", "--out", str(tmp_path / "a" / "b.json")]) == 0
    said = capsys.readouterr().out
    assert "There is no key" in said
    assert f"written: {tmp_path / 'a' / 'b.json'}" in said
    view = written(tmp_path / "a" / "b.json")
    assert (view["entity"], view["project"], view["displayName"]) == ("team", "mine", "deepinterest")
    text = {name: json.dumps(content) for name, content in panels(view).items()}
    for section, names in {
        "Quality": ("val/auc", "val/gauc", "val/logloss", "test/auc", "test/gauc", "test/logloss"),
        "Auxiliary loss": ("train/auxiliary_loss",),
        "Calibration": ("val/ece", "test/ece"),
        "Throughput and cost": ("train/samples_per_s", "seconds"),
        "System": ("system/cpu", "system/proc.memory.rssMB"),
        "Sweeps": ("Parallel Coordinates Plot", "Parameter Importance", '"groupBy": "group"', "optimizer.value.lr"),
    }.items():
        for name in names:
            assert name in text[section], (section, name)


def test_grouped_by_sweep() -> None:
    grouping = []
    for words in ([], ["--grouped"]):
        assert dashboard.main(words) == 0
        grouping.append(written()["spec"]["section"]["runSets"][0]["grouping"])
    assert grouping == [[], [{"section": "run", "name": "group"}]]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    import wandb

    with serve() as service:
        monkeypatch.setenv("WANDB_BASE_URL", service.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        wandb.teardown()  # which has read its settings already
        yield service
    monkeypatch.undo()
    wandb.teardown()


def test_saved_online_and_replaced(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert dashboard.main([]) == 0
    url = capsys.readouterr().out.strip().removeprefix("workspace: ")
    assert "/me/deepinterest?nw=" in url
    (first,) = service.views.values()
    assert "val/auc" in first["spec"]
    assert dashboard.main(["--url", url, "--grouped"]) == 0
    (second,) = service.views.values()  # the same view
    assert second["id"] == "V1"
    assert json.loads(second["spec"])["section"]["runSets"][0]["grouping"]
    assert not Path("outputs").exists()


def test_a_refusal_is_a_sentence(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.refuse = True
    assert dashboard.main(["--entity", "team"]) == 1
    said = capsys.readouterr().err
    assert "could not be saved to team/deepinterest: " in said
    assert "project not found" in said
    assert "Traceback" not in said


def test_without_a_server_it_is_a_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert dashboard.main([]) == 0
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().out
    assert dashboard.main(["--offline"]) == 0
    assert written()["project"] == "deepinterest"


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert dashboard.main([]) == 1
    assert 'pip install -e ".[dashboard]"' in capsys.readouterr().err


def test_unwritable(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert dashboard.main(["--out", str(tmp_path / "file" / "x.json")]) == 1
    assert "can't be written" in capsys.readouterr().err
