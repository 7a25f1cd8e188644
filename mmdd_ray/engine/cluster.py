"""Connecting to Ray, what the cluster has, and how many actors fit.

Ray reads some environment variables when it is imported, so this module imports it inside its functions.
"""

import logging
import math
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from mmdd_ray import config
from mmdd_ray.engine.environment import set_environment, unset, unset_quiet
from mmdd_ray.errors import ClusterError, UserError
from mmdd_ray.storage.remote import TRANSPORT_ERROR
from mmdd_ray.storage.store import Store

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy, Dataset

LOCAL_ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # at Ray's 15, workers starve beside any ordinary process
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # this machine is not a spot instance
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # without a network, workers on this machine find no name for each other
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # Ray Train's 2 s are for clusters; each phase waits for one
}
TRANSPORT_RETRIES = 4
ACTOR_RETRIES = 3  # without one that starts in between; what a constructor raises counts, too
MAX_SOCKET_PATH = 107  # bytes, a limit of the operating system
SESSION_PATH = len("/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.0")

_growth = {"CPU": 0, "GPU": 0}  # what the connected cluster may grow to
_shown = {"logs": False}  # whether Ray's own logs are

_NATIVE_NOISE = (
    # Ray Data hands classes to its actors through the object store, and Ray's native code calls that an error
    "has constructor arguments in the object store and max_restarts > 0",
    # a machine without a network
    "Failed to determine local IP via external connectivity",
)
_FILTER = (
    "import sys\n"
    "noise = [text.encode() for text in sys.argv[1:]]\n"
    "for line in iter(sys.stdin.buffer.readline, b''):\n"
    "    if not any(text in line for text in noise):\n"
    "        sys.stdout.buffer.write(line); sys.stdout.buffer.flush()\n"
)


@dataclass(frozen=True)
class Devices:
    """CPUs and GPUs that the cluster has, or may grow to when it scales by itself."""

    cpus: float
    gpus: float
    gpu_types: tuple[str, ...]
    """Ray's names of the accelerators, e.g. ("H200",)."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class ActorResources(TypedDict):
    """Resources of one actor or task, under the names that Ray's own functions give them."""

    num_cpus: float
    num_gpus: float


class ActorPool(ActorResources):
    """The same for a pool of actors in ``map_batches``."""

    compute: "ActorPoolStrategy"


def connect(run: config.Run) -> None:
    """Joins the cluster of ``run.ray_address`` or ``RAY_ADDRESS``, or else starts a local Ray.

    ``ray job submit`` sets ``RAY_ADDRESS``. Does nothing when this process is connected already. A cluster may grow to
    ``run.max_cpus`` and ``run.max_gpus``, which only its user knows: Ray's autoscalers do not tell.

    Raises ``ValueError`` when there is no cluster at the address.
    """
    address = run.ray_address or os.environ.get("RAY_ADDRESS")
    if address and "://" in address:
        raise UserError(
            f"run.ray_address={address} is no host:port; join the cluster from one of its machines with auto "
            "or host:port, or send the job there with `ray job submit`"
        )
    set_environment()
    _shown["logs"] = run.verbose
    if run.verbose:
        unset_quiet()
    import ray

    if ray.is_initialized():
        return
    # Hides warnings of Ray's actors: without a dashboard, Ray Train's cleaner repeats one every second.
    logs: dict[str, Any] = {"logging_level": "INFO"}
    if not run.verbose:
        logs = {"logging_level": "WARNING", "logging_config": ray.LoggingConfig(log_level="ERROR")}
        _drop_native_noise()
    if address:
        try:
            if address != "auto":
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=5).close()  # Ray itself tries for minutes
            ray.init(address=address, **logs)
        except (ValueError, OSError) as error:
            raise UserError(
                f"run.ray_address={address}: no Ray cluster answers there ({error}); give auto or host:port, "
                "or unset it (and RAY_ADDRESS) to use this machine alone"
            ) from error
        _growth.update(CPU=run.max_cpus or 0, GPU=run.max_gpus or 0)
    else:
        for name, value in LOCAL_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # A local Ray listens on all interfaces and so asks for a token. Without this one it would write one
        # under HOME, or fail where HOME is read-only; and it warns that it asks.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        _start_local(run, logs)
    _configure_ray_data(run)


def _start_local(run: config.Run, logs: dict[str, Any]) -> None:
    """Starts a local Ray; on a busy machine its agent may miss the 15 s that Ray gives it, so it has another try.

    Raises:
        ClusterError: Ray did not come up.
    """
    import ray

    for last in (False, True):
        try:
            # Ray then gives each process a thread for each of its CPUs. Sums over more threads round otherwise, and
            # the bytes of a set would depend on the shell that it was made from.
            with unset("OMP_NUM_THREADS"):
                ray.init(
                    address="local",  # a stale address file of another Ray would make a plain init join that
                    num_cpus=run.num_cpus,
                    object_store_memory=run.object_store_mib * 2**20,
                    include_dashboard=False,
                    _temp_dir=_short_temp_dir(),
                    **logs,
                )
            return
        except Exception as error:
            if "timed out during startup" not in str(error):  # a bare Exception, known by its text alone
                raise
            if last:
                raise ClusterError(
                    "Ray did not start on this machine within a minute, twice; it may be too busy"
                ) from error


