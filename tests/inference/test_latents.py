"""`encode` and `decode`: the network's numbers, names beside them, the same bytes after a kill, files of before."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.inference.small_models import COUNT, LATENTS, write_model
from unified_vae import VAE
from unified_vae.core.errors import ConfigError, DataError, EnvironmentProblem, UserError
from unified_vae.core.events import Observer
from unified_vae.inference import latents as verbs
from unified_vae.inference.image_set import natural_key
from unified_vae.inference.latent_files import batches, open_latents
from unified_vae.inference.latents import Result, file_names, image_noise

IMAGES = COUNT + 1
EARLIER = Path(__file__).parent / "fixtures" / "latents-format-1"


class Watcher(Observer):
    """Keeps what is said, and may end the work once more than `after` images are done."""

    def __init__(self, after: int | None = None, end: Callable[[], None] | None = None) -> None:
        self.after, self.end, self.notices = after, end, list[str]()

    def phase(self, text: str, done: int, total: int | None) -> None:
        works = text in ("encoding images", "decoding latents")
        if works and self.after is not None and self.end is not None and done > self.after:
            self.end()

    def notice(self, text: str) -> None:
        self.notices.append(text)


def interrupt() -> None:
    raise KeyboardInterrupt


def encode(model: Path, data: Path | str | None, output: Path, **options: object) -> Result:
    options = {"device": "cpu", "batch_size": 2, "shard_size": 10, "observer": Observer(), **options}
    return verbs.encode(model, None if data is None else str(data), output, **options)  # type: ignore[arg-type]


def decode(model: Path, latents: Path, output: Path, **options: object) -> Path:
    options = {"device": "cpu", "batch_size": 2, "observer": Observer(), **options}
    verbs.decode(model, latents, output, **options)  # type: ignore[arg-type]
    return output


def rows_of(path: Path) -> np.ndarray:
    return np.concatenate(list(open_latents(path).chunks()))


def contents(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {path.name: path.read_bytes()}
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in path.rglob("*") if each.is_file()}


@pytest.fixture(scope="module")
def latents(model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures' latents in each kind of output, and scaled."""
    folder = tmp_path_factory.mktemp("latents")
    for name in ("shards", "x.npy", "x.parquet"):
        encode(model, pictures, folder / name)
    encode(model, pictures, folder / "scaled", scale=True)
    return folder


# --- what is written -------------------------------------------------------------------------------------


def test_rows_are_the_networks_own_by_name(model: Path, pictures: Path, latents: Path) -> None:
    assert sorted(path.name for path in (latents / "shards").iterdir()) == [
        "index.json", "latents-00000.safetensors", "latents-00001.safetensors", "latents-00002.safetensors",
    ]  # fmt: skip
    index = json.loads((latents / "shards" / "index.json").read_text())
    shards = [load_file(latents / "shards" / part["files"][0]) for part in index["parts"]]
    assert [len(shard["mean"]) for shard in shards] == [part["rows"] for part in index["parts"]] == [10, 10, 4]
    ids = index["columns"]["id"]
    assert ids == sorted(ids, key=natural_key) and len(set(ids)) == IMAGES and "dögs/0.png" in ids
    assert index["columns"]["class"] == [name.split("/")[0] for name in ids]
    expected = VAE.from_pretrained(model, device="cpu").encode([pictures / name for name in ids], batch_size=2)
    for name, values in (("mean", expected.mean), ("logvar", expected.logvar)):
        assert np.array_equal(np.concatenate([shard[name] for shard in shards]), values)
    assert index["latents"]["shape"] == [LATENTS] and index["latents"]["dtype"] == "float32"


def test_all_formats_hold_the_same(latents: Path) -> None:
    index = json.loads((latents / "x.npy.json").read_text())
    mean, logvar = np.load(latents / "x.npy", mmap_mode="r"), np.load(latents / "x.logvar.npy")
    table = parquet.read_table(latents / "x.parquet", memory_map=True)
    assert np.array_equal(mean, rows_of(latents / "shards"))
    assert np.array_equal(np.stack(table["mean"].to_numpy()), mean)
    assert np.array_equal(np.stack(table["logvar"].to_numpy()), logvar)
    for name, values in index["columns"].items():
        assert table[name].to_pylist() == values
    assert set(index["columns"]) == {"id", "split", "class"} and set(index["columns"]["split"]) <= {
        "train",
        "validation",
    }
    assert not [path for path in latents.iterdir() if path.name.startswith(".")]


