"""The images of a subject: those of its run as the run opened them, or others at the model's size."""

from __future__ import annotations

from unified_vae.core.errors import DataError
from unified_vae.core.events import Observer
from unified_vae.data.dataset import DataSets
from unified_vae.data.prepare import open_data
from unified_vae.data.sources.find import same_source
from unified_vae.experiment.subject.subject import Subject


def is_own(subject: Subject, source: str | None) -> bool:
    """Whether a source, None for the run's, is what the subject's run was given, however its path is written."""
    return subject.record is not None and (source is None or same_source(source, subject.config.data.source))


def open_images(subject: Subject, source: str | None, observer: Observer, *, max_images: int | None = None) -> DataSets:
    """The images of a source, of the model's channels; without one, those of the run.

    The run's own are opened as it asked for them (`auto` channels follow the images), so that its pack in the cache is
    found: where they changed since, their channels may be others than the model's.

    Of another source, files that cannot be used are left out and named, however many: no option says how many may be.

    Args:
        max_images: of another source, decode no more for training.

    Raises:
        DataError: they are not there, or cannot be used.
    """
    config = subject.config.data
    if source is not None:
        config = config.replace(source=source, max_images=max_images, max_bad_fraction=1.0)
    data = open_data(config, subject.model.image_size, _channels(subject, source), observer.phase)
    if source is not None:
        left_out = [f"left out: {bad.format_line()}" for bad in data.quarantined[1:]]  # a note names the first
        for line in (*data.notes, *left_out):
            observer.notice(line)
    return data


def _channels(subject: Subject, source: str | None) -> int | None:
    """None follows the images."""
    if subject.record is None or not is_own(subject, source):
        return subject.model.channels
    asked = subject.record.requested.model.channels
    return None if asked == "auto" else asked


def refuse_other_channels(data: DataSets, subject: Subject) -> None:
    """Raise DataError where images do not fit the model."""
    if data.channels != subject.model.channels:
        raise DataError(
            f"the images have {data.channels} channel(s) now and the model {subject.model.channels}: name others with "
            "--data"
        )
