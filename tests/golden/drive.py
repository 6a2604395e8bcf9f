"""Run the golden cases with the code of one source tree, and write what came out as JSON.

    python -m tests.golden.drive TREE WORK RESULT.json [CASE...]

A command is a fork of this process, which has imported torch and other packages already, and never the package that is
looked at. It runs the tree's own train.py, train_unified.py and the entry point that its pyproject.toml names.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import socket
import sys
import time
import tomllib
import traceback
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.cases import CASES, METRICS, RENAMED, Case, Settings

PRELOADED = (
    *("torch", "torch.utils.tensorboard", "safetensors.torch", "pydantic", "typer", "rich.progress", "psutil"),
    *("jinja2", "matplotlib.figure", "matplotlib.backends.backend_svg"),
)
FIXTURES = Path(__file__).parent / "fixtures"
SECONDS = 300  # for one command; far beyond what any takes
PROCESSES = multiprocessing.get_context("fork")

PRESETS = {
    "--loss-preset": "mse_l1",
    "--training-preset": "standard_training",
    "--model-preset": "small",
    "--dataset-preset": "full",
    "--augment-preset": "none",
}
"""What a case takes where it names none, whatever a tree's defaults are."""


class CaseFailed(Exception):
    """A command did not do what it was to do; the sentence has the end of what it printed."""


