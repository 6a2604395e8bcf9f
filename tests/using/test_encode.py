"""Encoding a data source: the network's numbers, the names beside them, and the same bytes after a kill."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from made_models import COUNT, write_model
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from unified_vae import VAE
from unified_vae.core.errors import ConfigError, DataError, EnvironmentProblem, UserError
from unified_vae.experiment.using import encode as verb
from unified_vae.experiment.using import latent_layout, stage
from unified_vae.experiment.using.encode import EncodeRequest, encode, image_noise
from unified_vae.experiment.using.latent_source import batches, open_latents
from unified_vae.experiment.using.whole_set import natural
from unified_vae.training.observers import Observer

IMAGES = COUNT + 1
SILENT = Observer()


def encoded(model: Path, pictures: Path, output: Path, **more: object) -> Path:
    encode(EncodeRequest(model, str(pictures), output, device="cpu", **more), SILENT)  # type: ignore[arg-type]
    return output


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_latents_are_the_network_s_own_for_each_file_by_name(model: Path, pictures: Path, tmp_path: Path) -> None:
    found = load_file(encoded(model, pictures, tmp_path / "x.safetensors", batch_size=1))
    ends = [0, *found["id_ends"]]
    ids = [found["ids"].tobytes()[a:b].decode() for a, b in pairwise(ends)]
    assert ids == sorted(ids, key=natural) and len(set(ids)) == IMAGES and "dögs/0.png" in ids
    vae = VAE.from_pretrained(model, device="cpu")
    expected = vae.encode([pictures / name for name in ids], batch_size=1)
    assert np.array_equal(found["mean"], expected.mean) and np.array_equal(found["logvar"], expected.logvar)
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        names = json.loads(file.metadata()["label_names"])["class"]
    assert [names[value] for value in found["label.class"]] == [name.split("/")[0] for name in ids]


def test_the_three_formats_hold_the_same_and_open_with_their_libraries_alone(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as parquet

    tensors = load_file(encoded(model, pictures, tmp_path / "x.safetensors"))
    mapped = np.load(encoded(model, pictures, tmp_path / "y.npy"), mmap_mode="r")
    table = parquet.read_table(encoded(model, pictures, tmp_path / "z.parquet"), memory_map=True)
    assert np.array_equal(mapped, tensors["mean"])
    assert np.array_equal(np.load(tmp_path / "y.logvar.npy"), tensors["logvar"])
    assert np.array_equal(np.stack(table["mean"].to_numpy()), tensors["mean"])
    assert np.array_equal(np.stack(table["logvar"].to_numpy()), tensors["logvar"])
    rows = list(csv.DictReader((tmp_path / "y.csv").open(encoding="utf-8")))
    assert [row["id"] for row in rows] == table["id"].to_pylist() == open_latents(tmp_path / "x.safetensors").ids
    assert [row["class"] for row in rows] == table["class"].to_pylist()
    sides = [["train", "validation"][side] for side in tensors["split"]]
    assert [row["split"] for row in rows] == table["split"].to_pylist() == sides
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_shards_are_the_one_file_cut(model: Path, pictures: Path, tmp_path: Path) -> None:
    whole = open_latents(encoded(model, pictures, tmp_path / "whole.npy", batch_size=1))
    for suffix in (".safetensors", ".npy", ".parquet"):
        encoded(model, pictures, tmp_path / f"x{suffix}", batch_size=1, shard_size=10)
        assert (tmp_path / f"x-00003-of-00003{suffix}").is_file() and not (tmp_path / f"x{suffix}").exists()
        parts = open_latents(tmp_path / f"x{suffix}.json")
        assert parts.ids == whole.ids and parts.rows == IMAGES
        assert np.array_equal(np.concatenate(list(parts.chunks())), np.concatenate(list(whole.chunks())))


def test_draws_are_functions_of_seed_and_image_alone(model: Path, pictures: Path, tmp_path: Path) -> None:
    def draws(name: str, **more: object) -> np.ndarray:
        return np.load(encoded(model, pictures, tmp_path / f"{name}.npy", sample=True, batch_size=1, **more))

    first = draws("a", seed=7)
    assert np.array_equal(first, draws("b", seed=7, shard_size=None))
    assert not np.array_equal(first, draws("c", seed=8))
    ids = open_latents(tmp_path / "a.npy").ids
    assert ids is not None and np.array_equal(first[ids.index("cats/1.png")], first[ids.index("cats/99.png")])
    few = pictures.parent / "few"
    few.mkdir()
    for number in (2, 5, 7):
        (few / f"renamed-{number}.png").write_bytes((pictures / "cats" / f"{number}.png").read_bytes())
    some = np.load(encoded(model, few, tmp_path / "few.npy", sample=True, seed=7, batch_size=1))
    assert np.array_equal(some[1], first[ids.index("cats/5.png")])


def test_bad_files_are_left_out_and_named(model: Path, tmp_path: Path) -> None:
    folder, noted = tmp_path / "mixed", list[str]()
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (9, 9), (60 * number, 9, 9)).save(folder / f"{number}.png")
        (folder / f"{number}b.png").write_text("no image")
    observer = Observer()
    observer.notice = noted.append  # type: ignore[method-assign]
    assert encode(EncodeRequest(model, str(folder), tmp_path / "x.npy", device="cpu"), observer).images == 4
    assert all(any(f"{number}b.png: not an image" in line for line in noted) for number in range(4))


def test_noise_is_standard_normal() -> None:
    noise = image_noise(0, np.arange(4000, dtype=np.uint64) * 7919, 9)
    assert noise.shape == (4000, 9) and abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    assert abs(float(np.corrcoef(noise.T.numpy())[0, 5])) < 0.06
    assert float(noise.abs().max()) < 6 and float(noise.pow(4).mean()) == pytest.approx(3, abs=0.3)


def test_scaled_latents_have_the_statistics_taken_off(model: Path, pictures: Path, tmp_path: Path) -> None:
    stats = VAE.from_pretrained(model, device="cpu").latent_stats
    assert stats is not None
    plain = load_file(encoded(model, pictures, tmp_path / "plain.safetensors"))
    scaled = load_file(encoded(model, pictures, tmp_path / "scaled.safetensors", scale=True))
    assert np.allclose(scaled["mean"], (plain["mean"] - stats.shift) * stats.scale, atol=1e-5)
    spread = np.exp(scaled["logvar"] - plain["logvar"])
    assert np.allclose(spread, stats.scale**2, rtol=1e-4)


def test_latents_of_a_map_keep_its_shape(spatial: Path, pictures: Path, tmp_path: Path) -> None:
    assert np.load(encoded(spatial, pictures, tmp_path / "x.npy")).shape == (IMAGES, 3, 4, 4)
    encoded(spatial, pictures, tmp_path / "y.parquet")
    assert open_latents(tmp_path / "y.parquet").width == 48


# --- kills -----------------------------------------------------------------------------------------------


class Killer(Observer):
    """Ends the process in the middle, as the system would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def phase(self, text: str, done: int, total: int | None) -> None:
        if text == "encoding images" and done > self.after:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(request: EncodeRequest, after: int) -> int | None:
    """The exit code of an encoding in a process of its own that is killed after so many images."""
    process = multiprocessing.get_context("fork").Process(target=encode, args=(request, Killer(after)))
    process.start()
    process.join(120)
    return process.exitcode


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and fork")
@pytest.mark.parametrize("suffix", [".safetensors", ".npy", ".parquet"])
@pytest.mark.parametrize("shard_size", [None, 9])
def test_after_kills_the_same_command_gives_the_same_bytes(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, shard_size: int | None
) -> None:
    monkeypatch.setattr(stage, "SECONDS_BETWEEN_SAVES", 0.0)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    encoded(model, pictures, tmp_path / "whole" / f"x{suffix}", batch_size=2, shard_size=shard_size, sample=True)
    request = EncodeRequest(
        model, str(pictures), tmp_path / "killed" / f"x{suffix}", None, True, batch_size=2, shard_size=shard_size,
        device="cpu",
    )  # fmt: skip
    for after in (5, 13, 19):
        assert killed(request, after) == -signal.SIGKILL
        assert not (tmp_path / "killed" / f"x{suffix}").exists()
    done = encode(request, SILENT)
    assert 0 < done.computed < 10, "it began anew"
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert encode(request, SILENT).computed == 0


