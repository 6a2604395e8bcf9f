"""Memory that does not suffice: smaller micro-batches of the same batch, with the result of the whole one."""

import json
import resource
import sys
from pathlib import Path

import pytest
import torch

from tests.faults.fault_rows import report
from tests.helpers.faults import SmallMemory, injected, ranks, rows, run_with_faults
from tests.helpers.runs import Recorder, merged, outcome, request, server, train
from tests.helpers.train_steps import CPU, small_step, take
from unified_vae.config.loss import Capacity, FreeBits, Geco, KLConfig, L1Config, LossConfig, Unconstrained
from unified_vae.config.model import ConvConfig
from unified_vae.config.optim import AdamWConfig
from unified_vae.core.device import is_out_of_memory
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.losses.kl import kl_per_image
from unified_vae.training.memory import try_or_none_on_oom

MODEL = ConvConfig(image_size=16, latents=5, base_channels=8, channels=3, pca_init=False)
IMAGES = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
CONSTRAINTS = {
    "none": Unconstrained(),
    "free bits": FreeBits(nats_per_unit=0.05),
    "capacity": Capacity(capacity=0.3, initial_capacity=0.3),
    "geco": Geco(psnr=12.0),
}


def vae_step(constraint=CONSTRAINTS["none"], model=MODEL, images=IMAGES, **settings):
    loss = LossConfig(l1=L1Config(weight=0.2), kl=KLConfig(weight=2.0, constraint=constraint))
    # with its usual eps Adam turns the rounding of a gradient near zero into a step of any size
    return small_step(model, loss, images, optimizer=AdamWConfig(eps=1e-5), **settings)


def weights(train_step):
    return torch.cat(
        [p.detach().flatten().clone() for p in (*train_step.model.parameters(), *train_step.ema.model.parameters())]
    )


def trained(constraint, steps, *faults):
    """A training step after some calls, and their metrics."""
    train_step = vae_step(constraint, total_steps=steps)
    with injected(*faults):
        metrics = [take(train_step, IMAGES, step) for step in range(steps)]
    return train_step, torch.stack(metrics)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_the_result_is_that_of_the_whole_batch(name, backward):
    constraint = CONSTRAINTS[name]
    (whole, expected), (split, metrics) = (
        trained(constraint, 4, *faults) for faults in ((), (SmallMemory(2, backward=backward),))
    )
    assert (whole.micro_batches.count, split.micro_batches.count) == (1, 8)  # 12 -> 6 -> 3 -> 2 at most
    torch.testing.assert_close(metrics, expected, rtol=1e-5, atol=1e-6)
    assert (weights(split) - weights(whole)).abs().max() <= 1e-6
    torch.testing.assert_close(split.objective.state_dict(), whole.objective.state_dict(), rtol=1e-5, atol=1e-7)


