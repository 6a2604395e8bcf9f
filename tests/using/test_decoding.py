"""Latents of a file back to images: round trips, names that stay inside the folder, kills, other programs' files."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_models import COUNT, LATENTS, SIZE, write_model
from PIL import Image
from safetensors.numpy import save_file

from unified_vae import VAE
from unified_vae.core.errors import ConfigError, DataError, UserError
from unified_vae.experiment.using import decode as verb
from unified_vae.experiment.using import stage
from unified_vae.experiment.using.decode import DecodeRequest, decode
from unified_vae.experiment.using.encode import EncodeRequest, encode
from unified_vae.experiment.using.image_output import FolderOutput, file_names
from unified_vae.experiment.using.latent_source import open_latents
from unified_vae.training.observers import Observer

IMAGES = COUNT + 1
SILENT = Observer()


@pytest.fixture(scope="module")
def latents(model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of encodings in all formats, scaled ones too."""
    folder = tmp_path_factory.mktemp("latents")
    for suffix in ("safetensors", "npy", "parquet"):
        encode(EncodeRequest(model, str(pictures), folder / f"x.{suffix}", batch_size=1), SILENT)
    encode(EncodeRequest(model, str(pictures), folder / "scaled.npy", batch_size=1, scale=True), SILENT)
    encode(EncodeRequest(model, str(pictures), folder / "parts.npy", batch_size=1, shard_size=10), SILENT)
    return folder


def decoded(model: Path, latents: Path, output: Path, **more: object) -> Path:
    decode(DecodeRequest(model, latents, output, batch_size=1, device="cpu", **more), SILENT)  # type: ignore[arg-type]
    return output


def expected(model: Path, pictures: Path, ids: list[str]) -> np.ndarray:
    images = VAE.from_pretrained(model, device="cpu").reconstruct([pictures / name for name in ids], batch_size=1)
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", ["x.safetensors", "x.npy", "x.parquet", "parts.npy.json"])
def test_an_encoding_comes_back_as_the_model_s_reconstructions(
    model: Path, pictures: Path, latents: Path, tmp_path: Path, name: str
) -> None:
    ids = list(open_latents(latents / name).ids or ())
    truth = expected(model, pictures, ids)
    assert np.array_equal(np.load(decoded(model, latents / name, tmp_path / "x.npy")), truth)
    folder = decoded(model, latents / name, tmp_path / "images")
    assert len([path for path in folder.rglob("*") if path.is_file()]) == IMAGES
    for row, identity in enumerate(ids):
        assert np.array_equal(np.asarray(Image.open(folder / identity)), truth[row])
    sheet = Image.open(decoded(model, latents / name, tmp_path / "sheet.png"))
    assert sheet.width > 4 * SIZE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "sheet.png", "x.npy"]


def test_scaling_is_taken_back(model: Path, pictures: Path, latents: Path, tmp_path: Path) -> None:
    truth = np.load(decoded(model, latents / "x.npy", tmp_path / "plain.npy"))
    told = np.load(decoded(model, latents / "scaled.npy", tmp_path / "told.npy"))
    np.save(tmp_path / "foreign.npy", np.load(latents / "scaled.npy"))
    asked = np.load(decoded(model, tmp_path / "foreign.npy", tmp_path / "asked.npy", scale=True))
    assert np.array_equal(told, asked) and np.abs(told.astype(int) - truth).max() <= 1
    np.save(tmp_path / "scaled-unlike.npy", np.load(decoded(model, tmp_path / "foreign.npy", tmp_path / "wrong.npy")))
    assert not np.array_equal(np.load(tmp_path / "scaled-unlike.npy"), truth)


