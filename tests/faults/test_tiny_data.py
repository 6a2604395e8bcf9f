"""As few images as there can be: each epoch takes a real step, or the run is refused with advice."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from tests.faults.fault_rows import report
from tests.helpers.images import png, write_files
from tests.helpers.runs import Recorder, request, server, train
from unified_vae.core.errors import DataError, UserError

EPOCHS, BATCH = 2, 4
SHORT = {"training": {"epochs": EPOCHS, "batch_size": BATCH}}


def images(folder: Path, count: int, copies: bool = False) -> Path:
    return write_files(folder, {f"{n}.png": png(0 if copies else n, 16) for n in range(count)})


@pytest.fixture(scope="module")
def covered():
    """What was gone through, for the table."""
    done: list[str] = []
    yield done
    report(
        fault=f"0 to 5 images, batch {BATCH}",
        target="a real step an epoch, or refused with advice",
        result=f"{len(done)} of 5 sets take it; 0 and 1 images refused",
    )


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_to_train_and_validate_are_refused(tmp_path, count) -> None:
    (tmp_path / "images").mkdir()
    seen = Recorder()
    with pytest.raises(DataError, match=r"need one each.*--data") as caught:
        train(request(tmp_path / "run", images(tmp_path / "images", count), SHORT), [seen])
    assert caught.value.exit_code == 2 and not seen.started


@pytest.mark.figure
@pytest.mark.parametrize(("count", "copies"), [(2, False), (2, True), (3, True), (4, False), (5, False)])
def test_every_epoch_takes_a_step(tmp_path, covered, count, copies) -> None:
    """Also with fewer images than a batch, and where all are copies of one."""
    seen = Recorder()
    ended = train(request(tmp_path / "run", images(tmp_path / "images", count, copies), SHORT), [seen])
    assert ended.exit_code == 0 and ended.step >= EPOCHS
    assert len(seen.validations) == 1 + EPOCHS  # the start too
    assert seen.started[0].steps_per_epoch >= 1
    covered.append(f"{count} images")


def _run_rank(run_request, rank: int, world: int, port: int, answers) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        ended = train(run_request, [Recorder()])
        answers.put((rank, ended.exit_code, ended.step))
    except UserError as error:
        answers.put((rank, error.exit_code, str(error)))


@pytest.mark.skipif(sys.platform != "linux", reason="gloo is tested on Linux")
def test_fewer_images_than_processes(tmp_path) -> None:
    """One image to train and one to validate, two processes: both see the one, and no validation is missing."""
    run_request = request(tmp_path / "run", images(tmp_path / "images", 2), SHORT)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    queue = server().Queue()
    processes = [server().Process(target=_run_rank, args=(run_request, rank, 2, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    answers = sorted(queue.get(timeout=240) for _ in processes)
    for process in processes:
        process.join(30)
    assert answers == [(0, 0, EPOCHS), (1, 0, EPOCHS)]
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
