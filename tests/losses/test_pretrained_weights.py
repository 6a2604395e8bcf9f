"""Pretrained weights: where they come from, what is refused, and that no replacement is silent.

A small backbone stands in for VGG-16 where only the loading matters; its file has the same form.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import http.server
import importlib.util
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
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
from unified_vae.losses import perceptual
from unified_vae.losses.build import Substitution, build_objective, resolve_terms
from unified_vae.losses.perceptual import (
    ARCHITECTURES,
    Architecture,
    Backbone,
    Conv,
    Net,
    WeightsUnavailable,
    cached_file,
    load_weights,
)

SETTING = "loss.perceptual.weights_path"
CONVS = (Conv(0, 4, feature="relu1"), Conv(3, 8, pool=2, feature="relu2"))
MINE = Architecture("Small", "https://example.org/small.pth", CONVS)
VGG_FILE = ARCHITECTURES["vgg"].file


@pytest.fixture(autouse=True)
def _downloads_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The addresses in these tests are made up, or of this machine."""
    monkeypatch.delenv("UNIFIED_VAE_OFFLINE", raising=False)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "features.0.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "features.0.bias": torch.randn(4, generator=generator),
        "features.3.weight": torch.randn(8, 4, 3, 3, generator=generator),
        "features.3.bias": torch.randn(8, generator=generator),
    }


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torchvision's cache, moved to an empty folder."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # the servers of these tests
    folder = cached_file("file").parent
    assert tmp_path in folder.parents
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def cache(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and no network."""

    def offline(*_: object, **__: object) -> None:
        raise URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr(perceptual, "urlopen", offline)
    return empty_cache


def published(weights: dict[str, Tensor], folder: Path) -> tuple[Path, Architecture]:
    """A file named by its sha256, as torchvision's are, and the backbone that wants it."""
    unnamed = folder / "unnamed.pth"
    torch.save(weights | {"classifier.0.weight": torch.zeros(2)}, unnamed)
    file = f"small-{hashlib.sha256(unnamed.read_bytes()).hexdigest()[:8]}.pth"
    return unnamed.rename(folder / file), Architecture("Small", f"https://example.org/{file}", CONVS)


def only(term: str, **settings: object) -> LossConfig:
    return LossConfig.model_validate({term: {"weight": 0.5, **settings}})


def test_a_file_in_the_cache_is_used_without_asking_the_network(cache: Path, weights: dict[str, Tensor]) -> None:
    _, small = published(weights, cache)
    loaded = load_weights(small, None, SETTING, print)
    assert loaded.keys() == weights.keys()  # the classifier is left out
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())


def test_half_precision_and_the_legacy_format_become_float32(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    half = {key: value.half() for key, value in weights.items()}
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pth"
        torch.save(half, path, _use_new_zipfile_serialization=not legacy)
        loaded = load_weights(MINE, str(path), SETTING, print)
        assert all(torch.equal(loaded[key], value.float()) for key, value in half.items())
        assert {value.dtype for value in loaded.values()} == {torch.float32}


def test_loaded_weights_outlive_the_file(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path, small = published(weights, tmp_path)
    loaded = load_weights(small, str(path), SETTING, print)
    path.write_bytes(b"")
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())


def test_damage_in_the_cache_is_named(cache: Path, weights: dict[str, Tensor]) -> None:
    path, small = published(weights, cache)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), content[:100], b"", bytes(1000)):
        path.write_bytes(damaged)
        with pytest.raises(WeightsUnavailable) as error:
            load_weights(small, None, SETTING, print)
        assert str(path) in str(error.value)
        assert "delete it" in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda w: w.pop("features.3.bias"), "features.3.bias is missing"),
        (lambda w: w.update({"features.0.weight": torch.zeros(4, 3, 5, 5)}), r"\[4, 3, 5, 5\], not \[4, 3, 3, 3\]"),
        (lambda w: w.update({"features.0.bias": torch.full((4,), torch.nan)}), "NaN/Inf"),
    ],
)
def test_a_file_of_another_network_is_refused(
    tmp_path: Path, weights: dict[str, Tensor], spoil: Callable[[dict[str, Tensor]], object], complaint: str
) -> None:
    spoil(weights)
    torch.save(weights, tmp_path / "mine.pth")
    with pytest.raises(EnvironmentProblem, match=complaint) as error:
        load_weights(MINE, str(tmp_path / "mine.pth"), SETTING, print)
    assert not isinstance(error.value, WeightsUnavailable)
    assert SETTING in str(error.value)


@pytest.mark.parametrize("missing", ["replace", "strict"])
@pytest.mark.parametrize("kind", ["absent", "folder", "damaged", "web page"])
def test_a_wrong_path_is_an_error_with_either_policy(cache: Path, tmp_path: Path, missing: str, kind: str) -> None:
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


