"""`tidegate monitor export`, and what `up --with-monitoring` says where there is no Prometheus."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from monitoring.dashboards.boards import BAD, FIRST_TOKEN
from monitoring.rules.document import rules_text
from monitoring.slo import ServiceLevels
from tests.promtool import require
from tidegate import monitoring_files
from tidegate.cli.main import run
from tidegate.monitoring_files import local_targets, prepare_prometheus, prometheus_argv
from tidegate.parts import monitoring_parts, platform_parts, prepare_home
from tidegate.settings import Settings


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_export_writes_everything_that_a_prometheus_and_a_grafana_need(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "monitoring"
    assert run(["monitor", "export", str(folder), "--gpu", "gpu-1:9400", "--alertmanager", "am:9093"]) == 0
    said = capsys.readouterr().out
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert all(str(folder / name) in said for name in names)
    assert {"prometheus.yml", "tidegate.rules.yml", "alertmanager.example.yml", "README.md"} < names
    assert len([n for n in names if n.startswith("dashboards/")]) == 5
    for name in names:
        if name.endswith(".json"):
            assert json.loads((folder / name).read_text())["uid"] == Path(name).stem
    assert (folder / "tidegate.rules.yml").read_text() == rules_text(ServiceLevels())
    found = yaml.safe_load((folder / "prometheus.yml").read_text())
    jobs = {c["job_name"]: c for c in found["scrape_configs"]}
    assert jobs.keys() == {"tidegate-gateway", "tidegate-control", "tidegate-drift", "tidegate-engines", "dcgm"}
    assert jobs["tidegate-engines"]["http_sd_configs"][0]["url"] == "http://127.0.0.1:8001/targets"
    provider = yaml.safe_load((folder / "grafana-provider.yml").read_text())
    assert provider["providers"][0]["options"]["path"] == str(folder / "dashboards")


def test_dashboards_are_exported_with_ones_own_promises_and_runbooks(tmp_path: Path) -> None:
    options = ["--availability", "99.99", "--within", "0.5", "--runbooks", "https://wiki.example/runbooks/"]
    assert run(["monitor", "export", str(tmp_path), *options]) == 0
    board = json.loads((tmp_path / "dashboards/tidegate-overview.json").read_text())
    (runbooks,) = [v["query"] for v in board["templating"]["list"] if v["name"] == "runbooks"]
    assert runbooks == "https://wiki.example/runbooks"
    limits = {
        p["title"]: p["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"]
        for p in board["panels"] if p["title"] in (BAD.title, FIRST_TOKEN.title)
    }  # fmt: skip
    assert limits == {BAD.title: 0.0001, FIRST_TOKEN.title: 0.5}


def test_rays_own_metrics_are_collected_where_they_are_wanted(home: Path) -> None:
    wanted = Settings(home=home, ray_metrics=True)
    assert local_targets(wanted, ray=("/mine.json",)).discovery_files == (
        str(home / "run/prom_metrics_service_discovery.json"), "/mine.json",
    )  # fmt: skip
    assert local_targets(Settings(home=home)).discovery_files == ()


def test_prometheus_accepts_what_was_exported(tmp_path: Path) -> None:
    assert run(["monitor", "export", str(tmp_path), "--availability", "99.99", "--within", "0.5"]) == 0
    argv = [require("promtool"), "check", "config", str(tmp_path / "prometheus.yml")]
    checked = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_exporting_twice_is_fine_and_what_was_changed_by_hand_is_kept(tmp_path: Path, capsys) -> None:
    assert run(["monitor", "export", str(tmp_path)]) == 0
    assert run(["monitor", "export", str(tmp_path)]) == 0
    (tmp_path / "prometheus.yml").write_text("mine")
    assert run(["monitor", "export", str(tmp_path)]) == 1
    assert "prometheus.yml exists with other content" in capsys.readouterr().err
    assert (tmp_path / "prometheus.yml").read_text() == "mine"
    assert run(["monitor", "export", str(tmp_path), "--force"]) == 0
    assert (tmp_path / "prometheus.yml").read_text() != "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--availability", "100"], "--availability 100: a promise is between 0 and 100 percent"),
        (["--first-token", "0"], "--first-token 0: a promise is between 0 and 100 percent"),
        (["--within", "2"], "2 s is no bound of the histogram"),
        (["--gpu", "http://gpu-1:9400"], "write HOST:PORT, without http://"),
        (["--engine", "gpu-1"], "write HOST:PORT"),
    ],
)
def test_what_can_not_be_meant_is_refused(tmp_path: Path, capsys, arguments: list[str], message: str) -> None:
    assert run(["monitor", "export", str(tmp_path / "new"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_that_can_not_be_made_is_said_in_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert run(["monitor", "export", str(tmp_path / "file" / "below")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "name another folder" in said


def test_every_gateway_process_is_collected_from_by_loopback() -> None:
    found = local_targets(Settings(host="0.0.0.0", admin_port=8101, control_port=8080, gateways=3))
    assert found.gateways == ("127.0.0.1:8101", "127.0.0.1:8102", "127.0.0.1:8103")
    assert found.controls == ("127.0.0.1:8080",)
    six = Settings(host="::1")
    assert local_targets(six).controls == ("[::1]:8080",)
    assert six.admin_url == "http://[::1]:8001"


def test_up_with_monitoring_without_a_prometheus_says_how_to_get_one(monkeypatch, capsys, home: Path) -> None:
    monkeypatch.setattr(monitoring_files, "prometheus_program", lambda: None)
    assert run(["up", "--bare", "--with-monitoring", "--detach"]) == 1
    said = capsys.readouterr().err
    assert "apt-get install prometheus" in said
    assert not (home / "run").exists()


def test_prometheus_is_the_last_part_and_only_when_asked_for(monkeypatch, home: Path) -> None:
    monkeypatch.setattr("tidegate.parts.prometheus_program", lambda: "/bin/prometheus")
    assert [p.name for p in platform_parts(Settings(home=home))] == ["ray", "controller", "gateway", "drift"]
    lean = platform_parts(Settings(home=home, drift=False, probe_every_h=24))
    assert [(p.name, p.vital) for p in lean][2:] == [("gateway", True), ("probes", False)]
    assert [p.name for p in platform_parts(Settings(home=home, monitoring=True))][-1] == "prometheus"
    monkeypatch.setattr("tidegate.parts.prometheus_program", lambda: None)
    assert monitoring_parts(Settings(home=home, monitoring=True)) == ()


def test_its_data_are_below_the_home_bounded_and_on_loopback(home: Path) -> None:
    settings = Settings(home=home, host="0.0.0.0", prometheus_port=19090, prometheus_retention_mib=64)
    argv = prometheus_argv(settings, "prometheus")
    assert f"--storage.tsdb.path={home}/prometheus/data" in argv
    assert "--storage.tsdb.retention.size=64MB" in argv
    assert "--web.listen-address=127.0.0.1:19090" in argv


def test_preparing_a_home_writes_the_configuration_only_when_it_is_asked_for(home: Path) -> None:
    prepare_home(Settings(home=home))
    assert not (home / "prometheus").exists()
    prepare_home(Settings(home=home, monitoring=True))
    assert (home / "prometheus").stat().st_mode & 0o777 == 0o700
    prepare_prometheus(Settings(home=home, monitoring=True, admin_port=8111))
    assert "127.0.0.1:8111" in (home / "prometheus" / "prometheus.yml").read_text()