def test_a_shard_of_arrays_is_what_its_encoding_says(
    model: Path, pictures: Path, latents: Path, tmp_path: Path
) -> None:
    encode(EncodeRequest(model, str(pictures), tmp_path / "x.npy", batch_size=1, scale=True, shard_size=20), SILENT)
    shard = tmp_path / "x-00002-of-00002.npy"
    truth = np.load(decoded(model, latents / "scaled.npy", tmp_path / "truth.npy"))
    assert np.array_equal(np.load(decoded(model, shard, tmp_path / "images.npy")), truth[20:])
    with pytest.raises(ConfigError, match="other weights"):
        decoded(write_model(tmp_path / "other", seed=5), shard, tmp_path / "never.npy")


def test_latents_of_other_programs(model: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = np.random.default_rng(0).normal(size=(5, LATENTS))
    np.save(tmp_path / "double.npy", rows)
    save_file({"z": rows.astype(np.float32), "step": np.zeros(1, np.int64)}, tmp_path / "z.safetensors")
    parquet.write_table(pa.table({"embedding": list(rows.astype(np.float32)), "id": range(5)}), tmp_path / "z.parquet")
    found = [
        np.load(decoded(model, tmp_path / name, tmp_path / f"{name}.images.npy"))
        for name in ("double.npy", "z.safetensors", "z.parquet")
    ]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    folder = decoded(model, tmp_path / "double.npy", tmp_path / "images")
    assert sorted(path.name for path in folder.iterdir()) == [f"{row:08}.png" for row in range(5)]


def test_names_stay_inside_the_folder_and_apart() -> None:
    ids = ["../../etc/passwd", "/srv/a.png", "C:\\x\\a.jpg", "a.png", "a.jpg", "A.png", "..", "", "n" * 400, "b. "]
    names = file_names(ids)
    assert len({name.casefold() for name in names}) == len(ids)
    for name in names:
        assert not name.startswith("/") and ".." not in name.split("/") and ":" not in name
        assert all(len(part.encode()) < 250 for part in name.split("/"))
    assert names[3] == "a" and names[0] == "etc/passwd"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("//tmp/x.png", "tmp/x"),
        ("\\\\tmp\\x", "tmp/x"),
        ("\\/tmp//./x/", "tmp/x"),
        ("C:/x.png", "x"),
        ("a/D:C:x", "a/x"),
        (".. /. /x", "x"),
        ("x/...png", "x"),
        ("//", "image"),
    ],
)
def test_no_name_is_an_absolute_path(tmp_path: Path, name: str, expected: str) -> None:
    assert file_names([name]) == [expected]
    output = FolderOutput(tmp_path, file_names([name]))
    output.put(0, np.zeros((1, 2, 2, 3), np.uint8))
    output.sync()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "images" / f"{expected}.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("link", ["images", "images/a", "images/a/b.png"])
