"""What a run says of its images before the first step."""

import pytest

from tests.helpers.runs import Recorder, request, train, write_images

ADVICE = "Where left and right must not be exchanged: --set data.augment.horizontal_flip=false"


def facts(folder, change, count=60):
    class StopsAtTheStart(Recorder):
        def run_started(self, event):
            super().run_started(event)
            raise KeyboardInterrupt

    recorder = StopsAtTheStart()
    with pytest.raises(KeyboardInterrupt):
        train(request(folder / "run", write_images(folder / "images.npy", count), change), [recorder])
    return dict(recorder.started[0].facts)


@pytest.mark.parametrize(
    ("asked", "line"),
    [(True, "half of the images mirrored"), (False, "none"), ("auto", f"half of the images mirrored. {ADVICE}")],
)
def test_mirroring_unasked_names_the_setting_that_leaves_it(asked, line, tmp_path):
    assert facts(tmp_path, {"data": {"augment": {"horizontal_flip": asked}}})["augmentation"] == line


@pytest.mark.parametrize(("count", "latents", "few"), [(60, 4, True), (80, 4, False), (80, 5, True)])
def test_few_images_are_named_with_what_to_expect(count, latents, few, tmp_path):
    line = facts(tmp_path, {"model": {"latents": latents}}, count).get("set size", "")
    assert (f"are few for {latents} latents: expect the PCA line" in line) == few
