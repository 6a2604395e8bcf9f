"""The scripts of docs/exporting.md run as written, on a small model, in processes that do not load unified_vae."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from unified_vae.config.model import ConvConfig
from unified_vae.export.formats import parts, write_onnx
from unified_vae.models.build import build_model

PAGE = (Path(__file__).parents[2] / "docs" / "exporting.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    model = build_model(ConvConfig(image_size=16, latents=256, base_channels=4, channels=3), seed=0).eval()
    decoder = next(part for part in parts(model) if part.name == "decoder")
    for kind in ("onnx", "torch"):
        (folder / "runs" / "NAME" / "exports" / kind).mkdir(parents=True)
    write_onnx(folder / "runs" / "NAME" / "exports" / "onnx" / "decoder.onnx", decoder, {})
    torch.export.save(decoder.traced(), folder / "runs" / "NAME" / "exports" / "torch" / "decoder.pt2")
    return folder


def test_the_scripts_run_as_written(home):
    assert len(SCRIPTS) == 2 and len([line for line in SCRIPTS[0].splitlines() if line]) <= 10
    end = "\nimport sys\nassert 'unified_vae' not in sys.modules\n"
    for script in SCRIPTS:
        subprocess.run([sys.executable, "-c", script + end], check=True, cwd=home)
    assert Image.open(home / "drawn.png").size == (8 * 16, 16)
