"""What a run says of its images before the first step."""

import pytest

from tests.helpers.runs import Recorder, request, train, write_images

ADVICE = "Where left and right must not be exchanged: --set data.augment.horizontal_flip=false"


@pytest.mark.parametrize(
    ("asked", "line"),
    [(True, "half of the images mirrored"), (False, "none"), ("auto", f"half of the images mirrored. {ADVICE}")],
)
def test_mirroring_unasked_names_the_setting_that_leaves_it(asked, line, tmp_path):
    class StopsAtTheStart(Recorder):
        def run_started(self, event):
            super().run_started(event)
            raise KeyboardInterrupt

    recorder = StopsAtTheStart()
    with pytest.raises(KeyboardInterrupt):
        change = {"data": {"augment": {"horizontal_flip": asked}}}
        train(request(tmp_path / "run", write_images(tmp_path / "images.npy"), change), [recorder])
    assert dict(recorder.started[0].facts)["augmentation"] == line
