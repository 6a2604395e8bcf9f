"""Some seventy wrong config files: a value that is wrong at a path of a sound book, or text that is no JSON."""

from __future__ import annotations

import json

from tests.helpers.good_config import GOOD


def changed(path: str, value: object) -> str:
    """The good book, one value put in at a path; an entry a line."""
    book = json.loads(json.dumps(GOOD))
    *owners, last = path.split("/")
    here = book
    for key in owners:
        here = here.setdefault(key, {})
    here[last] = value
    return json.dumps(book, indent=2)


# where the wrong value goes, the value, and what the message must say
WRONG_VALUES = [
    ("loss_presets/l/mse/wieght", 1.0, ["unknown key 'wieght' in loss.mse", "'loss.mse.weight'"]),
    ("loss_presets/l/mes", {}, ["unknown key 'mes' in loss", "'loss.mse'"]),
    ("loss_presets/l/weight", 7.0, ["unknown key 'weight'", "'loss.mse.weight'"]),
    ("loss_presets/l/mse/weight", "1.0", ["loss.mse.weight: should be a valid number, got the text"]),
    ("loss_presets/l/mse/weight", True, ["loss.mse.weight: should be a valid number, got true"]),
    ("loss_presets/l/mse/weight", None, ["loss.mse.weight: should be a valid number, got null"]),
    ("loss_presets/l/mse/weight", [1], ["loss.mse.weight: should be a valid number, got [1]"]),
    ("loss_presets/l/mse/weight", -1, ["loss.mse.weight: should be greater than or equal to 0", "got -1"]),
    ("loss_presets/l/mse/weight", 0, ["every distortion weight is 0"]),
    ("loss_presets/l/mse", 3, ["loss.mse: should be an object in {braces}, got 3"]),
    ("loss_presets/l/kl/schedule", {"kind": "liner"}, ["'liner'", "'linear'"]),
    ("loss_presets/l/kl/schedule", {"warmup": 0.1}, ["'warmup' in loss.kl", "'constant'"]),
    ("loss_presets/l/kl/schedule", "linear", ["loss.kl.schedule: should be an object"]),
    ("loss_presets/l/perceptual", {"layers": []}, ["loss.perceptual.layers", "got []"]),
    ("loss_presets/l/perceptual", {"layers": ["relu9"]}, ["'relu5_3', got the text \"relu9\""]),
    ("loss_presets/l/_extends", "k", ["no loss preset 'k'"]),
    ("loss_presets/l/_extends", "l", ["loss presets form a circle: l -> l"]),
    ("loss_presets/l/_extends", 3, ["_extends should be text"]),
    ("loss_presets/l/_description", 3, ["_description should be text"]),
    ("loss_presets/l", [], ["should be an object"]),
    ("loss_presets", [], ["'loss_presets' should be an object"]),
    ("training_presets/t/epochs", 0, ["training.epochs: should be greater than or equal to 1", "got 0"]),
    ("training_presets/t/epochs", 1.5, ["training.epochs: should be a valid integer"]),
    ("training_presets/t/epoch", 1, ["unknown key 'epoch'", "'training.epochs'"]),
    ("training_presets/t/lr", 1, ["unknown key 'lr' in training", "'training.optimizer.lr'"]),
    ("training_presets/t/precision", "fp8", ["'auto', 'fp32', 'bf16' or 'fp16'"]),
    ("training_presets/t/optimizer/lr", 0, ["training.optimizer.lr: should be greater than 0", "got 0"]),
    ("training_presets/t/optimizer/momentum", 0.9, ["another kind than 'adamw'"]),
    ("training_presets/t/optimizer/beta_1", 0.9, ["'training.optimizer.beta1'"]),
    ("training_presets/t/gradient_accumulation_steps", 99, ["larger than training.batch_size"]),
    ("model_presets/s/latents", 0, ["model.latents: should be greater than or equal to 1, got 0"]),
    ("model_presets/s/latent", 8, ["'model.latents'"]),
    ("model_presets/s/channels", 2, ["'auto', 1 or 3, got 2"]),
    ("dataset_presets/d/max_images", "all", ["should be a valid integer, got the text \"all\""]),
    ("dataset_presets/d/background", "pink", ["white, black, gray or #rrggbb"]),
    ("dataset_presets/d/validation_fraction", 1, ["should be less than 1"]),
    ("modes/m/los", "l", ["mode m (", "unknown key 'los'", "'loss'"]),
    ("modes/m/loss", "mse", ["no loss preset 'mse'"]),
    ("modes/m/set", {"loss.kl.beta": 2}, ["no setting 'loss.kl.beta'"]),
    ("modes/m/set", [1], ["set should be an object"]),
    ("modes/m", {"loss": "l"}, ["names no preset for training and model and dataset"]),
    ("modes/m", {"fixes": 3}, ["fixes should be the folder of a run"]),
    ("los_presets", {}, ["unknown key 'los_presets'", "'loss_presets'"]),
    ("training", {}, ["unknown key 'training'", "'training_presets'"]),
    ("loss_presets/l/mse/hue", 1, ["unknown key 'hue' in loss.mse", "Known: loss.mse.weight"]),
    ("loss_presets/l/smoothness", {}, ["unknown key 'smoothness' in loss", "Known: loss.mse, "]),
    ("training_presets/t/epochs", True, ["training.epochs: should be a valid integer, got true"]),
    ("training_presets/t/epochs", "10", ["training.epochs: should be a valid integer, got the text \"10\""]),
    ("training_presets/t/optimizer/lr", "1e-3", ["training.optimizer.lr: should be a valid number, got the text"]),
    ("training_presets/t/optimizer/lr", -1e-3, ["training.optimizer.lr: should be greater than 0", "got -0.001"]),
    ("training_presets/t/optimizer", "adamw", ["training.optimizer: should be an object"]),
    ("training_presets/t/optimizer/kind", "adamax", ["'adamax' is not known", "'adamw'"]),
    ("training_presets/t/optimizer/kind", 3, ["training.optimizer.kind: '3' is not known", "adamw"]),
    ("dataset_presets/d/augment", {"horizontal_flip": 1}, ["should be a valid boolean or 'auto', got 1"]),
    ("dataset_presets/d/augment", {"affine": {"scale": {}}}, ["affine.scale: should be a valid number, got {}"]),
    ("dataset_presets/d/source", "", ["data.source: got the text \"\"", "A folder"]),
]  # fmt: skip

