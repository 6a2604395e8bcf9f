"""What a run says of its images before the first step."""

import pytest

from tests.helpers.runs import Recorder, request, train, write_images
from unified_vae.config.data import AffineConfig, AugmentConfig
from unified_vae.pipeline.run_header import augmentation_text

ADVICE = "--set data.augment.horizontal_flip=true"


@pytest.mark.parametrize(
    ("images", "epochs", "advised"), [(500, 100, True), (49_999, 10, True), (50_000, 100, False), (500, 9, False)]
)
def test_mirroring_is_advised_where_few_images_are_seen_often(images, epochs, advised):
    assert (ADVICE in augmentation_text(AugmentConfig(), images, epochs)) == advised


def test_nothing_is_advised_to_who_has_chosen():
    assert augmentation_text(AugmentConfig(affine=AffineConfig(rotate_degrees=5)), 500, 100).endswith("5 degrees")


@pytest.mark.parametrize("mirrored", [True, False])
def test_the_line_is_among_the_facts(mirrored, tmp_path):
    class StopsAtTheStart(Recorder):
        def run_started(self, event):
            super().run_started(event)
            raise KeyboardInterrupt

    change = {"data": {"augment": {"horizontal_flip": mirrored}}, "training": {"epochs": 12}}
    recorder = StopsAtTheStart()
    with pytest.raises(KeyboardInterrupt):
        train(request(tmp_path / "run", write_images(tmp_path / "images.npy"), change), [recorder])
    line = dict(recorder.started[0].facts)["augmentation"]
    assert line == "half of the images mirrored" if mirrored else ADVICE in line
