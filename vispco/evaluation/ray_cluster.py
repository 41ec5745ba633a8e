"""Ray, started on this machine or joined elsewhere. Nothing here imports it before it is asked for."""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import secrets
import shutil
import socket
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from vispco.errors import ConfigError

OBJECT_STORE = 128 << 20  # units and their results are small
ALWAYS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}
STARTED_HERE = {
    **ALWAYS,
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's own switch for "this machine only": every port that it opens is bound to the loopback interface.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "1",
    # Workers have the priority of who started them; Ray's default is 15 below.
    "RAY_worker_niceness": "0",
}


@dataclass(frozen=True)
class Room:
    """What one worker takes: ``threads`` of a CPU and, on GPUs, ``gpus``."""

    threads: int = 1
    gpus: int = 0


class Cluster:
    """A connection to Ray. ``close`` ends it and, if it was started here, Ray with all its processes.

    Args:
        address: of a running cluster, ``host:port`` or ``auto``; None: start Ray on this machine.
        workers: how many will be asked for; needed to start Ray here, otherwise the most to take.
        device: the study's; decides whether a worker takes a GPU.

    Raises:
        ConfigError: Ray is not installed, cannot be reached, or has no room for a single worker.
    """

    def __init__(self, address: str | None, workers: int | None, device: str, threads: int = 1) -> None:
        settings = dict(STARTED_HERE if address is None else ALWAYS)
        if address is None and "ray" not in sys.modules:
            # Other people of this machine reach its loopback interface, too.
            settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        self.ray = _import_ray()
        self._folder: str | None = None
        on_gpu = device.startswith("cuda")
        if address is None:
            assert workers is not None
            self._start(workers * threads)
        else:
            self._join(address)
        resources = self.ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        if device == "auto":
            on_gpu = gpus > 0
        self.room = Room(threads, int(on_gpu))
        fits = gpus if on_gpu else math.floor(resources.get("CPU", 0) / threads)
        where = "this machine has" if address is None else f"the cluster at {address!r} has"
        if fits < 1 or (address is None and workers is not None and workers > fits):
            self.close()
            kind = "GPU" if on_gpu else "CPU"
            raise ConfigError(
                f"{workers or 1} workers on device {device!r} need a {kind} each, and {where} {max(fits, 0)}; "
                "ask for fewer workers, or set model.device"
            )
        self.workers = min(fits, workers or fits)

    def _start(self, cpus: int) -> None:
        self._folder = tempfile.mkdtemp(prefix="vispco-")
        # Read when ray is imported, which may have been before.
        constants = self.ray._private.ray_constants
        clusters, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
        try:
            self.ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE,
                _node_ip_address="127.0.0.1",
                _temp_dir=self._folder,
                **_quiet(),
            )
            self._mute()
        except Exception as error:
            self.close()
            raise ConfigError(f"cannot start Ray on this machine: {_one_line(error)}; run without --workers") from error
        finally:
            constants.ENABLE_RAY_CLUSTER = clusters
        address = self.ray.util.get_node_ip_address()
        if not ipaddress.ip_address(address).is_loopback:
            self.close()
            raise ConfigError(
                f"Ray would listen on {address}, not on this machine alone; start a cluster and use --ray"
            )

    def _join(self, address: str) -> None:
        try:
            if address != "auto":
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            self.ray.init(address=address, **_quiet())
        except Exception as error:
            self.close()
            raise ConfigError(
                f"no Ray cluster at {address!r}: {_one_line(error)}; give host:port or auto, start one with: ray start "
                "--head, and if it asks for a token, set RAY_AUTH_MODE=token"
            ) from error
        self._mute()

    def _mute(self) -> None:
        """Ray tells about dead workers on stdout, which is for results; we tell it ourselves."""
        self.ray._private.worker._worker_logs_enabled = False

    def close(self) -> None:
        self.ray.shutdown()
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _quiet() -> dict[str, Any]:
    return {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "vispco"}


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ConfigError("workers need Ray, which is not installed; run: pip install 'vispco[ray]'") from None
    if ray.is_initialized():
        raise ConfigError("this process is connected to Ray already; call ray.shutdown() first")
    return ray


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