class Driver:
    """Does what a case asks for in a folder of its own (`cases.Commands`).

    Args:
        tree: the source tree whose code is run.
        renames: settings known to have their later names in this tree; those that turn up are added.
    """

    def __init__(self, tree: Path, folder: Path, weights: Path, renames: set[str]) -> None:
        self.tree, self.folder, self.weights, self.renames = tree, folder, weights, renames
        self.commands = 0

    def train(
        self, settings: Settings, *options: str, run: str = "run", ranks: int = 1, killed_after: int | None = None
    ) -> None:
        """Train, with the settings in the words of the tree."""
        script = "train.py" if "--mode" in options else "train_unified.py"
        data = () if "--data" in options else ("--data", "images.npy")
        words = [script, *options, *data, "--run-dir", run, "--device", "cpu"]
        if "--precision" not in options:
            words += ["--precision", "fp32"]
        if script == "train_unified.py":
            for option, preset in PRESETS.items():
                words += [] if option in options else [option, preset]
        leaves = dict(_leaves(settings))
        while True:
            assigned = [word for path, value in leaves.items() for word in ("--set", f"{self._path(path)}={value}")]
            codes, said = self._run(words + [self._filled(word) for word in assigned], ranks, killed_after)
            refused = {old for old in RENAMED if old not in self.renames and re.search(rf"\b{re.escape(old)}\b", said)}
            if set(codes) != {2} or not refused:
                break
            self.renames |= refused
        if killed_after is None:
            self._expect(codes == [0] * ranks, codes, said)
        else:
            self._expect(codes == [-signal.SIGKILL], codes, f"it was to be killed after step {killed_after}\n{said}")

    def verb(self, *words: str) -> None:
        """Run `unified-vae`."""
        for number, word in enumerate(words):
            if number and words[number - 1] in ("--output", "--sheet"):
                (self.folder / word).parent.mkdir(exist_ok=True)
        codes, said = self._run(["unified-vae", *words])
        self._expect(codes == [0], codes, said)

    def python(self, code: str, **constants: str) -> None:
        """Run lines of Python, after lines that set constants."""
        lines = [f"{name} = {value!r}" for name, value in constants.items()]
        codes, said = self._run(["python", "\n".join([*lines, code])])
        self._expect(codes == [0], codes, said)

    def same(self, one: str, other: str) -> None:
        """Two runs have to end in the same bits."""
        first, second = (collect(self.folder, (run,)) for run in (one, other))

        def without_run(groups: dict[str, Any]) -> dict[str, Any]:
            return {group.partition("/")[2]: members for group, members in groups.items()}

        for part in ("tensors", "numbers"):
            if without_run(first[part]) != without_run(second[part]):
                raise CaseFailed(f"{one} and {other} did not end with the same {part}")

    def _path(self, path: str) -> str:
        for old in self.renames:
            if path == old or path.startswith(old + "."):
                return RENAMED[old] + path[len(old) :]
        return path

    def _filled(self, word: str) -> str:
        for name in ("vgg", "alex"):
            word = word.replace(f"{{{name}}}", str(self.weights / f"{name}.pth"))
        return word

    def _run(self, words: list[str], ranks: int = 1, killed_after: int | None = None) -> tuple[list[int], str]:
        """Exit codes of a command's processes, and what they printed."""
        self.commands += 1
        together: dict[str, str] = {}
        if ranks > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            together = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes, logs = [], []
        for rank in range(ranks):
            place = {**together, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            logs.append(self.folder / f"command-{self.commands}-{rank}.txt")
            arguments = (self.tree, self.folder, words, place, logs[-1], killed_after)
            processes.append(PROCESSES.Process(target=_enter, args=arguments))
            processes[-1].start()
        for process in processes:
            process.join(SECONDS)
            if process.is_alive():
                process.kill()
                raise CaseFailed(f"{words[0]} did not end within {SECONDS} s; see {logs[0]}")
        return [process.exitcode for process in processes], "".join(log.read_text() for log in logs)

    def _expect(self, condition: bool, codes: list[int], said: str) -> None:
        if not condition:
            raise CaseFailed(f"exit codes {codes}: {said[-1500:]}")


def _leaves(settings: Settings, before: str = "") -> list[tuple[str, str]]:
    """Dotted paths of nested settings, each with its value as `--set` takes it."""
    leaves: list[tuple[str, str]] = []
    for name, value in settings.items():
        path = f"{before}{name}"
        if isinstance(value, dict):
            leaves += _leaves(value, f"{path}.")
        else:
            leaves.append((path, value if isinstance(value, str) else json.dumps(value)))
    return leaves


def _enter(
    tree: Path, folder: Path, words: list[str], place: dict[str, str], log: Path, killed_after: int | None
) -> None:
    """A command's own process."""
    os.chdir(folder)
    os.environ.update(place)
    out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if killed_after is not None:

        def kill(event: str, arguments: tuple[Any, ...]) -> None:
            name = re.search(r"step-(\d+)$", str(arguments[1])) if event == "os.rename" else None
            if name and int(name[1]) > killed_after:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
    sys.argv = words
    if words[0] == "unified-vae":
        scripts = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["scripts"]
        module, _, function = scripts["unified-vae"].partition(":")
        raise SystemExit(getattr(importlib.import_module(module), function)())
    if words[0] == "python":
        exec(compile(words[1], "<golden>", "exec"), {})
        return
    sys.argv[0] = str(tree / words[0])
    runpy.run_path(sys.argv[0], run_name="__main__")


def collect(folder: Path, parts: tuple[str, ...] = ()) -> dict[str, Any]:
    """What lies in the folders below: hashes of tensors and pictures without their names, and the metrics.

    Args:
        parts: the folders to look into; all unless given.

    Returns:
        `tensors` and `pictures`: for groups such as `run/checkpoints` and `run/model`, sorted hashes. `sizes`: the root
        mean square over a group's tensors. `numbers`: for each run, the rows of its metrics.jsonl.
    """
    from PIL import Image

    arrays: dict[str, list[np.ndarray]] = defaultdict(list)
    pictures: dict[str, list[str]] = defaultdict(list)
    numbers: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if len(inside.parts) < 2 or (parts and inside.parts[0] not in parts):
            continue
        group = "/".join(inside.parts[:2] if len(inside.parts) > 2 else inside.parts[:1])
        match path.suffix:
            case ".safetensors":
                arrays[group] += read_tensors(path)
            case ".npy":
                arrays[group].append(np.load(path))
            case ".png":
                pictures[group].append(_hash(np.asarray(Image.open(path))))
            case ".jsonl" if path.name == "metrics.jsonl":
                numbers[group] = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        "tensors": {group: sorted(map(_hash, members)) for group, members in arrays.items()},
        "sizes": {group: _root_mean_square(members) for group, members in arrays.items()},
        "pictures": {group: sorted(hashes) for group, hashes in pictures.items()},
        "numbers": numbers,
    }