def test_a_file_that_carries_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_without_weights_haarpsi_takes_over_and_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = LossConfig(
        perceptual=PerceptualConfig(weight=0.25, schedule=Linear(start=0.5)), lpips=LPIPSConfig(weight=0.5, net="alex")
    )
    probe = Mock(side_effect=perceptual.urlopen)
    monkeypatch.setattr(perceptual, "urlopen", probe)
    resolved, substitutions = resolve_terms(config)
    assert probe.call_count == 2  # once for each file: nobody waits for a network that is not there
    assert all(call.kwargs["timeout"] == perceptual.PROBE_SECONDS for call in probe.call_args_list)
    assert set(resolved.distortion_terms()) == {"mse", "haarpsi"}
    assert resolved.haarpsi.weight == 0.75
    assert [(s.term, s.replacement) for s in substitutions] == [("perceptual", "haarpsi"), ("lpips", "haarpsi")]
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
    for part in (VGG_FILE, str(cache), "loss.lpips.weights_path"):
        assert part in str(error.value)
    assert error.value.exit_code == 3


def test_building_never_replaces(cache: Path) -> None:
    """A resumed run builds what it recorded: with other losses it would be another run."""
    with pytest.raises(EnvironmentProblem, match=VGG_FILE):
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
    empty_cache: Path, server: tuple[str, Path], weights: dict[str, Tensor]
) -> None:
    address, folder = server
    path, _ = published(weights, folder)
    small = MINE._replace(url=f"{address}/{path.name}")
    said: list[str] = []
    loaded = load_weights(small, None, SETTING, said.append)
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())
    assert len(said) == 1
    assert "Small" in said[0]
    assert "MB" in said[0]
    load_weights(small, None, SETTING, said.append)
    assert len(said) == 1  # the second time it is there

    swapped = MINE._replace(url=f"{address}/small-00000000.pth")
    (folder / small.file).rename(folder / swapped.file)
    with pytest.raises(WeightsUnavailable, match="hash"):
        load_weights(swapped, None, SETTING, said.append)
    assert [path.name for path in empty_cache.iterdir()] == [small.file]

    with pytest.raises(WeightsUnavailable, match=r"(?i)not found"):
        load_weights(MINE._replace(url=f"{address}/small-11111111.pth"), None, SETTING, said.append)


def test_a_server_that_never_answers_is_given_up(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/small-22222222.pth"
        with pytest.raises(WeightsUnavailable, match="timed out"):
            load_weights(MINE._replace(url=url), None, SETTING, print)
        silent.setblocking(False)
        silent.accept()
        with pytest.raises(BlockingIOError):  # it was asked once, for 0.2 s: nothing else waited for it
            silent.accept()


def test_no_server_is_asked_where_downloads_are_switched_off(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFIED_VAE_OFFLINE", "1")
    monkeypatch.setattr(perceptual, "urlopen", Mock(side_effect=AssertionError))
    _, [substitution] = resolve_terms(only("perceptual"))
    assert "switched off by UNIFIED_VAE_OFFLINE" in substitution.reason


def test_the_addresses_are_those_of_the_installed_torchvision() -> None:
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None and spec.origin is not None
    sources = [path.read_text("utf-8") for path in (Path(spec.origin).parent / "models").glob("*.py")]
    for architecture in ARCHITECTURES.values():
        assert any(f'"{architecture.url}"' in text for text in sources)


def test_torchvision_is_neither_needed_nor_imported(
    cache: Path, alex_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)  # importing it now raises
    config = only("lpips", net="alex", weights_path=str(alex_file))
    assert resolve_terms(config) == (config, [])
    assert "lpips" in build_objective(config, 3, 32).terms
    _, [substitution] = resolve_terms(only("perceptual"))
    assert substitution == Substitution("perceptual", "haarpsi", substitution.reason)


def test_weights_live_no_longer_than_their_objective(alex_file: Path) -> None:
    objective = build_objective(only("lpips", net="alex", weights_path=str(alex_file)), 3, 32)
    (backbone,) = {weakref.ref(module) for module in objective.modules() if isinstance(module, Backbone)}
    del objective
    gc.collect()
    assert backbone() is None


@pytest.mark.slow  # importing torchvision takes 7 s
@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_features_equal_torchvisions(net: Net, images: Callable[..., Tensor], request: pytest.FixtureRequest) -> None:
    from torchvision.models import alexnet, vgg

    weights = request.getfixturevalue(f"{net}_weights")
    theirs = vgg.make_layers(vgg.cfgs["D"]) if net == "vgg" else alexnet().features
    theirs.load_state_dict({key.removeprefix("features."): value for key, value in weights.items()})
    ours = Backbone(net, weights).features(images(2, 3, 64))
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    convs = {conv.feature: conv for conv in ARCHITECTURES[net].convs if conv.feature}
    assert list(ours) == list(convs)
    for name, features in ours.items():
        layers = theirs[: convs[name].position + 2]
        expected = F.normalize(layers((images(2, 3, 64) - mean) / std), dim=1)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
