"""A walk as a movie, there and back: GIF and WebP by Pillow, MP4 where PyAV is installed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unified_vae.core.durable import STAGE_PREFIX, discard, reason
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.experiment.using.outputs import refuse_other_suffix

SUFFIXES = (".gif", ".webp", ".mp4")
SMALLEST = 256  # pixels: smaller pictures are enlarged by a whole factor, so that a movie can be looked at
NO_PYAV = "an MP4 needs the package av: uv sync --extra video; or name a .gif or .webp"


def check_movie(path: Path) -> None:
    """Refuse what cannot be written before anything is computed; raises ConfigError or EnvironmentProblem."""
    refuse_other_suffix(path, SUFFIXES, "--movie")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("av") is None:
        raise EnvironmentProblem(NO_PYAV)


def write_movie(pictures: Sequence[Image.Image], path: Path, frames_a_second: int) -> Path:
    """Write the pictures from the first to the last and back, in a circle; returns `path`.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    frames = [_enlarged(picture) for picture in [*pictures, *pictures[-2:0:-1]]]
    stage = path.with_name(f"{STAGE_PREFIX}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".mp4":
            _write_mp4(frames, stage, frames_a_second)
        else:
            kind, rest = path.suffix[1:].upper(), frames[1:]
            milliseconds = round(1000 / frames_a_second)
            frames[0].save(stage, kind, save_all=True, append_images=rest, duration=milliseconds, loop=0)
        return stage.replace(path)
    except OSError as problem:
        raise EnvironmentProblem(f"{path} cannot be written ({reason(problem)}): name another place") from problem
    finally:
        discard(stage)


def _enlarged(picture: Image.Image) -> Image.Image:
    zoom = math.ceil(SMALLEST / picture.height)
    return picture.convert("RGB").resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def _write_mp4(frames: Sequence[Image.Image], path: Path, frames_a_second: int) -> None:
    """H.264 with colours halved in both directions, which every player takes; sides are even for that."""
    import av

    width, height = (side + side % 2 for side in frames[0].size)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=frames_a_second)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            pixels = np.asarray(frame.resize((width, height), Image.Resampling.NEAREST))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
