"""The cluster files: what Ray's launcher, EC2, KubeRay's autoscaler and Kubernetes themselves would refuse."""

import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from mmdd_ray.methods.preset_parts import AUTOSCALING

ROOT = Path(__file__).parents[1]
KUBERNETES = "1.33"
TEXT, WHOLE, NUMBER, FLAG = ({"type": name} for name in ("string", "integer", "number", "boolean"))
TEXTS = {"type": "object", "additionalProperties": TEXT}
ANY: dict[str, Any] = {}  # of Kubernetes, whose own schema is in kubernetes_validate


def record(*required: str, **fields: Any) -> dict[str, Any]:
    """JSON Schema of an object that has no fields but these."""
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


# The fields and types of KubeRay's custom resource RayJob (ray.io/v1, of its release 1.2). Its definition is in no
# package, and the cluster's API server holds a manifest against it: misspelt fields would be dropped in silence.
RAY_JOB = record(
    "rayClusterSpec",
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode"]},
    backoffLimit=WHOLE,
    activeDeadlineSeconds=WHOLE,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=WHOLE,
    suspend=FLAG,
    jobId=TEXT,
    metadata=TEXTS,
    runtimeEnvYAML=TEXT,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    entrypointResources=TEXT,
    clusterSelector=TEXTS,
    submitterPodTemplate=ANY,
    rayClusterSpec=record(
        "headGroupSpec",
        rayVersion=TEXT,
        suspend=FLAG,
        enableInTreeAutoscaling=FLAG,
        headServiceAnnotations=TEXTS,
        autoscalerOptions=record(
            idleTimeoutSeconds=WHOLE,
            upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
            image=TEXT,
            imagePullPolicy=TEXT,
            resources=ANY,
            env=ANY,
            envFrom=ANY,
            volumeMounts=ANY,
            securityContext=ANY,
        ),
        headGroupSpec=record(
            "rayStartParams",
            "template",
            serviceType=TEXT,
            headService=ANY,
            enableIngress=FLAG,
            rayStartParams=TEXTS,
            template=ANY,
        ),
        workerGroupSpecs={
            "type": "array",
            "items": record(
                "groupName",
                "minReplicas",
                "maxReplicas",
                "rayStartParams",
                "template",
                groupName=TEXT,
                replicas=WHOLE,
                minReplicas=WHOLE,
                maxReplicas=WHOLE,
                numOfHosts=WHOLE,
                rayStartParams=TEXTS,
                template=ANY,
                scaleStrategy=ANY,
            ),
        },
    ),
)


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
        request["SubnetId"] = request.pop("SubnetIds")[0]  # Ray tries one after the other
        report = botocore.validate.ParamValidator().validate(request, shape)
        assert not report.has_errors(), report.generate_report()
    assert cluster["available_node_types"]["gpu.spot"]["min_workers"] == 0


def test_nothing_of_the_cluster_is_public(cluster: dict[str, Any], manifest: dict[str, Any]) -> None:
    assert cluster["provider"]["use_internal_ips"] is True
    (start,) = [line for line in cluster["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start
    for node in cluster["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert node["node_config"]["SubnetIds"]  # without them Ray would take public ones, too
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


def test_the_manifest_is_a_ray_job(manifest: dict[str, Any]) -> None:
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    found = jsonschema.Draft202012Validator(RAY_JOB)
    found.validate(manifest["spec"])
    workers = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    for wrong in ({"backoffLimit": "three"}, {"submisionMode": "HTTPMode"}, {"rayClusterSpec": workers}):
        assert not found.is_valid({**manifest["spec"], **wrong})


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
    from mmdd_ray.methods.edge.presets import cc3m as edge_cc3m

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
