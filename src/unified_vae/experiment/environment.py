"""What a run ran on: versions and machine, recorded with it."""

from __future__ import annotations

import platform
import sys

from unified_vae.core.version import __version__


def environment() -> dict[str, str]:
    """Versions of what decides the numbers."""
    import torch

    facts = {
        "unified-vae": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.cuda.is_available():
        facts["cuda"] = str(torch.version.cuda)
        facts["gpu"] = torch.cuda.get_device_name()
    if sys.platform == "darwin":
        facts["macos"] = platform.mac_ver()[0]
    return facts