# text that is no book at all, and what the message must say
BROKEN = [
    ("", "is empty"),
    ('{"modes": {}, "modes": {}}', "the key 'modes' is given twice"),
    ('{"modes": {},}', "config_unified.json:1:14: "),
    ('{"modes": NaN}', "modes: NaN"),
    ('{"modes": [1, 1e999]}', "modes.1: NaN, infinities and numbers too large"),
    ("{'modes': {}}", "config_unified.json:1:2: expecting property name enclosed in double quotes"),
    ('{"modes": {} // mine\n}', "config_unified.json:1:14"),
    ("[]", "the file should be an object"),
    ('{"a":' * 100_000, "deep"),
    ('{"a":' * 60 + "1" + "}" * 60, "deep"),
    ('{"modes": ' + "9" * 5000 + "}", "4300"),
    ('{"modes": "\\ud800"}', "modes: the text holds half of a surrogate pair"),
    ('{"\\ud800": 1}', "half of a surrogate pair"),
    ('{"' + "a" * 3000 + '": 1}', "more than 200 letters"),
    ("\x00\x01", "config_unified.json:1:1"),
    (" " * (10 << 20) + "{}", "larger than"),
    ("\ufeff", "is empty"),  # a byte order mark, which editors on Windows write, counts for nothing
    ('\ufeff{"modes": NaN}', "modes: NaN"),
    ("\ufeff\ufeff{}", "config_unified.json:1:1"),
]