def test_draws_depend_on_seed_and_image_alone(model: Path, pictures: Path, tmp_path: Path) -> None:
    def draws(name: str, **options: object) -> np.ndarray:
        encode(model, pictures, tmp_path / name, sample=True, **options)
        return rows_of(tmp_path / name)

    first = draws("a.npy", seed=7)
    assert np.array_equal(first, draws("b", seed=7, shard_size=6))
    assert not np.array_equal(first, draws("c.npy", seed=8))
    ids = list(open_latents(tmp_path / "a.npy").ids or ())
    assert np.array_equal(first[ids.index("cats/1.png")], first[ids.index("cats/99.png")])
    few = tmp_path / "few"
    few.mkdir()
    for number in (2, 5, 7):
        (few / f"renamed-{number}.png").write_bytes((pictures / "cats" / f"{number}.png").read_bytes())
    encode(model, few, tmp_path / "few.npy", sample=True, seed=7, batch_size=1)
    encode(model, pictures, tmp_path / "ones.npy", sample=True, seed=7, batch_size=1)
    assert np.array_equal(rows_of(tmp_path / "few.npy")[1], rows_of(tmp_path / "ones.npy")[ids.index("cats/5.png")])


def test_noise_is_standard_normal() -> None:
    noise = image_noise(0, np.arange(4000, dtype=np.uint64) * 7919, 9)
    assert noise.shape == (4000, 9) and abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    assert abs(float(np.corrcoef(noise.T.numpy())[0, 5])) < 0.06
    assert float(noise.abs().max()) < 6 and float(noise.pow(4).mean()) == pytest.approx(3, abs=0.3)


def test_scaling_is_applied_and_taken_back(model: Path, latents: Path, tmp_path: Path) -> None:
    stats = VAE.from_pretrained(model, device="cpu").latent_stats
    assert stats is not None
    plain, scaled = (load_file(latents / name / "latents-00001.safetensors") for name in ("shards", "scaled"))
    assert np.allclose(scaled["mean"], (plain["mean"] - stats.shift) * stats.scale, atol=1e-5)
    assert np.allclose(np.exp(scaled["logvar"] - plain["logvar"]), stats.scale**2, rtol=1e-4)
    truth = np.load(decode(model, latents / "x.npy", tmp_path / "truth.npy")).astype(int)
    stated = np.load(decode(model, latents / "scaled", tmp_path / "stated.npy"))
    np.save(tmp_path / "foreign.npy", rows_of(latents / "scaled"))
    asked = np.load(decode(model, tmp_path / "foreign.npy", tmp_path / "asked.npy", scale=True))
    ignored = np.load(decode(model, tmp_path / "foreign.npy", tmp_path / "ignored.npy"))
    assert np.array_equal(stated, asked) and np.abs(stated - truth).max() <= 1 < np.abs(ignored - truth).max()


def test_latents_of_a_map_keep_its_shape(spatial: Path, pictures: Path, tmp_path: Path) -> None:
    for name in ("x.npy", "x.parquet", "x"):
        encode(spatial, pictures, tmp_path / name)
        assert open_latents(tmp_path / name).width == 48
    assert np.load(tmp_path / "x.npy").shape == (IMAGES, 3, 4, 4)
    assert load_file(tmp_path / "x" / "latents-00000.safetensors")["mean"].shape == (10, 3, 4, 4)


def test_bad_files_are_left_out_and_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed").mkdir()
    for number in range(4):
        Image.new("RGB", (9, 9), (60 * number, 9, 9)).save(tmp_path / "mixed" / f"{number}.png")
        (tmp_path / "mixed" / f"{number}b.png").write_text("no image")
    watcher = Watcher()
    assert encode(model, tmp_path / "mixed", tmp_path / "x.npy", observer=watcher).images == 4
    assert all(any(f"{number}b.png: not an image" in line for line in watcher.notices) for number in range(4))


# --- what is read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shards", "x.npy", "x.parquet"])
def test_decoding_gives_the_models_reconstructions(
    model: Path, pictures: Path, latents: Path, tmp_path: Path, name: str
) -> None:
    ids = list(open_latents(latents / name).ids or ())
    images = VAE.from_pretrained(model, device="cpu").reconstruct([pictures / each for each in ids], batch_size=2)
    truth = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.load(decode(model, latents / name, tmp_path / "x.npy")), truth)
    folder = decode(model, latents / name, tmp_path / "images")
    assert len(contents(folder)) == IMAGES
    assert all(np.array_equal(np.asarray(Image.open(folder / each)), truth[row]) for row, each in enumerate(ids))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "x.npy"]


