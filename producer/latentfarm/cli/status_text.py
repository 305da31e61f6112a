"""A batch's status as text."""

from __future__ import annotations

from latentfarm.batch_status import BatchStatus
from latentfarm.cli.output import format_duration


def format_progress(status: BatchStatus) -> str:
    """Return the progress of a batch in one line."""
    if status.cancelled:
        # a count of ended jobs would read as if they were done
        found = [format_ends(status)]
    else:
        found = [f"{status.ended}/{status.total}"]
        if status.drafted:
            found.append(f"{status.drafted} drafted")
        if status.failed:
            found.append(format_failures(status))
    if status.images_per_s is not None:
        found.append(f"{status.images_per_s:.2f} images/s")
    if (left := format_eta(status)) != "-":
        found.append(f"ETA {left}")
    if status.paused:
        found.append(f"paused: {status.paused}")
    return "  ".join(found)


def format_ends(status: BatchStatus) -> str:
    """Return how the jobs have ended, such as ``4 of 10 jobs done, 1 failed, 5 cancelled``."""
    ends = [f"{status.done} of {status.total} jobs done"]
    if status.drafted:
        ends.append(f"{status.drafted} drafted")
    if status.failed:
        ends.append(format_failures(status))
    if status.cancelled:
        ends.append(f"{status.cancelled} cancelled")
    return ", ".join(ends)


def format_failures(status: BatchStatus) -> str:
    """Return the number of failed jobs by code, such as ``7 failed (non_finite 5, oom 2)``; empty if none failed."""
    if not status.failed:
        return ""
    codes = sorted(status.errors.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{code} {count}" for code, count in codes)
    return f"{status.failed} failed" + (f" ({listed})" if listed else "")


def format_truncations(status: BatchStatus) -> str:
    """Return the number of truncated prompts and the cure; empty if none was truncated."""
    if not status.truncated:
        return ""
    prompts = "1 prompt was" if status.truncated == 1 else f"{status.truncated} prompts were"
    return f"{prompts} truncated to what the model reads; with CLIP alone, --prompt-syntax a1111 encodes longer ones"


def format_rate(status: BatchStatus) -> str:
    """Return the images per second, or a dash."""
    return "-" if status.images_per_s is None else f"{status.images_per_s:.2f}"


def format_eta(status: BatchStatus) -> str:
    """Return the remaining time, or a dash if it is unknown, as in a pause."""
    return "-" if status.eta_s is None or status.is_final or status.paused else format_duration(status.eta_s)
