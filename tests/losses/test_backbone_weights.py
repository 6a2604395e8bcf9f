"""Pretrained weights: where they are found, what is refused, and that nothing is replaced in silence.

A small backbone stands in for VGG-16 where only the loading matters; its file has the same form.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unified_vae.config.loss import HaarPSIConfig, LossConfig, LPIPSConfig, MSEConfig, PerceptualConfig
from unified_vae.config.schedule import Linear
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.losses import pretrained
from unified_vae.losses.build import Substitution, build_objective, resolve_terms
from unified_vae.losses.pretrained import WeightsUnavailable, load_weights
from unified_vae.losses.vgg import ALEXNET, VGG16, Architecture, Backbone, Conv, Pool

SETTING = "loss.perceptual.weights_path"
LAYERS = (Conv(0, 3, 4, name="relu1"), Pool(2), Conv(3, 4, 8, name="relu2"))


@pytest.fixture(autouse=True)
def _downloads_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The addresses in these tests are made up, or of this machine."""
    monkeypatch.delenv("UNIFIED_VAE_OFFLINE", raising=False)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {key: shape for conv in LAYERS[::2] for key, shape in conv.shapes().items()}
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torchvision's cache, moved to an empty folder."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # the servers of these tests
    folder = pretrained.cache_folder()
    assert tmp_path in folder.parents
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def cache(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and no network."""

    def offline(*_: object, **__: object) -> None:
        raise URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr(pretrained, "urlopen", offline)
    return empty_cache


def published(weights: dict[str, Tensor], folder: Path) -> tuple[Path, Architecture]:
    """A file named by its sha256, as torchvision's are, and the backbone that wants it."""
    unnamed = folder / "unnamed.pth"
    torch.save(weights | {"classifier.0.weight": torch.zeros(2)}, unnamed)
    file = f"small-{hashlib.sha256(unnamed.read_bytes()).hexdigest()[:8]}.pth"
    return unnamed.rename(folder / file), Architecture("Small", file, LAYERS)


def only(term: str, **settings: object) -> LossConfig:
    return LossConfig.model_validate({term: {"weight": 0.5, **settings}})


def test_a_file_in_the_cache_is_used_without_asking_the_network(cache: Path, weights: dict[str, Tensor]) -> None:
    _, small = published(weights, cache)
    loaded = load_weights(small, None, SETTING)
    assert loaded.keys() == weights.keys()  # the classifier is left out
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())


def test_half_precision_and_the_legacy_format_are_read_into_float32(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    half = {key: value.half() for key, value in weights.items()}
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pth"
        torch.save(half, path, _use_new_zipfile_serialization=not legacy)
        loaded = load_weights(Architecture("Small", "small.pth", LAYERS), str(path), SETTING)
        assert all(torch.equal(loaded[key], value.float()) for key, value in half.items())
        assert {value.dtype for value in loaded.values()} == {torch.float32}


def test_loaded_weights_outlive_the_file(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path, small = published(weights, tmp_path)
    loaded = load_weights(small, str(path), SETTING)
    path.write_bytes(b"")
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())


def test_damage_in_the_cache_is_named(cache: Path, weights: dict[str, Tensor]) -> None:
    path, small = published(weights, cache)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), content[:100], b"", bytes(1000)):
        path.write_bytes(damaged)
        with pytest.raises(WeightsUnavailable) as error:
            load_weights(small, None, SETTING)
        assert str(path) in str(error.value)
        assert "delete it" in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda w: w.pop("features.3.bias"), "features.3.bias is missing"),
        (
            lambda w: w.update({"features.0.weight": torch.zeros(4, 3, 5, 5)}),
            r"\[4, 3, 5, 5\], not \[4, 3, 3, 3\]",
        ),
        (lambda w: w.update({"features.0.bias": torch.full((4,), torch.nan)}), "not finite"),
    ],
)
def test_a_file_of_another_network_is_refused(
    tmp_path: Path, weights: dict[str, Tensor], spoil: Callable[[dict[str, Tensor]], object], complaint: str
) -> None:
    spoil(weights)
    torch.save(weights, tmp_path / "mine.pth")
    with pytest.raises(EnvironmentProblem, match=complaint) as error:
        load_weights(Architecture("Small", "small.pth", LAYERS), str(tmp_path / "mine.pth"), SETTING)
    assert not isinstance(error.value, WeightsUnavailable)
    assert SETTING in str(error.value)


