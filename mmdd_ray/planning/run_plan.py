"""The plan of a run as data."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mmdd_ray.data.inventory import Source
from mmdd_ray.engine.cluster import Devices, actor_resources, pool_size
from mmdd_ray.planning.costs import StageCost


class Planned(Protocol):
    """The parts of a method that a plan looks at."""

    @property
    def job(self) -> str: ...
    @property
    def settings(self) -> type[Any]: ...
    @property
    def look(self) -> Callable[[Any], Source]: ...
    @property
    def needs(self) -> Callable[[Any], Mapping[str, int]]: ...
    @property
    def size(self) -> Callable[[Any, Source], tuple[str, int]]: ...
    @property
    def holds(self) -> Callable[[Any, Source], Mapping[str, float]]: ...
    def costs(self, settings: Any, source: Source) -> Iterator[StageCost]: ...


@dataclass
class StagePlan:
    """A line of the plan."""

    cost: StageCost
    parallel: int
    seconds: float | None
    """Time of all repetitions; None where nothing like it has been measured."""

    gpus_each: float
    """GPUs of each process; 0 without GPUs."""
    peak_bytes: int | None
    """Memory of each process, of its GPU or the machine; None where it is neither measured nor counted."""
    counted: bool = False
    """Whether it was counted, and not measured."""

    @property
    def gpu_hours(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.parallel * self.gpus_each / 3600


@dataclass
class RunPlan:
    """The plan of a run."""

    source: Source
    devices: Devices
    figures: str
    """Where times come from, in words."""
    stages: list[StagePlan]
    driver_bytes: dict[str, float]
    """Bytes that the driver holds in memory at once, by the setting that decides them."""
    scratch_bytes: float
    """Bytes that it keeps in its temporary folder."""
    gpu_hour_price: float
    gpu_gib: float | None = None
    """Memory of the smallest GPU, in GiB, where it is known."""

    @property
    def seconds(self) -> float | None:
        """Time of all stages, one after the other."""
        found = [stage.seconds for stage in self.stages]
        return None if None in found else sum(filter(None, found))

    def as_json(self) -> dict[str, Any]:
        """For the run directory."""
        return {
            "figures": self.figures,
            "seconds": self.seconds,
            "stages": {
                one.cost.stage: {
                    "units": one.cost.units,
                    "unit": one.cost.unit,
                    "parallel": one.parallel,
                    "times": one.cost.times,
                    "seconds": one.seconds,
                    "gpus": one.parallel * one.gpus_each,
                    "gpu_hours": one.gpu_hours,
                    "peak_bytes": one.peak_bytes,
                }
                for one in self.stages
            },
        }


def parallel_of(cost: StageCost, devices: Devices) -> int:
    if cost.leaves_cpu:
        return pool_size(cost.actors, cost.gpus_each, devices)
    each = actor_resources(cost.gpus_each, devices)
    fit = devices.gpus / each["num_gpus"] if each["num_gpus"] else devices.cpus / each["num_cpus"]
    return max(min(int(fit + 1e-6), cost.actors or int(fit)), 1)


def about(devices: Devices) -> str:
    cpus = f"{devices.cpus:g} CPUs"
    return f"{cpus}, {devices.gpus:g} GPUs {'/'.join(devices.gpu_types)}".rstrip() if devices.gpus else cpus