def test_a_shard_is_read_alone(model: Path, latents: Path, tmp_path: Path) -> None:
    shard = latents / "scaled" / "latents-00002.safetensors"
    assert open_latents(shard).ids == list(open_latents(latents / "scaled").ids or ())[20:]
    truth = np.load(decode(model, latents / "scaled", tmp_path / "truth.npy"))
    assert np.array_equal(np.load(decode(model, shard, tmp_path / "images.npy")), truth[20:])
    (tmp_path / "alone.safetensors").write_bytes(shard.read_bytes())  # its settings are in it, its names are not
    alone = tmp_path / "alone.safetensors"
    assert np.array_equal(np.load(decode(model, alone, tmp_path / "alone.npy")), truth[20:])
    assert open_latents(alone).ids is None
    with pytest.raises(ConfigError, match="other weights"):
        decode(write_model(tmp_path / "other", seed=5), alone, tmp_path / "never.npy")


@pytest.mark.parametrize("name", ["x.safetensors", "x.npy", "shards.npy.json", "shards-00002-of-00002.npy"])
def test_files_of_an_earlier_version_are_refused(name: str) -> None:
    """As files of another program they would be decoded without their scaling."""
    with pytest.raises(DataError, match="encode the images anew"):
        open_latents(EARLIER / name)


def test_latents_of_other_programs(model: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5, LATENTS))
    np.save(tmp_path / "double.npy", rows)
    save_file({"z": rows.astype(np.float32), "step": np.zeros(1, np.int64)}, tmp_path / "z.safetensors")
    parquet.write_table(pa.table({"embedding": list(rows.astype(np.float32)), "id": range(5)}), tmp_path / "z.parquet")
    images = [
        np.load(decode(model, tmp_path / name, tmp_path / f"{name}.images.npy"))
        for name in ("double.npy", "z.safetensors", "z.parquet")
    ]
    assert np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])
    folder = decode(model, tmp_path / "double.npy", tmp_path / "images")
    assert sorted(path.name for path in folder.iterdir()) == [f"{row:08}.png" for row in range(5)]


def test_batches_begin_at_any_row(latents: Path) -> None:
    source, everything = open_latents(latents / "shards"), rows_of(latents / "shards")
    for first in (0, 4, 23, 24):
        parts = list(batches(source, first, 5))
        assert [len(part) for part in parts[:-1]] == [5] * (len(parts) - 1)
        assert np.array_equal(np.concatenate([*parts, everything[:0]]), everything[first:])


def test_names_stay_inside_the_folder_and_apart() -> None:
    ids = ["../../etc/passwd", "/srv/a.png", "C:\\x\\a.jpg", "a.png", "a.jpg", "A.png", "..", "", "n" * 400, "b. "]
    names = file_names(ids)
    assert len({name.casefold() for name in names}) == len(ids)
    for name in names:
        assert not name.startswith("/") and ".." not in name.split("/") and ":" not in name
        assert all(len(part.encode()) < 250 for part in name.split("/"))
    assert names[3] == "a" and names[0] == "etc/passwd"
    hostile = {
        "//tmp/x.png": "tmp/x", "\\\\tmp\\x": "tmp/x", "\\/tmp//./x/": "tmp/x", "C:/x.png": "x", "a/D:C:x": "a/x",
        ".. /. /x": "x", "x/...png": "x", "//": "image", "é" * 150: None, "a/../../b": "a/b",
    }  # fmt: skip
    for identity, expected in hostile.items():
        name = file_names([identity])[0]
        assert not Path(name).is_absolute() and name == (expected or name)


# --- kills -----------------------------------------------------------------------------------------------