@pytest.mark.parametrize("missing", ["replace", "strict"])
@pytest.mark.parametrize("kind", ["absent", "folder", "damaged", "web page"])
def test_a_wrong_path_is_an_error_even_where_a_replacement_is_allowed(
    cache: Path, tmp_path: Path, missing: str, kind: str
) -> None:
    path = tmp_path / "mine.pth"
    match kind:
        case "folder":
            path.mkdir()
        case "damaged":
            path.write_bytes(b"PK\x03\x04" + bytes(500))
        case "web page":
            path.write_text("<html>404</html>")
    with pytest.raises(EnvironmentProblem, match=SETTING) as error:
        resolve_terms(only("perceptual", weights_path=str(path), missing=missing))
    assert str(path) in str(error.value)


def test_a_file_that_carries_code_is_refused_and_the_code_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (marker,)

    torch.save({"features.0.weight": Bomb()}, tmp_path / "bomb.pth")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(EnvironmentProblem, match=r"bomb\.pth"):
        resolve_terms(only("perceptual", weights_path=str(tmp_path / "bomb.pth")))
    assert not marker.exists()
    torch.load(tmp_path / "bomb.pth", weights_only=False)
    assert marker.exists()  # the bomb was live


def test_without_weights_haarpsi_takes_over_and_the_result_says_so(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LossConfig(
        perceptual=PerceptualConfig(weight=0.25, schedule=Linear(start=0.5)),
        lpips=LPIPSConfig(weight=0.5, net="alex"),
    )
    asked = Mock(side_effect=pretrained.urlopen)
    monkeypatch.setattr(pretrained, "urlopen", asked)
    resolved, substitutions = resolve_terms(config)
    assert asked.call_count == 2  # once for each file: nobody waits for a network that is not there
    assert all(call.kwargs["timeout"] == pretrained._PROBE_SECONDS for call in asked.call_args_list)
    assert set(resolved.distortion_terms()) == {"mse", "haarpsi"}
    assert resolved.haarpsi.weight == 0.75
    assert [(s.term, s.replacement) for s in substitutions] == [
        ("perceptual", "haarpsi"),
        ("lpips", "haarpsi"),
    ]
    assert substitutions[0].reason == (
        f"the pretrained VGG-16 weights are not in {cache} and cannot be downloaded (Name or service not known)"
    )
    assert "AlexNet" in substitutions[1].reason
    assert LossConfig.model_validate(resolved.model_dump()) == resolved
    assert set(build_objective(resolved, 3, 32).terms) == {"mse", "haarpsi"}


def test_a_replacement_keeps_the_start_that_the_terms_had(cache: Path) -> None:
    warm = Linear(warmup=0.2)
    alone, _ = resolve_terms(LossConfig(perceptual=PerceptualConfig(weight=1.0, schedule=warm)))
    assert alone.haarpsi == HaarPSIConfig(weight=1.0, schedule=warm)
    config = LossConfig(
        mse=MSEConfig(weight=0.0),
        haarpsi=HaarPSIConfig(weight=1.0, schedule=warm),
        perceptual=PerceptualConfig(weight=1.0),
    )
    both, _ = resolve_terms(config)
    assert both.haarpsi == HaarPSIConfig(weight=2.0)


def test_strict_names_the_file_its_place_and_the_setting(cache: Path) -> None:
    with pytest.raises(EnvironmentProblem) as error:
        resolve_terms(only("lpips", missing="strict"))
    for part in (VGG16.file, str(cache), "loss.lpips.weights_path"):
        assert part in str(error.value)
    assert error.value.exit_code == 3


def test_building_never_replaces(cache: Path) -> None:
    """A resumed run builds what it recorded: with other losses it would be another run."""
    with pytest.raises(EnvironmentProblem, match=VGG16.file):
        build_objective(only("perceptual"), 3, 32)


def test_nothing_is_looked_up_for_terms_that_are_off(cache: Path) -> None:
    config = LossConfig(perceptual=PerceptualConfig(missing="strict", weights_path="nowhere"))
    assert resolve_terms(config) == (config, [])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address and folder of a web server on this machine."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}", folder
        web.shutdown()


def test_a_download_is_announced_checked_and_kept(
    empty_cache: Path, server: tuple[str, Path], weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = server
    _, small = published(weights, folder)
    monkeypatch.setattr(pretrained, "_address", lambda architecture: f"{address}/{architecture.file}")
    said: list[str] = []
    loaded = load_weights(small, None, SETTING, said.append)
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())
    assert len(said) == 1
    assert "Small" in said[0]
    assert "MB" in said[0]
    load_weights(small, None, SETTING, said.append)
    assert len(said) == 1  # the second time it is there

    swapped = replace(small, file="small-00000000.pth")
    (folder / small.file).rename(folder / swapped.file)
    with pytest.raises(WeightsUnavailable, match="hash"):
        load_weights(swapped, None, SETTING, said.append)
    assert [path.name for path in empty_cache.iterdir()] == [small.file]

    with pytest.raises(WeightsUnavailable, match=r"(?i)not found"):
        load_weights(replace(small, file="small-11111111.pth"), None, SETTING, said.append)


def test_a_server_that_never_answers_is_given_up(
    empty_cache: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "_PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(pretrained, "_address", lambda _: f"http://127.0.0.1:{port}/small.pth")
        with pytest.raises(WeightsUnavailable, match=r"timed out|no answer"):
            load_weights(Architecture("Small", "small-22222222.pth", LAYERS), None, SETTING)
        silent.setblocking(False)
        silent.accept()
        with pytest.raises(BlockingIOError):  # it was asked once, for 0.2 s: nothing else waited for it
            silent.accept()


@pytest.mark.parametrize("architecture", [VGG16, ALEXNET])
def test_the_installed_torchvision_knows_where_the_files_are(architecture: Architecture) -> None:
    address = pretrained._address(architecture)
    assert address.startswith("https://")
    assert address.endswith("/" + architecture.file)


def test_torchvision_is_neither_needed_nor_imported(
    cache: Path, alex_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)  # importing it now raises
    config = only("lpips", net="alex", weights_path=str(alex_file))
    assert resolve_terms(config) == (config, [])
    assert "lpips" in build_objective(config, 3, 32).terms
    _, [substitution] = resolve_terms(only("perceptual"))
    assert substitution == Substitution("perceptual", "haarpsi", substitution.reason)
    assert "torchvision" in substitution.reason


@pytest.mark.slow  # importing torchvision takes 7 s
@pytest.mark.parametrize("name", ["vgg", "alex"])
def test_features_equal_torchvisions(name: str, images: Callable[..., Tensor], request: pytest.FixtureRequest) -> None:
    from torchvision.models import alexnet, vgg

    architecture = {"vgg": VGG16, "alex": ALEXNET}[name]
    weights = request.getfixturevalue(f"{name}_weights")
    theirs = vgg.make_layers(vgg.cfgs["D"]) if name == "vgg" else alexnet().features
    theirs.load_state_dict({key.removeprefix("features."): value for key, value in weights.items()})
    ours = Backbone(architecture, architecture.feature_names(), weights)(images(2, 3, 64))
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    ends = [conv.index + 1 for conv in architecture.convs() if conv.name]
    for end, found in zip(ends, ours, strict=True):
        expected = F.normalize(theirs[: end + 1]((images(2, 3, 64) - mean) / std), dim=1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
