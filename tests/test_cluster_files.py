"""The cluster files: what Ray's launcher, EC2, KubeRay's autoscaler and Kubernetes themselves would refuse."""

import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from mmdd_ray.presets import AUTOSCALING

ROOT = Path(__file__).parents[1]
KUBERNETES = "1.33"
# Field names of KubeRay's v1 API, by the part of the manifest that they belong to. Its schema is in no package.
KUBERAY_FIELDS = {
    "job": "entrypoint submissionMode backoffLimit shutdownAfterJobFinishes ttlSecondsAfterFinished rayClusterSpec "
    "runtimeEnvYAML activeDeadlineSeconds metadata clusterSelector submitterConfig submitterPodTemplate jobId "
    "entrypointNumCpus entrypointNumGpus entrypointResources suspend managedBy",
    "cluster": "rayVersion enableInTreeAutoscaling autoscalerOptions headGroupSpec workerGroupSpecs "
    "headServiceAnnotations suspend",
    "autoscaler": "idleTimeoutSeconds upscalingMode resources image imagePullPolicy env envFrom volumeMounts "
    "securityContext",
    "head": "serviceType headService enableIngress rayStartParams template",
    "worker": "groupName replicas minReplicas maxReplicas numOfHosts rayStartParams template scaleStrategy",
}


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docs" / "kuberay.yaml").read_text())


@pytest.fixture(scope="module")
def ray_version() -> str:
    lock = (ROOT / "requirements.lock").read_text()
    return next(line.split("==")[1].split()[0] for line in lock.splitlines() if line.startswith("ray=="))


def test_ray_and_ec2_accept_the_cluster_file(cluster: dict[str, Any]) -> None:
    import botocore.session
    import botocore.validate
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))
    ec2 = botocore.session.get_session().get_service_model("ec2")
    shape = ec2.operation_model("RunInstances").input_shape
    for node in cluster["available_node_types"].values():
        request = {"MinCount": 1, "MaxCount": 1, **node["node_config"]}
        report = botocore.validate.ParamValidator().validate(request, shape)
        assert not report.has_errors(), report.generate_report()
    assert cluster["available_node_types"]["gpu.spot"]["min_workers"] == 0


def test_nothing_of_the_cluster_is_public(cluster: dict[str, Any], manifest: dict[str, Any]) -> None:
    assert cluster["provider"]["use_internal_ips"] is True
    (start,) = [line for line in cluster["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start
    for node in cluster["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    assert manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_clusters_run_the_ray_of_the_lock(
    cluster: dict[str, Any], manifest: dict[str, Any], ray_version: str
) -> None:
    assert f"ray:{ray_version}-py311" in cluster["docker"]["image"]
    assert f"ray:{ray_version}-py311" in cluster["docker"]["head_image"]
    assert f"FROM rayproject/ray:{ray_version}-py311" in (ROOT / "docs" / "Dockerfile").read_text()
    assert manifest["spec"]["rayClusterSpec"]["rayVersion"] == ray_version
    assert f"ray[default]=={ray_version}" in (ROOT / "docs" / "cluster.md").read_text()


def test_presets_know_how_many_gpus_may_come(cluster: dict[str, Any], manifest: dict[str, Any]) -> None:
    assert cluster["available_node_types"]["gpu.spot"]["max_workers"] == AUTOSCALING.max_gpus  # one each
    assert AUTOSCALING.max_gpus == sum(
        group["maxReplicas"] * int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
        for group in manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        for container in group["template"]["spec"]["containers"]
    )


def test_the_manifest_has_fields_of_kuberay_alone(manifest: dict[str, Any]) -> None:
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    job, cluster = manifest["spec"], manifest["spec"]["rayClusterSpec"]
    parts = [
        ("job", job),
        ("cluster", cluster),
        ("autoscaler", cluster["autoscalerOptions"]),
        ("head", cluster["headGroupSpec"]),
        *(("worker", group) for group in cluster["workerGroupSpecs"]),
    ]
    for name, part in parts:
        assert part.keys() <= set(KUBERAY_FIELDS[name].split()), name
        parameters = part.get("rayStartParams", {})
        assert all(isinstance(value, str) for value in parameters.values()), name


def test_kubernetes_accepts_every_pod(manifest: dict[str, Any]) -> None:
    cluster = manifest["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        pod["spec"] |= {"containres": []}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        del pod["spec"]["containres"]


def test_rays_autoscaler_understands_the_groups(manifest: dict[str, Any]) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = {"metadata": {"name": "c", "namespace": "n"}, "spec": manifest["spec"]["rayClusterSpec"]}
    groups = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    found = {
        name: (group["min_workers"], group["max_workers"], group["resources"])
        for name, group in groups.items()
    }
    assert found["headgroup"][2]["CPU"] == 0
    assert (found["cpu-decode"][:2], found["cpu-decode"][2]["CPU"]) == ((0, 8), 15)
    assert (found["gpu-spot"][:2], found["gpu-spot"][2]["GPU"]) == ((0, 16), 1)


def test_the_command_of_the_manifest_is_one_that_the_job_takes(manifest: dict[str, Any]) -> None:
    from mmdd_ray import cli
    from mmdd_ray.presets import edge_cc3m

    # KubeRay hands it to a shell
    shell = ["bash", "-c", f"printf '%s\\n' {manifest['spec']['entrypoint']}"]
    words = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.splitlines()
    python, script, *arguments = words
    assert (python, Path(script).relative_to("/home/ray/mmdd-ray")) == ("python", Path("jobs/edge_cc3m.py"))
    preset, settings = cli.parse("edge_cc3m", {"cc3m": edge_cc3m}, arguments)
    assert preset == "cc3m"
    assert settings.run.dir == "s3://YOUR-BUCKET/runs/cc3m-500"
    copied = re.findall(
        r"^COPY (?:--\S+ )?(.*) \S+$", (ROOT / "docs" / "Dockerfile").read_text(), re.MULTILINE
    )
    assert all((ROOT / name).exists() for names in copied for name in names.split())
