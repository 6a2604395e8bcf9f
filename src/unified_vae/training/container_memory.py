"""What the memory limit of a Linux container leaves. psutil asks the machine, which may have far more."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_FORMS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
"""Limit, use, details and the name among them of what files hold and is given back on demand, in version 2 and 1."""


def left_in_container(root: Path = ROOT) -> int | None:
    """Bytes below the limit; None where there is no limit.

    Use counts the pages of files that were read or written and not looked at since. The system takes these back as soon
    as memory is asked for, so they are free, as they are for Kubernetes (its "working set"). Without this, a container
    that has just packed its images would seem full.
    """
    for limit, used, details, reclaimable in _FORMS:
        try:
            most, now = int((root / limit).read_text()), int((root / used).read_text())
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
        return max(most - now + _entry(root / details, reclaimable), 0)
    return None


def _entry(file: Path, name: str) -> int:
    """A number of a file of "name number" lines; 0 where it is not there."""
    try:
        rows = dict(line.split() for line in file.read_text().splitlines())
        return int(rows.get(name, 0))
    except (OSError, ValueError):
        return 0