def shows_logs() -> bool:
    """Whether this process was asked to show Ray's own logs."""
    return _shown["logs"]


@contextmanager
def connected(run: config.Run, store: Store) -> Iterator[Devices]:
    """Like ``connect``, gives the devices, and leaves the cluster (ends a local one) with the block.

    Raises ``UserError`` as well when ``store`` is a folder that not all machines of the cluster see.
    """
    set_environment()
    import ray

    had_ray = ray.is_initialized()
    connect(run)
    try:
        if store.is_local:
            _check_shared(store.uri)
        yield devices()
    finally:
        if not had_ray:
            ray.shutdown()


def _check_shared(folder: str) -> None:
    """Actors write on the machines they run on, and the driver reads what they wrote."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    looks = ray.remote(_is_folder)
    strategies = [NodeAffinitySchedulingStrategy(node, soft=False) for node in others]
    seen = ray.get([looks.options(num_cpus=0, scheduling_strategy=s).remote(folder) for s in strategies])
    if not all(seen):
        raise UserError(
            f"run.dir={folder} is not seen by {seen.count(False)} of the cluster's {len(others) + 1} machines; "
            "set run.dir to an s3:// URI or to a folder that they all share"
        )


def _is_folder(path: str) -> bool:
    return Path(path).is_dir()


def devices() -> Devices:
    """CPUs and GPUs of the connected cluster, or of the largest that ``connect`` was told it may become."""
    import ray

    now = ray.cluster_resources()
    types = sorted(
        name.removeprefix("accelerator_type:") for name in now if name.startswith("accelerator_type:")
    )
    return Devices(
        cpus=max(now.get("CPU", 0.0), _growth["CPU"]),
        gpus=max(now.get("GPU", 0.0), _growth["GPU"]),
        gpu_types=tuple(types),
    )


def check_machines(settings: Any) -> None:
    """Compares the GPUs of each actor with those of the machines, unless other machines may come.

    Raises:
        UserError: An actor fits on none of them; Ray would wait for ever.
    """
    import ray

    if _growth["GPU"] > 0:
        return
    most = max(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
    for section in fields(settings):
        part = getattr(settings, section.name)
        for name, gpus in vars(part).items() if is_dataclass(part) else ():
            if name.startswith("gpus_per_") and gpus > most > 0:
                raise UserError(
                    f"{section.name}.{name}={gpus:g}, but no machine of this cluster has more than {most:g} GPUs; "
                    f"lower {section.name}.{name}, or add larger machines"
                )


def missing() -> str:
    """Tasks and actors that have been asked for and have no room, in words; empty if there are none.

    Tells those that wait for others to end from those that no machine of this cluster can hold.
    """
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # of native code
    from ray.autoscaler.v2.sdk import get_cluster_resource_state  # what `ray status` asks
    from ray.exceptions import RpcError

    try:
        state = get_cluster_resource_state(GcsClient(address=ray.get_runtime_context().gcs_address))
    except RpcError:  # the head is busy; there is another time
        return ""
    requests = [([one.request], one.count) for one in state.pending_resource_requests]
    requests += [(list(gang.requests), 1) for gang in state.pending_gang_resource_requests]
    has = ray.cluster_resources()
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    later: Counter[str] = Counter()
    never: Counter[str] = Counter()
    for gang, count in requests:
        bundles = [
            {kind: one.resources_bundle[kind] for kind in ("CPU", "GPU") if kind in one.resources_bundle}
            for one in gang
        ]
        fits = all(any(_holds(machine, bundle) for machine in machines) for bundle in bundles)
        fits &= _holds(has, sum(map(Counter, bundles), Counter()))  # a gang has to run at once
        for bundle in filter(None, bundles):
            shape = " and ".join(f"{amount:g} {kind}" for kind, amount in bundle.items())
            (later if fits else never)[shape] += count
    if not later and not never:
        return ""
    what = ", ".join(f"{count} x {shape}" for shape, count in (never or later).items())
    size = f"this cluster, which has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs now"
    return f"machines: no room for {what} on {size}, in use or not" if never else f"a turn: {what} on {size}"


def _holds(resources: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    return all(resources.get(kind, 0) >= amount for kind, amount in wanted.items())


def this_machine(run: config.Run) -> Devices:
    """CPUs and GPUs that a local Ray would have here; starts none."""
    set_environment()
    from ray._private.accelerators import get_accelerator_manager_for_resource  # what Ray itself asks
    from ray._private.utils import get_num_cpus

    manager = get_accelerator_manager_for_resource("GPU")
    gpus = manager.get_current_node_num_accelerators() if manager else 0
    kind = manager.get_current_node_accelerator_type() if manager and gpus else None
    cpus = float(run.num_cpus or get_num_cpus())
    return Devices(cpus=cpus, gpus=float(gpus), gpu_types=(kind,) if kind else ())


def actor_resources(gpus_per_actor: float, has: Devices | None = None) -> ActorResources:
    """``num_cpus`` and ``num_gpus`` of one actor, for ``map_batches`` or ``.options``.

    The cluster is the connected one, unless ``has`` describes another.

    Without GPUs in the cluster an actor takes one CPU. The CPU share shrinks where the cluster has few CPUs,
    so that actors on every GPU leave one free: Ray Data waits for ever when a pool holds all CPUs and a read
    task needs one.
    """
    has = has or devices()
    if gpus_per_actor > 0 and has.gpus > 0:
        actors = max(has.gpus / gpus_per_actor, 1)
        return {"num_cpus": _cpu_share(has.cpus, actors), "num_gpus": gpus_per_actor}
    return {"num_cpus": _cpu_share(has.cpus, 1), "num_gpus": 0}


def pool_size(actors: int | None, gpus_per_actor: float, has: Devices | None = None) -> int:
    """How many of the wanted actors (``None``: all that fit) may run and leave one CPU free; at least 1."""
    has = has or devices()
    each = actor_resources(gpus_per_actor, has)
    fit = (has.cpus - 1) / each["num_cpus"]
    if each["num_gpus"]:
        fit = min(fit, has.gpus / each["num_gpus"])
    fit = max(math.floor(fit + 1e-6), 1)
    return fit if actors is None else min(actors, fit)


def actor_pool(settings: config.Pool) -> ActorPool:
    """Arguments of ``map_batches`` for a pool of as many of the wanted actors as fit beside the readers."""
    from ray.data import ActorPoolStrategy

    most = pool_size(settings.max_actors, settings.gpus_per_actor)
    compute = ActorPoolStrategy(min_size=min(settings.min_actors, most), max_size=most)
    return {"compute": compute, **actor_resources(settings.gpus_per_actor)}


def retry_faults(dataset: "Dataset") -> None:
    """Has Ray run tasks again that failed with a ``StorageError``, and replace actors that were lost as they started.

    It does the latter for actors that have started, but would end the whole stage for a machine that is lost earlier.
    """
    context = dataset.context  # of this dataset and what is derived from it, not of the whole process
    context.max_consecutive_actor_init_deaths = max(context.max_consecutive_actor_init_deaths, ACTOR_RETRIES)
    if isinstance(context.retried_map_errors, list):
        context.retried_map_errors = [*context.retried_map_errors, TRANSPORT_ERROR]
    elif not context.retried_map_errors:
        context.retried_map_errors = [TRANSPORT_ERROR]
    context.max_map_retries = max(context.max_map_retries, TRANSPORT_RETRIES)


def _cpu_share(cpus: float, actors: float) -> float:
    """CPUs of each of ``actors`` when one CPU stays free: at most 1, and half of a lone CPU."""
    share = (cpus - 1) / actors if cpus > 1 else 0.5 / actors
    return min(1.0, max(math.floor(share * 100) / 100, 0.01))


def _short_temp_dir() -> str | None:
    """Folder for Ray's sockets, where its default would make their paths too long for the system."""
    default = os.environ.get("RAY_TMPDIR", tempfile.gettempdir())
    return None if len(default) + SESSION_PATH <= MAX_SOCKET_PATH else f"/tmp/ray-{os.getuid()}"


def _configure_ray_data(run: config.Run) -> None:
    """Leaves progress lines to our stages, and errors to whoever catches the exception."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.execution_no_progress_timeout_s = 60 * run.stall_minutes
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # so that a ValueError of a worker arrives as one
    if run.verbose:
        return
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that they are off
    for module in ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state"):
        logging.getLogger(module).setLevel(
            logging.CRITICAL
        )  # they print the exception that is raised as well


@cache  # once per process
def _drop_native_noise() -> None:
    """Sends what native code writes to this process's stderr through a filter for known false alarms.

    Python's ``sys.stderr`` stays on the terminal or file it has. The filter is a process of its own, so it
    still delivers the last words of a driver that crashes in native code.
    """
    terminal = os.dup(2)
    if sys.stderr is sys.__stderr__:
        sys.stderr = os.fdopen(terminal, "w", buffering=1, errors="backslashreplace")
    # in a session of its own, so that Ctrl-C does not end it; -S -E: the bare standard library starts fast
    command = [sys.executable, "-S", "-E", "-c", _FILTER, *_NATIVE_NOISE]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=terminal, start_new_session=True)
    assert process.stdin is not None
    os.dup2(process.stdin.fileno(), 2)
    process.stdin.close()