def killed(work: Callable[..., object], after: int) -> int | None:
    """The exit code of the work in a process of its own that is killed after so many images."""
    watcher = Watcher(after, lambda: os.kill(os.getpid(), signal.SIGKILL))
    process = multiprocessing.get_context("fork").Process(target=work, kwargs={"observer": watcher})
    process.start()
    process.join(120)
    return process.exitcode


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and fork")
@pytest.mark.parametrize("name", ["x", "x.npy", "x.parquet"])
def test_after_kills_encode_writes_the_same_bytes(model: Path, pictures: Path, tmp_path: Path, name: str) -> None:
    options = {"sample": True, "shard_size": 6}
    encode(model, pictures, tmp_path / "whole" / name, **options)
    work = functools.partial(encode, model, pictures, tmp_path / "killed" / name, **options)
    for after in (7, 13, 19):
        assert killed(work, after) == -signal.SIGKILL and not (tmp_path / "killed" / name).exists()
    assert work().computed == 6, "it began anew"
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert work().computed == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and fork")
@pytest.mark.parametrize("name", ["images", "x.npy"])
def test_after_a_kill_decode_writes_the_same_images(
    model: Path, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(verbs, "SECONDS_BETWEEN_SAVES", 0.0)
    whole, output = decode(model, latents / "shards", tmp_path / "whole" / name), tmp_path / "killed" / name
    work = functools.partial(decode, model, latents / "shards", output)
    assert killed(work, 11) == -signal.SIGKILL and not output.exists()
    if name == "images" and hasattr(os, "symlink"):  # a link in the unfinished folder may lead anywhere
        folder = output.with_name(".images.partial") / "images"
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
        before = contents(tmp_path / "elsewhere")
        assert killed(work, 11) == -signal.SIGKILL and contents(tmp_path / "elsewhere") == before
    watcher = Watcher()
    result = verbs.decode(model, latents / "shards", output, batch_size=2, device="cpu", observer=watcher)
    assert 0 < result.computed < IMAGES and contents(output) == contents(whole) and not watcher.notices


@pytest.mark.parametrize("name", ["x", "x.npy", "x.parquet"])
def test_a_stop_at_the_end_is_made_up(
    model: Path, pictures: Path, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The worst moments: all rows are written, and the files get their names one after the other."""
    last = "index.json" if name == "x" else f"{name}.json"

    def stop_before(real: Callable[..., object], target: str) -> Callable[..., object]:
        return lambda *words: interrupt() if str(words[0]).endswith(target) else real(*words)

    stops: list[tuple[object, str, str]] = [
        (verbs, "write_text", last),  # before the index
        (Path, "replace", {"x": "rows"}.get(name, f"partial/{name}")),  # before the first file's name
        (Path, "replace", {"x": "rows", "x.npy": ".logvar.npy"}.get(name, name)),  # before the last one's
        (verbs, "sync_folder", ""),  # before the unfinished folder is removed
    ]
    for number, (owner, attribute, target) in enumerate(stops):
        output = tmp_path / str(number) / name
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, attribute, stop_before(getattr(owner, attribute), target))
            encode(model, pictures, output)
        assert encode(model, pictures, output).computed == 0
        assert contents(output) == contents(latents / ("shards" if name == "x" else name))
        assert not [path for path in output.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["x", "x.npy", "x.parquet"])
def test_paths_may_be_spelled_otherwise_on_resume(
    model: Path, pictures: Path, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(verbs, "_check_space", lambda _, needed: asked.append(needed))
    output = tmp_path / "cut" / name
    with pytest.raises(KeyboardInterrupt):
        encode(model, pictures, output, observer=Watcher(11, interrupt))
    monkeypatch.chdir(model.parent)
    assert encode(Path(model.name), os.path.relpath(pictures), output).computed == IMAGES - 10
    assert encode(Path(model.name), os.path.relpath(pictures), output).computed == 0
    rows = contents(output)
    rows.pop("index.json", None)
    whole = contents(latents / ("shards" if name == "x" else name))
    assert all(whole[path] == data for path, data in rows.items())
    assert asked[0] - asked[1] == 10 * 2 * 4 * LATENTS, "a resume needs room for the rest alone"


def test_other_settings_begin_anew(model: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(model, pictures, tmp_path / "x.npy", observer=Watcher(11, interrupt))
    watcher, other = Watcher(), write_model(tmp_path / "other", seed=4)
    assert encode(other, pictures, tmp_path / "x.npy", observer=watcher).computed == IMAGES
    assert any("starting anew" in line for line in watcher.notices)
    about = json.loads((tmp_path / "x.npy.json").read_text())
    assert about["computed"]["device"] == "cpu"
    about["computed"]["device"] = "cuda"  # another device is another encoding
    (tmp_path / "x.npy.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match="is there already"):
        encode(other, pictures, tmp_path / "x.npy")


def test_a_lost_shard_is_noticed(model: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(model, pictures, tmp_path / "x", observer=Watcher(21, interrupt))
    (tmp_path / ".x.partial" / "rows" / "latents-00000.safetensors").unlink()
    assert encode(model, pictures, tmp_path / "x").computed == IMAGES


# --- mistakes --------------------------------------------------------------------------------------------


def test_other_files_are_not_written_over(model: Path, pictures: Path, tmp_path: Path) -> None:
    for name in ("x.npy", "x.logvar.npy", "x.npy.json"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(ConfigError, match=f"{name} is there already"):
            encode(model, pictures, tmp_path / "x.npy")
        assert (tmp_path / name).read_text() == "precious"
        (tmp_path / name).unlink()
        assert not list(tmp_path.iterdir())  # nor is anything left of the attempt
    encode(model, pictures, tmp_path / "x.npy")
    with pytest.raises(ConfigError, match="is there already"):
        encode(model, pictures, tmp_path / "x.npy", sample=True)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").touch()
    with pytest.raises(ConfigError, match="is there already"):
        encode(model, pictures, tmp_path / "folder")


def test_mistakes_in_encoding_are_one_sentence(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    cases: list[tuple[type[UserError], str, Path, Path | str | None, str]] = [
        (ConfigError, "--output .*x\\), a .npy", model, pictures, "x.safetensors"),
        (ConfigError, "latents go to a folder", model, pictures, "x.pt"),
        (ConfigError, "name the images", model, None, "x.npy"),
        (DataError, "no file or folder", model, "nowhere", "x.npy"),
        (ConfigError, "is not there", tmp_path / "no", pictures, "x.npy"),
        (EnvironmentProblem, "uv sync --extra parquet", model, pictures, "x.parquet"),
    ]
    for kind, words, folder, data, output in cases:
        with pytest.raises(kind, match=words):
            encode(folder, data, tmp_path / output)
    with monkeypatch.context() as patch, pytest.raises(EnvironmentProblem, match="free some space"):
        patch.setattr(verbs.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))  # type: ignore[attr-defined]
        encode(model, pictures, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_mistakes_in_decoding_are_one_sentence(model: Path, latents: Path, tmp_path: Path) -> None:
    narrow, other = write_model(tmp_path / "narrow", latents=4), write_model(tmp_path / "other", seed=5)
    for name in ("bad.safetensors", "bad.npy", "bad.parquet", "bad.json"):
        (tmp_path / name).write_bytes(b"\xff" * 40)
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros(6, np.float32))
    np.save(tmp_path / "none.npy", np.zeros((0, LATENTS), np.float32))
    about = {"model": {}, "latents": {}}
    (tmp_path / "own.json").write_text(json.dumps({**about, "parts": [{"files": ["own.json"]}]}))
    values = np.zeros((3, LATENTS), np.float32)
    parts = {"parts": [{"files": ["unnamed.npy"], "rows": 3}], "columns": {"id": ["a", "b"]}}
    np.save(tmp_path / "unnamed.npy", values)
    (tmp_path / "unnamed.json").write_text(json.dumps({**about, **parts}))
    values[2, 1] = np.nan
    np.save(tmp_path / "nan.npy", values)
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").touch()
    source, target = latents / "x.npy", tmp_path / "out.npy"
    cases: list[tuple[type[UserError], str, Path, Path, Path]] = [
        (DataError, "holds 6 numbers per image, and .* has 4 latents", narrow, source, target),
        (ConfigError, "made by other weights .* say --other-model", other, latents / "shards", target),
        (DataError, "no safetensors file", model, tmp_path / "bad.safetensors", target),
        (DataError, "no .npy file", model, tmp_path / "bad.npy", target),
        (DataError, "no Parquet file", model, tmp_path / "bad.parquet", target),
        (DataError, "does not describe an encoding", model, tmp_path / "bad.json", target),
        (DataError, "no .npy file", model, tmp_path / "pickle.npy", target),
        (DataError, "latents are float", model, tmp_path / "flat.npy", target),
        (DataError, "has no rows", model, tmp_path / "none.npy", target),
        (DataError, "latents are read from", model, tmp_path / "own.json", target),
        (DataError, "names 2 images, and its files hold 3 rows", model, tmp_path / "unnamed.json", target),
        (DataError, "row 2 .* NaN or infinite", model, tmp_path / "nan.npy", target),
        (DataError, "log variances", model, latents / "x.logvar.npy", target),
        (DataError, "not there", model, tmp_path / "nowhere.npy", target),
        (DataError, "without an index", model, full, target),
        (DataError, "latents are read from", model, full / "precious", target),
        (ConfigError, "is there already", model, source, full),
        (ConfigError, "images go to", model, source, tmp_path / "out.jpg"),
        (ConfigError, "not scaled: leave --scale out", model, source, tmp_path / "out"),
    ]
    for kind, words, folder, given, output in cases:
        with pytest.raises(kind, match=words):
            decode(folder, given, output, scale=output.name == "out")
        assert not output.is_file() and not list(output.parent.glob(".*"))
    decode(other, latents / "shards", target, other_model=True)
