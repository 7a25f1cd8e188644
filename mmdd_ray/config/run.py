"""Settings of a run as a whole."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from annotated_types import Ge

from mmdd_ray.config.fields import Count, Essential, Positive, Weight, operational

TrackerName = Literal["trackio", "wandb", "mlflow", "tensorboard"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run lives and how it behaves as a whole."""

    dir: Essential[str | None] = operational(None)
    """Run directory, a local path or an s3:// URI. Default: runs/<job>-<preset>."""
    seed: Essential[Annotated[int, Ge(0)]] = 0
    """Root of every random choice: samples, models and students derive seeds of their own from it; coresets use it
    as it is."""
    ray_address: str | None = operational(None)
    """Ray cluster to join ("auto" or host:port). Default: that of the environment, or a local one."""
    max_cpus: Count | None = operational(None)
    """CPUs that the cluster may grow to, where it scales by itself. Default: those it has when the run starts."""
    max_gpus: Annotated[int, Ge(0)] | None = operational(None)
    """GPUs that the cluster may grow to. A cluster that begins without GPUs would be taken for one that has none."""
    num_cpus: Count | None = operational(None)
    """CPUs of the local Ray that is started when there is no cluster. Default: all cores."""
    object_store_mib: Annotated[int, Ge(80)] = operational(512)
    """Shared-memory object store of that local Ray, in MiB."""
    stall_minutes: Positive = operational(30.0)
    """A stage that streams data and gets no further for so long stops, to be resumed: a shard that hangs, or machines
    that do not come."""
    track: Essential[TrackerName | None] = operational(None)
    """Experiment tracker that gets losses, stages, scores and pictures as well; it must be installed. TensorBoard files
    are written below tensorboard/ in the run directory in any case."""
    verbose: Annotated[bool, tyro.conf.arg(aliases=["-v"])] = operational(False)
    """Show Ray's own logs."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a run, printed before it starts."""

    show: Essential[Annotated[bool, tyro.conf.arg(name="plan", prefix_name=False)]] = operational(False)
    """Print the plan of the run, and stop."""
    like: str | None = operational(None)
    """Run directory whose times the plan is made from. Default: figures of the local preset, on two CPU cores."""
    cpus: Count | None = operational(None)
    """Plan for a cluster with so many CPUs. Default: the one that the run would join, grown, or this machine."""
    gpus: Annotated[int, Ge(0)] | None = operational(None)
    """Plan for a cluster with so many GPUs."""
    gpu_gib: Positive | None = operational(None)
    """Memory of a GPU there, in GiB. Default: that of the smallest kind that the cluster has, where it is known."""
    gpu_hour_price: Weight = operational(0.0)
    """Price of an hour of one GPU, in any currency."""


@dataclass(frozen=True, kw_only=True)
class Rehearse:
    """Every stage for two steps, with random weights and procedural scenes, before a run is worth anything."""

    show: Essential[Annotated[bool, tyro.conf.arg(name="rehearse", prefix_name=False)]] = operational(False)
    """Rehearse the run on this machine, and stop: nothing is downloaded, and no data is read. With a GPU batches are
    those of the run, without one they are small. With --plan.gpu_gib it says what would not fit on such a card."""
    batch: Annotated[int, Ge(2)] | None = operational(None)
    """Most samples of a batch. Default: without a GPU 4, with one as many as the run has."""
