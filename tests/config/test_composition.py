"""The shipped book: its table, every mode, every combination of presets, and the user's own file over it."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import pytest

from unified_vae.config import schedule
from unified_vae.config.base import field_paths
from unified_vae.config.presets import SECTIONS, PresetBook, from_command_line
from unified_vae.config.run import RunConfig
from unified_vae.config.settings import Settings

SHIPPED = Path(__file__).resolve().parents[2] / "config" / "config_unified.json"
BOOK = PresetBook.load(shipped=SHIPPED)
PRESETS = {kind: list(BOOK.presets(kind)) for kind in SECTIONS}


def compose(book: PresetBook, mode: str, command_line: Settings | None = None):
    chosen = book.mode(mode)
    return book.compose(chosen.presets, command_line or Settings(), mode=chosen)


def test_the_presets_of_the_users_guide_are_there() -> None:
    assert {"mse_only", "mse_l1", "perceptual", "high_quality", "ultra_high_quality_loss"} <= {*PRESETS["loss"]}
    assert {"full_retrain_optimal", "lpips", "resume_fix"} <= {*PRESETS["loss"]}
    assert {"quick_test", "fast_training", "standard_training", "extended_training"} <= {*PRESETS["training"]}
    assert list(BOOK.modes) == [
        "quick_test",
        "laptop",
        "fast_high_quality",
        "ultra_high_quality",
        "balanced_high_quality",
        "full_retrain",
        "resume_fix",
    ]


@pytest.mark.parametrize(
    ("mode", "epochs", "pixels", "names"),
    [
        ("quick_test", 1, 64, "mse_l1 quick_test small tiny none"),
        ("laptop", 2000, 64, "mse_l1 laptop narrow_64 full auto"),
        ("fast_high_quality", 100, 128, "high_quality fast_high_quality_training fast_high_quality full auto"),
        (
            "ultra_high_quality",
            200,
            256,
            "ultra_high_quality_loss ultra_high_quality_training ultra_high_quality full auto",
        ),
        (
            "balanced_high_quality",
            150,
            128,
            "high_quality balanced_high_quality_training balanced_high_quality full auto",
        ),
        ("full_retrain", 150, 128, "full_retrain_optimal full_retrain_training fast_high_quality full auto"),
    ],
)
def test_a_mode_is_what_the_table_says(mode: str, epochs: int, pixels: int, names: str) -> None:
    run = compose(BOOK, mode)
    assert run.config.training.epochs == epochs
    assert run.config.model.image_size == pixels
    assert " ".join(run.names[kind] for kind in SECTIONS) == names


@pytest.mark.parametrize(
    ("name", "pixels", "latents", "channels"),
    [
        ("small", 64, 256, 64),
        ("medium", 64, 512, 128),
        ("fast_high_quality", 128, 512, 128),
        ("ultra_high_quality", 256, 1024, 256),
        ("balanced_high_quality", 128, 768, 160),
    ],
)
def test_a_model_preset_is_what_the_table_says(name: str, pixels: int, latents: int, channels: int) -> None:
    values = BOOK.preset("model", name).settings.values["model"]
    assert (values["image_size"], values["latents"], values["base_channels"]) == (pixels, latents, channels)


@pytest.mark.parametrize(
    ("name", "count"), [("tiny", 1000), ("small", 10_000), ("medium", 50_000), ("large", 100_000), ("full", None)]
)
def test_a_dataset_preset_is_what_the_table_says(name: str, count: int | None) -> None:
    assert BOOK.preset("dataset", name).settings.values["data"]["max_images"] == count


@pytest.mark.parametrize(("name", "changes"), [("none", 0), ("auto", 2), ("flip", 1), ("gentle", 2), ("strong", 8)])
def test_an_augment_preset_is_what_the_table_says(name: str, changes: int) -> None:
    run = BOOK.compose({"augment": name}, Settings())
    before = RunConfig().by_path()
    paths = [path for path, value in run.config.by_path().items() if before[path] != value]
    assert len(paths) == changes
    assert all(path.startswith("data.augment.") for path in paths)


def test_a_mode_may_name_an_augment_preset_and_need_not(tmp_path: Path) -> None:
    mode = {"loss": "mse_l1", "training": "quick_test", "model": "small", "dataset": "tiny"}
    book = load_with(tmp_path, {"modes": {"plain": mode, "flipped": {**mode, "augment": "flip"}}})
    plain, flipped = compose(book, "plain"), compose(book, "flipped")
    same = {**mode, "augment": "none"}
    assert plain.config == compose(load_with(tmp_path, {"modes": {"same": same}}), "same").config
    assert flipped.config.data.augment.horizontal_flip
    assert flipped.config.data.max_images == 1000
    assert flipped.origins["data.augment.horizontal_flip"].startswith("augment preset flip (")


def test_every_combination_of_presets_is_valid_and_explained() -> None:
    paths = set(RunConfig().by_path())
    common = {path for path in paths if path.startswith(("seed", "data"))}  # what no union has in other members only
    common |= {f"model.{name}" for name in ("family", "image_size", "channels")}
    inner = ("dataset", "augment")  # two parts of `data`; all other kinds fill parts of their own
    both = itertools.cycle(itertools.product(*(PRESETS[kind] for kind in inner)))
    outer = [kind for kind in SECTIONS if kind not in inner]
    combinations = [*itertools.product(*(PRESETS[kind] for kind in outer))]
    assert len(combinations) >= math.prod(len(PRESETS[kind]) for kind in inner)
    for names, others in zip(combinations, both, strict=False):
        chosen = dict(zip(outer, names, strict=True)) | dict(zip(inner, others, strict=True))
        run = BOOK.compose(chosen, Settings())
        assert set(run.origins) == set(run.config.by_path())
        assert common <= set(run.origins)


@pytest.mark.parametrize("name", PRESETS["loss"])
def test_beta_exceeds_one_and_warms_up_only_in_resume_fix(name: str) -> None:
    """A run that starts at the optimum for its beta has no use for another beta before."""
    kl = BOOK.compose({"loss": name}, Settings()).config.loss.kl
    assert kl.weight > 1.0
    assert schedule.factor(kl.schedule, 0.0) == (0.0 if name == "resume_fix" else 1.0)
    assert schedule.factor(kl.schedule, 1.0) == 1.0


def test_every_preset_and_mode_says_what_it_is() -> None:
    for entry in [*BOOK.modes.values(), *(p for kind in SECTIONS for p in BOOK.presets(kind).values())]:
        assert entry.description
        assert entry.use_case


def test_the_fixing_loss_is_sharper_than_the_one_it_extends() -> None:
    fix = BOOK.compose({"loss": "resume_fix"}, Settings()).config.loss
    base = BOOK.compose({"loss": "high_quality"}, Settings()).config.loss
    assert fix.perceptual.weight > base.perceptual.weight
    assert schedule.warmup_end(fix.kl.schedule) > schedule.warmup_end(base.kl.schedule)


def test_resume_fix_keeps_batch_size_and_precision_of_the_run() -> None:
    values = BOOK.preset("training", "resume_fix").settings.values["training"]
    assert not {"batch_size", "gradient_accumulation_steps", "precision"} & set(values)


def _other(value: object, path: str) -> object:
    """A valid value of a field that differs from its default."""
    words = {
        "device": "cpu",
        "data.range": [0.0, 4095.0],
        "training.ema_decay": 0.99,
        "training.validate_every_epochs": 3,
        "training.samples.every_epochs": 3,
        "data.split_by": "bytes",
        "training.precision": "bf16",
        "training.memory_format": "channels_last",
        "training.compile": False,
        "model.channels": 3,
        "model.family": "residual",
        "data.background": "black",
        "data.cache_on_device": True,
        "loss.lpips.net": "alex",
        "loss.perceptual.layers": ["relu1_2"],
        "training.early_stopping.patience": None,
        "training.max_grad_norm": None,
        "training.optimizer.kind": "sgd",
        "training.lr_schedule.kind": "constant",
        "loss.kl.schedule.kind": "cosine",
        "loss.kl.constraint.kind": "free_bits",
        "loss.kl.reduction": "mean_sum",
        "preflight": "strict",
        "density.fit": "mixture",
        "license": "cc-by-4.0",
    }
    if path in words:
        return words[path]
    if path.endswith((".missing", ".schedule.kind")):
        return "strict" if path.endswith(".missing") else "linear"
    if isinstance(value, list):
        return [{"pattern": "encoder.*", "lr_factor": 0.5, "weight_decay": None, "frozen": False, "optimizer": None}]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.5
    return 3 if path.startswith("training.max_steps") or "images" in path or "epochs" in path else "x/y z.pth"


@pytest.mark.parametrize("path", sorted(RunConfig().by_path()))
def test_set_reaches_every_field(path: str) -> None:
    run = BOOK.compose({"loss": "mse_l1"}, Settings())
    old = run.config.by_path()[path]
    new = _other(old, path)
    run = BOOK.compose({"loss": "mse_l1"}, from_command_line({}, [f"{path}={json.dumps(new)}"]))
    assert run.config.by_path()[path] == new != old
    assert run.origins[path] == "--set"


def test_every_union_member_can_be_reached_by_its_kind() -> None:
    for path in [path for path in field_paths(RunConfig) if path.endswith(".schedule.kind")]:
        for kind in ("constant", "linear", "cosine", "cyclical"):
            BOOK.compose({"loss": "mse_l1"}, from_command_line({}, [f"{path}={kind}"]))
    for kind in ("adamw", "adam", "sgd"):
        BOOK.compose({"loss": "mse_l1"}, from_command_line({}, [f"training.optimizer.kind={kind}"]))


# --- the user's own file ------------------------------------------------------------------------------


def load_with(tmp_path: Path, content: object) -> PresetBook:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return PresetBook.load(extra=path, shipped=SHIPPED)


def test_a_file_overrides_presets_and_is_named_as_origin(tmp_path: Path) -> None:
    content = {"loss": {"kl": {"weight": 9}}, "seed": 3, "training": {"optimizer": {"kind": "sgd"}}}
    run = compose(load_with(tmp_path, content), "fast_high_quality")
    assert run.config.loss.kl.weight == 9
    assert run.config.seed == 3
    assert run.config.training.optimizer.kind == "sgd"
    assert run.origins["loss.kl.weight"].endswith("mine.json")
    assert run.origins["training.optimizer.lr"] == "default"
    assert run.config.loss.mse.weight == compose(BOOK, "fast_high_quality").config.loss.mse.weight


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    book = load_with(tmp_path, {"loss": {"kl": {"weight": 9}}})
    assert compose(book, "quick_test", from_command_line({"--beta": 4.0}, [])).config.loss.kl.weight == 4


def test_a_file_adds_and_replaces_presets_and_says_so(tmp_path: Path) -> None:
    content = {
        "loss_presets": {
            "mse_l1": {"_extends": "mse_l1", "l1": {"weight": 0.7}},
            "mine": {"_extends": "high_quality", "kl": {"weight": 4}},
        },
        "modes": {"quick_test": {"loss": "mse_l1", "training": "quick_test", "model": "small", "dataset": "tiny"}},
    }
    book = load_with(tmp_path, content)
    run = compose(book, "quick_test")
    assert run.config.loss.l1.weight == 0.7
    assert run.config.loss.mse.weight == 1.0
    assert run.origins["loss.l1.weight"].startswith("loss preset mse_l1 (")
    assert "mine.json, replaces" in run.origins["loss.l1.weight"]
    assert run.origins["loss.l1.weight"].endswith("config_unified.json)")
    mine = book.compose({"loss": "mine"}, Settings())
    assert mine.config.loss.kl.weight == 4
    assert mine.config.loss.perceptual == BOOK.compose({"loss": "high_quality"}, Settings()).config.loss.perceptual


def test_a_mode_overrides_its_presets_but_not_the_file(tmp_path: Path) -> None:
    mode = {"loss": "mse_l1", "training": "quick_test", "model": "small", "dataset": "tiny"}
    mode["set"] = {"loss.kl.weight": 6, "training.optimizer": {"kind": "sgd"}, "training.epochs": 3}
    book = load_with(tmp_path, {"modes": {"mine": mode}, "training": {"epochs": 4}})
    run = compose(book, "mine")
    assert run.config.loss.kl.weight == 6
    assert run.config.training.optimizer.kind == "sgd"
    assert run.config.training.epochs == 4
    assert run.origins["loss.kl.weight"].startswith("mode mine (")


def test_origins_name_the_preset_that_says_so() -> None:
    book = json.loads(SHIPPED.read_text(encoding="utf-8"))
    for path, origin in compose(BOOK, "quick_test").origins.items():
        if match := re.match(r"(\w+) preset (\w+) \(", origin):
            value = book[f"{match[1]}_presets"][match[2]]
            for key in path.removeprefix(f"{SECTIONS[match[1]]}.").split("."):
                value = value[key]


def test_comments_are_ignored_everywhere(tmp_path: Path) -> None:
    content = {"_a": [1], "loss": {"_b": "x", "kl": {"_c": {}, "weight": 3}}}
    assert compose(load_with(tmp_path, content), "quick_test").config.loss.kl.weight == 3