def test_no_link_leads_out_of_the_folder(tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    (outside / "a").mkdir(parents=True)
    place = tmp_path / "stage" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(outside / "c.png" if link.endswith(".png") else outside)
    for name in ("a/b", str(outside / "c"), "../c"):  # the others, as if names were not made safe
        with pytest.raises(DataError, match="leads out of the folder"):
            FolderOutput(tmp_path / "stage", [name]).put(0, np.zeros((1, 2, 2, 3), np.uint8))
    assert not [path for path in outside.rglob("*") if path.is_file()]


class Killer(Observer):
    """Ends the process in the middle, as the system would."""

    def phase(self, text: str, done: int, total: int | None) -> None:
        if text == "decoding latents" and done > 11:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and fork")
@pytest.mark.parametrize("output", ["images", "x.npy"])
def test_after_a_kill_the_same_command_gives_the_same_images(
    model: Path, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.setattr(stage, "SECONDS_BETWEEN_SAVES", 0.0)
    whole = decoded(model, latents / "x.npy", tmp_path / "whole" / output)
    request = DecodeRequest(model, latents / "x.npy", tmp_path / "killed" / output, batch_size=1, device="cpu")
    process = multiprocessing.get_context("fork").Process(target=decode, args=(request, Killer()))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL and not request.output.exists()
    assert 0 < decode(request, SILENT).computed < IMAGES
    assert content(request.output) == content(whole)


class Stopper(Observer):
    """Ends the work in the middle, as Ctrl+C would."""

    def phase(self, text: str, done: int, total: int | None) -> None:
        if text == "decoding latents" and done > 11:
            raise KeyboardInterrupt


def test_a_resume_needs_room_for_the_rest_alone(
    model: Path, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SECONDS_BETWEEN_SAVES", 0.0)
    asked: list[int] = []
    monkeypatch.setattr(verb, "check_room", lambda _, needed: asked.append(needed))
    request = DecodeRequest(model, latents / "x.npy", tmp_path / "x.npy", batch_size=1, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        decode(request, Stopper())
    decode(request, SILENT)
    assert asked == [IMAGES * 3 * SIZE**2, (IMAGES - 11) * 3 * SIZE**2]


def content(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def test_mistakes_are_one_sentence(model: Path, latents: Path, tmp_path: Path) -> None:
    narrow, other = write_model(tmp_path / "narrow", latents=4), write_model(tmp_path / "other", seed=5)
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "bad.npy").write_bytes(b"no array")
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    (tmp_path / "bad.json").write_text("[1]")
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros(6, np.float32))
    np.save(tmp_path / "none.npy", np.zeros((0, LATENTS), np.float32))
    told = {"model": {}, "latents": {}}
    (tmp_path / "own.json").write_text(json.dumps({**told, "parts": [{"files": ["own.json"]}]}))
    values = np.zeros((3, LATENTS), np.float32)
    names = {"ids": np.frombuffer(b"ab", np.uint8), "id_ends": np.array([1, 2])}
    save_file({"mean": values, **names}, tmp_path / "unnamed.safetensors")
    save_file({"mean": values, **names, "id_ends": np.array(["a"]).view(np.uint32)}, tmp_path / "ends.safetensors")
    values[2, 1] = np.nan
    np.save(tmp_path / "nan.npy", values)
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").touch()
    source, target = latents / "x.npy", tmp_path / "out.npy"
    cases: list[tuple[type[UserError], str, Path, Path, Path]] = [
        (DataError, "holds 6 numbers an image, and .* has 4 latents", narrow, source, target),
        (ConfigError, "made by other weights .* say --other-model", other, latents / "x.safetensors", target),
        (DataError, "no safetensors file", model, tmp_path / "bad.safetensors", target),
        (DataError, "no .npy file", model, tmp_path / "bad.npy", target),
        (DataError, "no Parquet file", model, tmp_path / "bad.parquet", target),
        (DataError, "does not describe an encoding", model, tmp_path / "bad.json", target),
        (DataError, "no .npy file", model, tmp_path / "pickle.npy", target),
        (DataError, "latents are float", model, tmp_path / "flat.npy", target),
        (DataError, "has no rows", model, tmp_path / "none.npy", target),
        (DataError, "names another .json", model, tmp_path / "own.json", target),
        (DataError, "names 2 images and holds 3 rows", model, tmp_path / "unnamed.safetensors", target),
        (DataError, "names 1 images and holds 3 rows", model, tmp_path / "ends.safetensors", target),
        (DataError, "row 2 .* NaN or infinite", model, tmp_path / "nan.npy", target),
        (DataError, "log variances", model, latents / "x.logvar.npy", target),
        (DataError, "not there", model, tmp_path / "nowhere.npy", target),
        (DataError, "latents are read from", model, full / "precious", target),
        (ConfigError, "is there already", model, source, full),
        (ConfigError, "images go to", model, source, tmp_path / "out.jpg"),
    ]
    for kind, words, folder, given, output in cases:
        with pytest.raises(kind, match=words):
            decode(DecodeRequest(folder, given, output), SILENT)
        assert not output.is_file() and not list(output.parent.glob(".*"))
    decode(DecodeRequest(other, latents / "x.safetensors", target, other_model=True), SILENT)
