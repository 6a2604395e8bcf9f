"""What a benchmark ran on, and where its result goes: benchmarks/results/NAME.json, with the machine named.

A benchmark is a script in this folder. Run as `uv run benchmarks/NAME.py` it finds this file beside itself.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What decides speed and numbers; neither the machine's name nor a path on it."""
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "date": datetime.now(UTC).date().isoformat(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
    return facts


def write_result(name: str, payload: dict[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json: the machine first, then `payload`.

    Args:
        name: of the benchmark, without a suffix.
        payload: what JSON can hold.

    Returns:
        The file, which replaces the one of an earlier run.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"benchmark": name, "machine": machine(), **payload}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def _cpu_model() -> str:
    """The processor's name where the system tells it, else its family."""
    system = platform.system()
    if system == "Linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return names[0] if names else platform.machine()
    if system == "Darwin":
        question = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(question, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()