def test_a_constraint_takes_the_kl_of_the_whole_batch():
    """The micro-batches lie on both sides of the bend, where their own means would give another gradient."""
    train_step = vae_step()
    with torch.no_grad():
        posteriors = [train_step.model.encode(chunk) for chunk in (IMAGES, IMAGES[:6], IMAGES[6:])]
    whole, first, second = (kl_per_image(posterior).mean().item() for posterior in posteriors)
    assert min(first, second) < whole < max(first, second)
    between = Capacity(capacity=(whole + max(first, second)) / 2, initial_capacity=(whole + max(first, second)) / 2)
    gradients = []
    for count in (1, 2):
        one = vae_step(between)
        one.micro_batches.count = count
        take(one, IMAGES, 0, lr=0.0)
        gradients.append(torch.cat([p.grad.flatten() for p in one.updater.parameters]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("steps", [20, pytest.param(100, marks=pytest.mark.long)])
def test_memory_that_runs_out_in_the_middle_of_training(steps):
    """A fake allocator with a limit that begins half way."""
    constraint = CONSTRAINTS["free bits"]
    whole, expected = trained(constraint, steps)
    train_step = vae_step(constraint, total_steps=steps)
    result = [take(train_step, IMAGES, step) for step in range(steps // 2)]
    assert train_step.micro_batches.count == 1
    with injected(SmallMemory(5)):
        result += [take(train_step, IMAGES, step) for step in range(steps // 2, steps)]
    assert train_step.micro_batches.count == 4
    losses = torch.stack(result)[:, 0], expected[:, 0]
    relative = ((losses[0] - losses[1]) / losses[1]).abs().max().item()
    weight = (weights(train_step) - weights(whole)).abs().max().item()
    report(
        fault=f"out of memory (fake allocator): after half of {steps} steps, 5 of 12 images fit",
        target="loss to 1e-5 relative, weights to 1e-6",
        result=f"loss to {relative:.1e}, weights to {weight:.1e}",
    )
    assert relative <= 1e-5
    assert weight <= 1e-6


def test_one_image_too_many_is_an_error_with_advice():
    train_step = vae_step()
    before = weights(train_step)
    sentence = r"one image at a time \(there is no room for 1 images\).*smaller model"
    with injected(SmallMemory(0)), pytest.raises(EnvironmentProblem, match=sentence):
        take(train_step, IMAGES, 0)
    assert torch.equal(weights(train_step), before)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def broken():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        try_or_none_on_oom(broken, CPU)


def test_the_allocator_of_the_cpu_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46)
    assert is_out_of_memory(caught.value)


def address_space(line):
    """Bytes: `VmSize` is in use now, `VmPeak` was at most."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{line}:")[1].split()[0])


def one_step(answer_file, count, room):
    """In a process of its own: a step, where the system refuses more than `room` bytes beyond what is in use."""
    torch.set_num_threads(1)
    model = ConvConfig(image_size=64, latents=8, base_channels=16, channels=3, pca_init=False)
    images = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    train_step = vae_step(model=model, images=images[:4])
    take(train_step, images[:4], 0, lr=0.0)  # libraries load what they load with their first use
    used = address_space("VmSize")
    if room:
        resource.setrlimit(resource.RLIMIT_AS, (used + room, -1))
    loss = take(train_step, images, 1, lr=0.0)[0].item()
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    answer_file.write_text(json.dumps([loss, train_step.micro_batches.count, address_space("VmPeak") - used]))


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize("count", [64, pytest.param(512, marks=pytest.mark.long)])
def test_memory_that_the_system_really_refuses(tmp_path, count):
    answers = []
    for room in (0, 3):
        limit = answers[0][2] // room if room else 0
        process = server().Process(target=one_step, args=(tmp_path / "answer.json", count, limit))
        process.start()
        process.join(300)
        answers.append(json.loads((tmp_path / "answer.json").read_text()))
    (whole, once, _), (split, count_, _) = answers
    assert once == 1 < count_
    assert split == pytest.approx(whole, rel=1e-5)
    report(
        fault=f"out of memory (real, main memory): a third of what {count} images need",
        target="loss to 1e-5 relative",
        result=f"{count_} micro-batches, loss to {abs(split / whole - 1):.1e}",
    )


# --- whole runs --------------------------------------------------------------------------------------

SHORT = {"training": {"epochs": 3, "log_every_steps": 1, "optimizer": {"kind": "adamw", "lr": 1e-3}}}


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(request(run_dir, source, SHORT), [Recorder()])
    return run_dir


def close(result, expected, relative=2e-4):
    """Whether the rows of two metrics files are the same but for rounding."""
    assert [row["step"] for row in result] == [row["step"] for row in expected]
    for mine, theirs in zip(result, expected, strict=True):
        assert mine["loss.total"] == pytest.approx(theirs["loss.total"], rel=relative, abs=1e-5)


def test_a_run_says_it_once_and_goes_on_to_the_same_result(undisturbed, source, tmp_path):
    watcher = Recorder()
    with injected(SmallMemory(3)):
        assert train(request(tmp_path / "run", source, SHORT), [watcher]).exit_code == 0
    said = [notice for notice in watcher.notices if "memory" in notice]
    assert len(said) == 1 and "micro-batches of at most 2 images" in said[0]
    assert rows(tmp_path / "run")[0]["loss.total"] == pytest.approx(rows(undisturbed)[0]["loss.total"], rel=1e-5)
    close(rows(tmp_path / "run"), rows(undisturbed))
    close(rows(tmp_path / "run", "validation"), rows(undisturbed, "validation"))


def test_a_resumed_run_starts_with_what_fitted(source, tmp_path, undisturbed):
    longer = {"training": {"max_steps": 12}}
    with injected(SmallMemory(3)):
        train(request(tmp_path / "cut", source, merged(SHORT, longer)), [Recorder()])
    watcher = Recorder()
    train(request(tmp_path / "cut", source, SHORT), [watcher])  # all memory is free again, and it is not asked
    assert ("memory", "micro-batches of at most 2 images, after out-of-memory") in watcher.started[0].facts
    assert not [notice for notice in watcher.notices if "memory" in notice]
    newest = json.loads((max((tmp_path / "cut" / "checkpoints").iterdir()) / "state.json").read_text())
    assert newest["train"]["num_micro_batches"] == 4


def test_killed_and_resumed_it_ends_in_the_same_bits(source, tmp_path):
    faults = (SmallMemory(3, evaluation=2),)
    for name, kills in (("whole", 0), ("cut", 2)):
        run_request = request(tmp_path / name, source, SHORT)
        for steps in [*(4 * kill + 1 for kill in range(kills)), None]:
            process = server().Process(target=run_with_faults, args=(run_request, faults, None, {}))
            process.start()
            while (
                steps is not None
                and process.is_alive()
                and not list((tmp_path / name).glob(f"checkpoints/step-{steps:09d}"))
            ):
                process.join(0.002)
            if steps is not None:
                process.kill()
            process.join(60)
        assert process.exitcode == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_validation_in_smaller_batches(source, tmp_path, undisturbed):
    watcher = Recorder()
    with injected(SmallMemory(8, evaluation=1)):
        assert train(request(tmp_path / "run", source, SHORT), [watcher]).exit_code == 0
    said = [notice for notice in watcher.notices if "while validating" in notice]
    assert said == ["out of memory while validating: from now on 1 images at once"]
    result, expected = rows(tmp_path / "run", "validation"), rows(undisturbed, "validation")
    for name, value in expected[-1].items():
        if name not in ("split", "step", "epoch"):
            assert result[-1][name] == pytest.approx(value, rel=1e-5, abs=1e-4), name
    assert outcome(tmp_path / "run")["model/model.safetensors"] == outcome(undisturbed)["model/model.safetensors"]


@pytest.mark.parametrize("kind", ["free_bits", pytest.param("capacity", marks=pytest.mark.slow)])
def test_validation_loss_does_not_depend_on_micro_batches(source, tmp_path, kind):
    limits = {"capacity": 12.0, "initial_capacity": 12.0} if kind == "capacity" else {"nats_per_unit": 3}
    constraint = {"kind": kind, **limits}
    change = merged(SHORT, {"training": {"epochs": 1}, "loss": {"kl": {"weight": 1.0, "constraint": constraint}}})
    losses = []
    for evaluation in (None, 1):
        with injected(SmallMemory(8, evaluation=evaluation)):
            train(request(tmp_path / str(evaluation), source, change), [Recorder()])
        losses.append(rows(tmp_path / str(evaluation), "validation")[0]["loss.total"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="gloo is tested on Linux")
def test_all_processes_follow_the_one_whose_memory_is_short(source, tmp_path):
    change = merged(SHORT, {"loss": {"kl": {"weight": 1.0, "constraint": {"kind": "free_bits", "nats_per_unit": 3}}}})
    train(request(tmp_path / "one", source, change), [Recorder()])
    answers = ranks(request(tmp_path / "two", source, change), (SmallMemory(1, rank=1),), tmp_path)
    assert [each["exit_code"] for each in answers] == [0, 0]
    assert any("micro-batches of at most 1 images" in notice for notice in answers[0]["notices"])
    close(rows(tmp_path / "two"), rows(tmp_path / "one"))


@pytest.mark.skipif(sys.platform != "linux", reason="gloo is tested on Linux")
def test_all_processes_end_where_one_image_is_too_much_for_one(source, tmp_path):
    answers = ranks(request(tmp_path / "run", source, SHORT), (SmallMemory(0, rank=1),), tmp_path)
    assert [each["exit_code"] for each in answers] == [3, 3]