class Stopper(Observer):
    """Ends the work in the middle, as Ctrl+C would."""

    def phase(self, text: str, done: int, total: int | None) -> None:
        if text == "encoding images" and done > 11:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("suffix", "shard_size"), [(".npy", None), (".npy", 8), (".parquet", None)])
def test_a_resume_needs_room_for_the_rest_alone(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, shard_size: int | None
) -> None:
    monkeypatch.setattr(stage, "SECONDS_BETWEEN_SAVES", 0.0)
    asked: list[int] = []
    monkeypatch.setattr(verb, "check_room", lambda _, needed: asked.append(needed))
    request = EncodeRequest(
        model, str(pictures), tmp_path / f"x{suffix}", batch_size=2, shard_size=shard_size, device="cpu"
    )
    with pytest.raises(KeyboardInterrupt):
        encode(request, Stopper())
    encode(request, SILENT)
    row = asked[0] // IMAGES // (2 if suffix == ".parquet" else 1)
    assert asked[0] - asked[1] == 10 * row


@pytest.mark.parametrize(("suffix", "shard_size"), [(".safetensors", None), (".npy", 8), (".parquet", None)])
def test_another_spelling_of_the_model_s_path_goes_on_with_the_same_files(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, shard_size: int | None
) -> None:
    monkeypatch.setattr(stage, "SECONDS_BETWEEN_SAVES", 0.0)
    whole, output = tmp_path / "whole" / f"x{suffix}", tmp_path / "cut" / f"x{suffix}"
    encoded(model, pictures, whole, batch_size=2, shard_size=shard_size)
    request = EncodeRequest(model, str(pictures), output, batch_size=2, shard_size=shard_size, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        encode(request, Stopper())
    monkeypatch.chdir(model.parent)
    other = replace(request, target=Path(model.name), data=os.path.relpath(pictures))
    assert encode(other, SILENT).computed == IMAGES - 10
    assert files_of(output.parent) == files_of(whole.parent)
    assert encode(other, SILENT).computed == 0


def test_another_device_is_another_encoding(model: Path, pictures: Path, tmp_path: Path) -> None:
    encoded(model, pictures, tmp_path / "x.npy")
    about = json.loads((tmp_path / "x.npy.json").read_text())
    assert about["computed"].pop("device") == "cpu"
    (tmp_path / "x.npy.json").write_text(json.dumps({**about, "computed": {**about["computed"], "device": "cuda"}}))
    with pytest.raises(ConfigError, match="is there already"):
        encoded(model, pictures, tmp_path / "x.npy")


@pytest.mark.parametrize("suffix", [".safetensors", ".npy", ".parquet"])
def test_a_stop_between_two_files_of_the_end_is_made_up(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """The worst moments: all rows are written, and the files get their names one after the other."""
    whole, request = tmp_path / "whole", EncodeRequest(model, str(pictures), tmp_path / "cut" / f"x{suffix}")
    encoded(model, pictures, whole / f"x{suffix}")
    saved = stage.Stage.save
    for moment in ("renamed", "indexed"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            if moment == "renamed":
                patch.setattr(verb, "sync_folder", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
            else:
                patch.setattr(verb, "write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            encode(request, SILENT)
    assert stage.Stage.save is saved
    assert encode(request, SILENT).computed == 0
    assert files_of(tmp_path / "cut") == files_of(whole)


def test_what_was_begun_with_other_settings_begins_anew(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SECONDS_BETWEEN_SAVES", 0.0)
    output = tmp_path / "x.npy"
    assert killed(EncodeRequest(model, str(pictures), output, batch_size=2, device="cpu"), 5) == -signal.SIGKILL
    said: list[str] = []
    watcher = Observer()
    watcher.notice = said.append  # type: ignore[method-assign]
    other = write_model(tmp_path / "other", seed=4)
    assert encode(EncodeRequest(other, str(pictures), output, batch_size=2), watcher).computed == IMAGES
    assert any("begins anew" in line for line in said)


def test_every_file_is_on_the_disk_before_it_gets_its_name(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()
    real = latent_layout.sync_file
    monkeypatch.setattr(latent_layout, "sync_file", lambda path: (synced.add(path.name), real(path)))
    encoded(model, pictures, tmp_path / "x.npy")
    assert synced == {"x.npy", "x.logvar.npy", "x.csv"}


# --- mistakes --------------------------------------------------------------------------------------------


def test_another_s_file_is_not_overwritten(model: Path, pictures: Path, tmp_path: Path) -> None:
    for name in ("x.npy", "x.logvar.npy", "x.npy.json"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(ConfigError, match=f"{name} is there already"):
            encoded(model, pictures, tmp_path / "x.npy")
        assert (tmp_path / name).read_text() == "precious"
        (tmp_path / name).unlink()
        assert not list(tmp_path.iterdir())  # nor is anything left of the attempt
    encoded(model, pictures, tmp_path / "x.npy")
    with pytest.raises(ConfigError, match="is there already"):
        encoded(model, pictures, tmp_path / "x.npy", sample=True)


def test_formats_lie_side_by_side_and_an_index_of_an_earlier_version_is_read(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    encoded(model, pictures, tmp_path / "x.safetensors", sample=True)
    encoded(model, pictures, tmp_path / "x.npy")
    request = EncodeRequest(model, str(pictures), tmp_path / "x.npy", device="cpu")
    about = open_latents(tmp_path / "x.npy").about
    assert about["latents"]["values"].startswith("mean") and encode(request, SILENT).computed == 0
    (tmp_path / "x.npy.json").rename(tmp_path / "x.json")
    assert open_latents(tmp_path / "x.npy").about == about
    again = encode(request, SILENT)
    assert (again.computed, again.index) == (0, tmp_path / "x.json")


def test_mistakes_are_one_sentence(model: Path, pictures: Path, tmp_path: Path) -> None:
    cases: list[tuple[type[UserError], str, EncodeRequest]] = [
        (ConfigError, "end the name", EncodeRequest(model, str(pictures), tmp_path / "x.pt")),
        (ConfigError, "name the images", EncodeRequest(model, None, tmp_path / "x.npy")),
        (DataError, "no file or folder", EncodeRequest(model, "nowhere", tmp_path / "x.npy")),
        (ConfigError, "is not there", EncodeRequest(tmp_path / "no", str(pictures), tmp_path / "x.npy")),
    ]
    for kind, words, request in cases:
        with pytest.raises(kind, match=words):
            encode(request, SILENT)
    assert not list(tmp_path.iterdir())


def test_parquet_without_its_package_names_the_command(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(EnvironmentProblem, match="uv sync --extra parquet"):
        encoded(model, pictures, tmp_path / "x.parquet")


def test_batches_begin_at_any_row(model: Path, pictures: Path, tmp_path: Path) -> None:
    latents = open_latents(encoded(model, pictures, tmp_path / "x.npy"))
    everything = np.concatenate(list(latents.chunks()))
    for first in (0, 4, 23, 24):
        found = list(batches(latents, first, 5))
        assert [len(some) for some in found[:-1]] == [5] * (len(found) - 1)
        assert np.array_equal(np.concatenate([*found, everything[:0]]), everything[first:])
