"""Several processes that share the gradients of one search: rank 0 drives, the others follow.

Started by ``torchrun`` or, on GPUs, ``accelerate launch``, which tell every process its rank. Rank 0 is the driver
and alone writes; it sends commands, everybody computes their share, and rank 0 collects the numbers. Commands are JSON
and numbers float64, so that nothing is lost on the way. Followers wait for as long as the driver measures; if a
process ends, the connection ends with it, which the others notice at once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import torch
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from vispco.errors import ConfigError, VispcoError

if TYPE_CHECKING:
    from vispco.search.gradient.distillation import Calibration

MEETING = timedelta(minutes=5)
WAIT = timedelta(days=365)  # followers wait while the driver measures
GONE = (
    "a process of the gradient search is gone{}; its own message says why. What was finished is in the database, run "
    "the same command to go on"
)


class Team(Protocol):
    """Processes that compute together; number ``rank`` of ``size``."""

    rank: int
    size: int

    def command(self, what: Mapping[str, Any]) -> None:
        """Have the followers do something, whose numbers :meth:`collect` then brings."""

    def collect(self, rows: Sequence[Sequence[float] | None], width: int) -> list[list[float]]:
        """Rows of ``width`` numbers of which every process has its own, the others being None: all, on rank 0."""


class Alone:
    """No others."""

    rank, size = 0, 1

    def command(self, what: Mapping[str, Any]) -> None:
        return None

    def collect(self, rows: Sequence[Sequence[float] | None], width: int) -> list[list[float]]:
        return [list(row) for row in rows if row is not None]


class Together:
    """The processes of a launcher, over gloo."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._unanswered = False
        try:
            self._meet()
        except (RuntimeError, ValueError, OSError) as error:
            raise ConfigError(
                f"process {self.rank} of {self.size} cannot meet the others: {_one_line(error)}; start all with "
                "torchrun"
            ) from error

    def _meet(self) -> None:
        here = os.environ["MASTER_ADDR"] in ("127.0.0.1", "localhost")
        if here:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
        if not here or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            distributed.init_process_group("gloo", timeout=WAIT)
            return
        # torch would listen on every interface.
        port, listener = int(os.environ["MASTER_PORT"]), None
        if self.rank == 0:
            listener = socket.create_server(("127.0.0.1", port))
        store = TCPStore(
            "127.0.0.1",
            port,
            self.size,
            is_master=self.rank == 0,
            timeout=MEETING,
            master_listen_fd=listener.detach() if listener else None,
        )
        distributed.init_process_group("gloo", store=store, rank=self.rank, world_size=self.size, timeout=WAIT)

    def command(self, what: Mapping[str, Any]) -> None:
        self._unanswered = True
        self._broadcast(json.dumps(what).encode())

    def end(self) -> None:
        """Send the followers home; those that are in the middle of something notice that the connection ends."""
        if not self._unanswered:
            with suppress(VispcoError):
                self.command({"do": "end"})
        self.close()

    def receive(self) -> dict[str, Any]:
        """The driver's next command."""
        received: dict[str, Any] = json.loads(self._broadcast(None))
        return received

    def _broadcast(self, text: bytes | None) -> bytes:
        length = torch.tensor([len(text or b"")])
        with _connected():
            distributed.broadcast(length, 0)
            data = torch.empty(int(length), dtype=torch.uint8)
            if text is not None:
                data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
            distributed.broadcast(data, 0)
        return data.numpy().tobytes()

    def collect(self, rows: Sequence[Sequence[float] | None], width: int) -> list[list[float]]:
        own = torch.zeros(len(rows), width + 1, dtype=torch.float64)
        for number, row in enumerate(rows):
            if row is not None:
                own[number] = torch.tensor([1.0, *row], dtype=torch.float64)
        everybody = [torch.empty_like(own) for _ in range(self.size)] if self.rank == 0 else None
        with _connected():
            distributed.gather(own, everybody, 0)
        self._unanswered = False
        if everybody is None:
            return []
        return [
            next(part[number, 1:] for part in everybody if part[number, 0] == 1).tolist() for number in range(len(rows))
        ]

    def close(self) -> None:
        with suppress(RuntimeError, ValueError):
            distributed.destroy_process_group()


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if is_follower():
            raise SystemExit(1) from None
        raise VispcoError(GONE.format(f" ({_one_line(error)[:120]})")) from None


def launched() -> bool:
    """Whether a launcher started several processes, of which this is one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ


def is_follower() -> bool:
    return launched() and os.environ["RANK"] != "0"


@contextmanager
def leading() -> Iterator[Team]:
    """The team of this driver. Followers end with the block, however it ends.

    Raises:
        VispcoError: a follower died; the launcher, too, stops the others then.
    """
    if not launched():
        yield Alone()
        return
    team = Together()
    before = signal.signal(signal.SIGTERM, _stopped)
    try:
        yield team
    finally:
        signal.signal(signal.SIGTERM, before)
        team.end()


def _stopped(*_: Any) -> None:
    raise VispcoError(GONE.format(", or the launcher was stopped"))


def follow() -> None:
    """Compute what the driver asks for, until it ends. Reads no file but the model and data, and no database.

    Raises:
        SystemExit: the driver is gone; it says why itself.
    """
    from vispco.config import parse_study
    from vispco.evaluation.evaluator import Evaluator
    from vispco.plugin_files import load_sources
    from vispco.problem import Problem
    from vispco.pruning.methods.base import make_method
    from vispco.pruning.schedules import parse_schedule
    from vispco.search.gradient.distillation import Calibration

    local = int(os.environ.get("LOCAL_RANK", "0"))
    team = Together()
    evaluators: dict[str, Evaluator] = {}
    calibration: Calibration | None = None
    try:
        while (command := team.receive())["do"] != "end":
            if command["do"] == "calibrate":
                text = command["study"]
                if text not in evaluators:
                    load_sources(command["plugins"])
                    study = parse_study(text, "the driver's study")
                    if study.model.device == "cuda":
                        torch.cuda.set_device(local)
                    evaluators[text] = Evaluator(Problem(study, text))
                method = make_method(command["method"], command["parameters"])
                calibration = Calibration(
                    evaluators[text],
                    method,
                    command["batch"],
                    command["seed"],
                    samples=command["samples"],
                    micro=command["micro"],
                    recompute=command["recompute"],
                    team=team,
                )
            elif calibration is not None and command["do"] == "loss":
                ratios = torch.tensor(command["ratios"], dtype=torch.float32)
                calibration.share_of_losses(command["micros"], ratios, command["temperature"])
            elif calibration is not None and command["do"] == "pruned":
                calibration.share_of_pruned(command["micros"], [parse_schedule(s) for s in command["schedules"]])
    finally:
        team.close()


def leave() -> NoReturn:
    """End a process of a launcher that has done its part, without the shutdown of Python and its libraries.

    In that, a process that used gloo aborts now and then ("terminate called without an active exception", torch 2.13),
    and the launcher takes a finished run for a failed one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