def read_tensors(path: Path) -> list[np.ndarray]:
    """The tensors of a safetensors file; of bfloat16, which NumPy has not, the bytes."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(path).values()
    return [(each.view(torch.int16) if each.dtype == torch.bfloat16 else each).numpy() for each in tensors]


def _hash(array: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:20]
    return f"{array.dtype}[{'x'.join(map(str, array.shape))}] {digest}"


def _root_mean_square(arrays: list[np.ndarray]) -> float:
    squares = [np.square(array.astype(np.float64)) for array in arrays if array.dtype.kind == "f"]
    return float(np.sqrt(sum(each.sum() for each in squares) / max(1, sum(each.size for each in squares))))


def figures(folder: Path, results: dict[str, Any]) -> dict[str, float]:
    """The few numbers of a case that are stored: the last metrics of its run, the norm of the model's weights, and the
    size of what was made with the model.
    """
    chosen: dict[str, float] = {}
    for name, (split, names) in METRICS.items():
        row = [row for row in results["numbers"]["run"] if row["split"] == split][-1]
        chosen.update((name, row[each]) for each in names if each in row)
    weights = read_tensors(folder / "run" / "model" / "model.safetensors")
    chosen["weight norm"] = float(np.sqrt(sum(np.square(array.astype(np.float64)).sum() for array in weights)))
    made = {group: size for group, size in results["sizes"].items() if group in ("api", "latents", "exported")}
    return {**chosen, **made}


def write_images(path: Path, count: int, size: int, channels: int) -> None:
    """Pictures with a shade, a disc and stripes, all of them random: more degrees of freedom than the models have."""
    rng = np.random.default_rng(11)
    y, x = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    pictures = np.empty((count, size, size, channels), np.uint8)
    for picture in pictures:
        slope, middle, phase = rng.uniform(-0.3, 0.3, 2), rng.uniform(-0.5, 0.5, 2), rng.uniform(0, 6)
        disc = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 < rng.uniform(0.1, 0.4)
        plane = 0.5 + slope[0] * x + slope[1] * y + 0.08 * np.sign(np.sin(5 * x + phase))
        tint, spot = rng.uniform(0.7, 1, channels), rng.uniform(-0.4, 0.4, channels)
        shaded = plane[..., None] * tint + disc[..., None] * spot
        picture[:] = (255 * shaded.clip(0, 1)).round()
    np.save(path, pictures)


def write_weights(folder: Path) -> None:
    """Files of the form of torchvision's VGG-16 and AlexNet, with random convolutions (He et al. 2015)."""
    import torch

    vgg, last = {}, 3
    for index, width in zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (64,) * 2 + (128,) * 2 + (256,) * 3 + (512,) * 6, strict=True
    ):
        vgg[index], last = (width, last, 3, 3), width
    alex = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    folder.mkdir(parents=True)
    for name, shapes in (("vgg", vgg), ("alex", alex)):
        generator, weights = torch.Generator().manual_seed(0), {}
        for index, shape in shapes.items():
            spread = (2 / torch.Size(shape[1:]).numel()) ** 0.5
            weights[f"features.{index}.weight"] = spread * torch.randn(shape, generator=generator)
            weights[f"features.{index}.bias"] = 0.1 * torch.randn(shape[:1], generator=generator)
        torch.save({key: value.half() for key, value in weights.items()}, folder / f"{name}.pth")


def run_case(case: Case, tree: Path, work: Path, renames: set[str]) -> dict[str, Any]:
    """One case in a folder of its own; an entry `failed` where a command did not do what it was to do."""
    begun = time.perf_counter()
    folder, weights = work / case.name, work / "weights"
    folder.mkdir(parents=True)
    if case.fixture is None:
        write_images(folder / "images.npy", *case.images)
    else:
        shutil.copytree(FIXTURES / case.fixture, folder, dirs_exist_ok=True)
    if case.name in ("vgg", "lpips") and not weights.exists():
        write_weights(weights)
    try:
        case.work(Driver(tree, folder, weights, renames))
        results = collect(folder)
        results["figures"] = figures(folder, results)
    except CaseFailed as problem:
        results = {"failed": str(problem)}
    except Exception:  # shown in the table, so that the other cases are compared all the same
        results = {"failed": traceback.format_exc(limit=-3)}
    return {**results, "seconds": time.perf_counter() - begun}


def drive(tree: Path, work: Path, names: list[str]) -> dict[str, Any]:
    """All cases with the code of a tree."""
    origin = importlib.util.find_spec("unified_vae")
    if origin is None or origin.origin is None or tree.resolve() not in Path(origin.origin).resolve().parents:
        raise SystemExit(f"drive.py: set PYTHONPATH to {tree / 'src'}, so that its code is the one that runs")
    for name in PRELOADED:
        importlib.import_module(name)
    shutil.rmtree(work, ignore_errors=True)
    renames: set[str] = set()
    results = {name: run_case(CASES[name], tree, work, renames) for name in names or CASES}
    return {"cases": results, "renamed": sorted(renames)}


def main() -> int:
    """Write the results of the cases named, or of all."""
    tree, work, result, *names = sys.argv[1:]
    os.environ.update(UNIFIED_VAE_OFFLINE="1", UNIFIED_VAE_CACHE=str(Path(work).resolve() / "cache"))
    Path(result).write_text(json.dumps(drive(Path(tree).resolve(), Path(work).resolve(), names)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
