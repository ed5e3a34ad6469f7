"""What a worker is told and what it answers, as lines of JSON."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from textseg.cohort.jobs import STAGING, Job, Settings
from textseg.errors import says_out_of_memory
from textseg.volume import Modality

Stage = Literal["reading", "waiting", "segmenting", "writing"]
# What the clock of a timeout runs in; waiting for the scan before is nobody's fault.
AT_WORK = ("reading", "segmenting", "writing")
Status = Literal["done", "failed", "memory", "disk", "timeout", "lost", "released"]


@dataclass(frozen=True)
class Task:
    """One job with all that a worker in another process, or on another machine, needs to do it.

    Args:
        model: the model's folder or name.
        key: the job's hash, which its result will carry.
        out: the cohort's folder, absolute.
        begun: when the cohort was, ISO 8601; what its DICOM objects say, so that a job always gives the same.
        staging: where unfinished outputs lie, on the same disk as `out`.
        device: "auto", "cpu" or "cuda".
        threads: of the processor for the network; None for torch's own choice.
        prompts_at_once: fewer take less memory; None for all.
    """

    id: str
    scan: tuple[str, ...]
    slices: tuple[str, ...]
    series: str | None
    volume: int | None
    prompts: tuple[str, ...]
    model: str
    modality: Modality | None
    is_dicom: bool
    hidden: tuple[str, ...]
    key: str
    settings: Settings
    begun: str
    out: str
    staging: str
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    prompts_at_once: int | None = None

    @property
    def folder(self) -> Path:
        """Where the outputs of the job will be."""
        return Path(self.out) / self.id

    def with_less_memory(self) -> Task | None:
        """The same task one prompt at a time, then on the processor; None where neither would help."""
        if self.prompts_at_once is None:
            return replace(self, prompts_at_once=1)
        return replace(self, device="cpu") if self.device != "cpu" else None

    def to_line(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Task:
        document = json.loads(line)
        several = {name: tuple(document[name]) for name in ("scan", "slices", "prompts", "hidden")}
        return cls(**{**document, **several, "settings": Settings.from_json(document["settings"])})


@dataclass(frozen=True)
class Outcome:
    """How a task ended: done, failed for a reason that will not go away, or to be tried again.

    memory: there was too little; disk: it is full; timeout: it took too long; lost: its worker died;
    released: it was not begun, since the run is stopping or its worker had to be replaced.
    """

    id: str
    status: Status
    reason: str = ""
    seconds: float = 0.0

    def to_line(self) -> str:
        return json.dumps({"outcome": asdict(self)})

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Outcome:
        return cls(**document)


def task_of(job: Job, key: str, settings: Settings, model: Path, out: Path, begun: str) -> Task:
    """The task of a job, for a worker that need not know where this process runs."""
    return Task(
        id=job.id,
        scan=tuple(map(str, job.scan)),
        slices=tuple(map(str, job.slices)),
        series=job.series,
        volume=job.volume,
        prompts=job.prompts,
        model=str(model.absolute()),
        modality=job.modality,
        is_dicom=job.is_dicom,
        hidden=job.hidden,
        key=key,
        settings=settings,
        begun=begun,
        out=str(out.absolute()),
        staging=str(out.absolute() / STAGING),
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or the one that led to it, says that no room is left."""
    return any(getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT) for one in _chain(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or the one that led to it, says that memory is missing."""
    return any(map(says_out_of_memory, _chain(error)))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
