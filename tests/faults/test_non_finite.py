"""NaN/Inf: no step is taken with them, their images are named, the run rolls back or is aborted."""

import json
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.faults.fault_rows import report
from tests.faults.test_memory import IMAGES, vae_step
from tests.helpers.faults import Poison, injected, ranks, rows, run_with_faults
from tests.helpers.runs import Recorder, leftovers, merged, outcome, request, server, train
from tests.helpers.train_steps import optimizer_tensors, take
from unified_vae.config.training import RecoveryConfig
from unified_vae.core.distributions import DiagonalGaussian
from unified_vae.core.errors import Diverged
from unified_vae.core.retention import saved_steps
from unified_vae.models.vae import VAE
from unified_vae.training import validation
from unified_vae.training.anomalies import MIN_NORMS, GradientSpike, MetricAccumulator, SkippedStep
from unified_vae.training.checkpointer import Checkpointer
from unified_vae.training.distributed import Runtime
from unified_vae.training.state import TrainState

NAN, INF = float("nan"), float("inf")


# --- one step ----------------------------------------------------------------------------------------


def everything(train_step):
    """All that a step may change."""
    groups = {
        "model": train_step.model.state_dict(),
        "ema": train_step.ema.model.state_dict(),
        "objective": train_step.objective.state_dict(),
        "optimizer": optimizer_tensors(train_step),
    }
    return {f"{group}/{name}": value.clone() for group, held in groups.items() for name, value in held.items()}


def spoil_image(train_step, patch):
    images = IMAGES.clone()
    images[3, 0, 2, 2] = NAN
    return images


def spoil_gradient(train_step, patch):
    """The loss is finite, one number of one gradient is not."""
    parameter = next(train_step.model.decoder.parameters())
    parameter.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), INF))
    return IMAGES


def spoil_loss(train_step, patch):
    """The gradients are finite, the loss is not."""
    term = train_step.objective.terms["l1"]
    forward = term.forward
    patch.setattr(term, "forward", lambda *pictures: forward(*pictures) + INF)
    return IMAGES


def spoil_weights(train_step, patch):
    with torch.no_grad():
        next(train_step.model.parameters()).flatten()[0] = NAN
    return IMAGES


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("spoil", [spoil_image, spoil_gradient, spoil_loss, spoil_weights])
def test_a_non_finite_step_changes_nothing(spoil, fused, monkeypatch):
    train_step = vae_step(fused=fused)
    take(train_step, IMAGES, 0)
    images = spoil(train_step, monkeypatch)
    before = everything(train_step)
    metrics = take(train_step, images, 1)
    assert not torch.isfinite(metrics).all()
    for name, value in everything(train_step).items():
        assert torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0)), name


def test_scaled_gradients_change_nothing_overflows_are_skipped():
    """As for fp16, on the CPU: the loss is multiplied before the backward pass, the gradients divided after it."""
    plain, scaled = vae_step(), vae_step()
    scaled.updater.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        rows_of_both = [take(train_step, IMAGES, step) for train_step in (plain, scaled)]
        torch.testing.assert_close(*rows_of_both, rtol=1e-4, atol=1e-5)
    before = everything(scaled)
    with torch.no_grad():
        scaled.updater.scaler._scale.fill_(3e38)  # the gradients overflow
    metrics = take(scaled, IMAGES, 3)
    assert torch.isfinite(metrics[:-1]).all() and not torch.isfinite(metrics[-1])
    assert all(torch.equal(value, before[name]) for name, value in everything(scaled).items())
    assert scaled.updater.scaler.get_scale() == pytest.approx(1.5e38)
    accumulator = MetricAccumulator(scaled.names, TrainState(step=1), RecoveryConfig(), scaled=True)
    accumulator.add(metrics)
    assert accumulator.flush() == []


def test_averages_are_taken_once_for_each_step_that_was():
    """As the formula says, with the skipped steps left out."""
    train_step = vae_step()
    average = {name: value.clone() for name, value in train_step.ema.model.named_parameters()}
    for step in range(12):
        images = spoil_image(train_step, None) if step in (3, 4, 9) else IMAGES
        take(train_step, images, step)
        if images is IMAGES:
            part = 1 - min(0.9, (2 + step) / (11 + step))
            for name, value in train_step.model.named_parameters():
                average[name].lerp_(value.detach(), part)
    torch.testing.assert_close(dict(train_step.ema.model.named_parameters()), average, rtol=1e-6, atol=1e-8)


# --- the books ---------------------------------------------------------------------------------------

NAMES = ["loss.total", "gradient.norm"]


def kept(rows, every, **rule):
    """The state and the events after rows of (loss, norm), read every so many steps."""
    state = TrainState()
    accumulator = MetricAccumulator(NAMES, state, RecoveryConfig(**rule), scaled=rule.pop("scaled", False))
    events = []
    for number, row in enumerate(rows, start=1):
        state.step = number
        accumulator.add(torch.tensor(row))
        if number % every == 0:
            events += accumulator.flush()
    return state, events + accumulator.flush()


def test_what_is_counted_does_not_depend_on_when_it_is_read():
    rng = random.Random(0)
    measured = [(rng.choice([1.0, 2.0, NAN]), rng.choice([1.0, 1.5, 50.0, INF])) for _ in range(200)]
    assert (
        kept(measured, 1, max_consecutive_skips=99)
        == kept(measured, 7, max_consecutive_skips=99)
        == kept(measured, 1000, max_consecutive_skips=99)
    )


def test_reading_ends_where_the_run_is_lost():
    measured = [(1.0, 1.0), (NAN, 1.0), (1.0, INF), (NAN, NAN), (1.0, 1.0)]
    state, events = kept(measured, 5, max_consecutive_skips=3)
    assert [event.consecutive for event in events] == [1, 2, 3]
    assert [event.metrics for event in events] == [("loss.total",), ("gradient.norm",), ("loss.total", "gradient.norm")]
    assert (state.skipped_steps, state.consecutive_skips, state.log_count) == (3, 3, 1)


def test_an_overflow_of_scaled_gradients_is_no_news():
    state = TrainState(step=2)
    accumulator = MetricAccumulator(NAMES, state, RecoveryConfig(), scaled=True)
    accumulator.add(torch.tensor([1.0, INF]))
    accumulator.add(torch.tensor([NAN, INF]))
    assert accumulator.flush() == [SkippedStep(2, ("loss.total", "gradient.norm"), 1)]
    assert state.log_count == 0


def test_a_gradient_far_above_the_running_median_is_a_leap():
    measured = [(1.0, 1.0 + 0.01 * number) for number in range(MIN_NORMS)] + [(1.0, 9.0), (1.0, 11.0), (1.0, 1.0)]
    state, events = kept(measured, 1, grad_spike_ratio=10.0)
    assert events == [GradientSpike(MIN_NORMS + 2, 11.0, pytest.approx(1.08, abs=0.01))]
    assert state.grad_spikes == 1
    assert kept(measured, 1, grad_spike_ratio=12.0)[1] == []


# --- whole runs --------------------------------------------------------------------------------------


SHORT = {"training": {"epochs": 4, "log_every_steps": 2, "lr_schedule": {"kind": "constant"}}}
BACK = Poison((14, 15, 16, 17, 18), above=2e-3)  # the rate is 3e-3, and half of that after going back


def listed(run_dir):
    return [json.loads(line) for line in (run_dir / "skipped.jsonl").read_text().splitlines()]


def test_training_recovers_from_skipped_batches_and_names_files(source, tmp_path):
    watcher = Recorder()
    with injected(Poison((3, 9, 10), value=INF)):
        assert (
            train(request(tmp_path / "run", source, merged(SHORT, {"model": {"pca_init": False}})), [watcher]).exit_code
            == 0
        )
    result = listed(tmp_path / "run")
    assert [row["step"] for row in result] == [3, 9, 10]
    assert all(len(row["images"]) == 8 and "loss.mse" in row["not_finite"] for row in result)
    said = [notice for notice in watcher.notices if "skipped: NaN/Inf" in notice]
    assert len(said) == 3
    for row, notice in zip(result, said, strict=True):
        assert f"step {row['step']} skipped: NaN/Inf in" in notice and row["images"][0] in notice
    train_rows = rows(tmp_path / "run")
    assert [row["steps.skipped"] for row in train_rows] == [0, 1, 1, 1, *[3] * 7], "no row where all were skipped"
    assert train_rows[-1]["loss.total"] < train_rows[0]["loss.total"]


@pytest.mark.parametrize("runs", [1, pytest.param(40, marks=pytest.mark.long)])
def test_bad_batches_anywhere_are_recovered_from(source, tmp_path, runs):
    """Random steps, some of them in a row, NaN or infinite: skipped where they are few, left behind where not."""
    rng, counts, steps = random.Random(11), {"skipped": 0, "listed": 0, "back": 0}, 24
    for number in range(runs):
        bad = set(rng.sample(range(1, steps + 1), rng.randint(1, 6)))
        first = rng.randint(1, steps - 6)
        bad |= set(range(first, first + 6)) if number % 2 else set()
        faults = [Poison(tuple(sorted(bad)), above=2e-3, value=rng.choice([NAN, INF, -INF]))]
        watcher, run_request = Recorder(), request(tmp_path / f"run-{number}", source, SHORT)
        with injected(*faults):
            assert train(run_request, [watcher]).exit_code == 0
        newest = json.loads((max((run_request.run_dir / "checkpoints").iterdir()) / "state.json").read_text())["train"]
        result = listed(run_request.run_dir)
        counts["skipped"] += newest["skipped_steps"]
        counts["listed"] += sum(bool(row["images"]) and row["step"] in bad for row in result)
        counts["back"] += newest["rollbacks"]
        assert [row["step"] for row in rows(run_request.run_dir, "validation")] == [0, 6, 12, 18, 24]
    assert counts["skipped"] == counts["listed"] > 0
    report(
        fault=f"NaN/Inf batches at random steps of {runs} runs",
        target="recovered, files named",
        result=f"{runs} of {runs} runs; {counts['skipped']} batches skipped, all listed with their files; "
        f"{counts['back']} rollbacks",
    )


def test_the_image_at_fault_is_named_alone(source, tmp_path, monkeypatch):
    """A picture for which the network gives no numbers, whichever batch it is in."""
    change = merged(SHORT, {"data": {"augment": {"horizontal_flip": False}}})
    with injected(Poison((3,))):
        train(request(tmp_path / "look", source, merged(change, {"training": {"max_steps": 3}})), [])
    name = listed(tmp_path / "look")[0]["images"][2]  # the first batch, which is looked at before, has others
    marked = torch.from_numpy(np.load(source)[int(name.removeprefix("row "))]).permute(2, 0, 1).float() / 255
    encode = VAE.encode

    def poisoned(model, images):
        broken = model.training & ((images - marked).flatten(1).abs().amax(1) == 0)
        posterior = encode(model, images)
        return DiagonalGaussian(torch.where(broken[:, None], NAN, posterior.mean), posterior.logvar)

    monkeypatch.setattr(VAE, "encode", poisoned)
    watcher = Recorder()
    assert train(request(tmp_path / "run", source, change), [watcher]).exit_code == 0
    said = [notice for notice in watcher.notices if "skipped: NaN/Inf" in notice]
    assert len(said) >= 4, "once an epoch"
    assert all(f"Caused by {name}, of 8 images (loss.mse, loss.l1 and rate.nats)." in notice for notice in said)


def test_lost_runs_go_back_with_a_lower_rate(source, tmp_path):
    watcher = Recorder()
    with injected(BACK):
        assert train(request(tmp_path / "run", source, SHORT), [watcher]).exit_code == 0
    back = [notice for notice in watcher.notices if "rolled back to step" in notice]
    assert len(back) == 1
    assert "rolled back to step 12, continuing with 0.5 times the learning rate (rollback 1 of 3)" in back[0]
    train_rows = rows(tmp_path / "run")
    assert [row["step"] for row in train_rows] == list(range(2, 25, 2)), "each step once"
    assert train_rows[6]["lr"] < 0.55 * train_rows[5]["lr"]
    assert [row["step"] for row in rows(tmp_path / "run", "validation")] == [0, 6, 12, 18, 24]
    newest = json.loads((max((tmp_path / "run" / "checkpoints").iterdir()) / "state.json").read_text())["train"]
    assert (newest["lr_scale"], newest["rollbacks"], newest["skipped_steps"]) == (0.5, 1, 5)
    longer = train(request(tmp_path / "run", source, merged(SHORT, {"training": {"epochs": 5}})), [watcher])
    assert longer.exit_code == 0
    labels = dict(watcher.started[-1].facts)
    assert labels["learning rate"].startswith("0.5 times") and labels["skipped steps"].startswith("5,")


@pytest.mark.parametrize(
    ("lazily", "kills"),
    [(False, 1), pytest.param(False, 60, marks=pytest.mark.long), pytest.param(True, 60, marks=pytest.mark.long)],
)
def test_killed_runs_end_in_the_same_bits_through_rollbacks(source, tmp_path, lazily, kills):
    faults, rng = (Poison(BACK.steps, BACK.above, lazily=lazily), Poison((4, 21))), random.Random(5)
    change = merged(SHORT, {"training": {"checkpoint": {"every_minutes": 1e-6}}})
    with injected(*faults):
        begun = time.monotonic()
        train(
            request(tmp_path / "whole", source, merged(change, {"training": {"checkpoint": {"every_minutes": 9}}})), []
        )
        seconds = time.monotonic() - begun
    whole, killed, runs, orphans = outcome(tmp_path / "whole"), 0, 0, []
    while killed < kills:
        runs += 1
        run_request, over = request(tmp_path / f"cut-{runs}", source, change), False
        while not over:
            process = server().Process(target=run_with_faults, args=(run_request, faults, None, {}))
            process.start()
            process.join(120 if killed == kills else rng.uniform(0.05, 0.9) * seconds)
            process.kill()
            process.join()
            over = process.exitcode == 0
            killed += process.exitcode == -signal.SIGKILL
        assert outcome(run_request.run_dir) == whole
        assert (run_request.run_dir / "skipped.jsonl").read_bytes() == (
            tmp_path / "whole" / "skipped.jsonl"
        ).read_bytes()
        orphans += leftovers(run_request.run_dir)
    assert orphans == []
    report(
        fault=f"{killed} SIGKILLs of runs that skip steps and roll back, read {'late' if lazily else 'at once'}",
        target="bit-identical",
        result=f"{runs} of {runs} runs identical; 0 orphan files",
    )


def test_late_reading_changes_no_number(source, tmp_path):
    for name, lazily in (("at once", False), ("late", True)):
        with injected(Poison(BACK.steps, BACK.above, lazily=lazily), Poison((4, 21))):
            train(request(tmp_path / name, source, SHORT), [])
    assert outcome(tmp_path / "at once") == outcome(tmp_path / "late")


def test_a_run_aborts_with_a_diagnosis_after_all_rollbacks(source, tmp_path):
    run_request, watcher = request(tmp_path / "run", source, SHORT), Recorder()
    with injected(Poison(BACK.steps)), pytest.raises(Diverged) as caught:
        train(run_request, [watcher])
    text = str(caught.value)
    assert caught.value.exit_code == 4
    last = listed(tmp_path / "run")[-1]
    for word in ("rate.nats", "loss.mse", "step 18", "3 rollback(s)", last["images"][0], "lower --lr", "skipped.jsonl"):
        assert word in text, (word, text)
    assert "The checkpoint of step 12 is kept." in text
    assert sum("rolled back to step" in notice for notice in watcher.notices) == 3
    assert saved_steps(tmp_path / "run" / "checkpoints")[0] == 12
    assert len(listed(tmp_path / "run")) == 20, "five in each of four tries"
    lower = {"training": {"optimizer": {"lr": 1e-3, "kind": "adamw"}}}
    assert train(request(tmp_path / "run", source, merged(SHORT, lower)), [watcher]).exit_code == 0
    assert watcher.started[-1].start_step == 12


@pytest.mark.parametrize(
    ("rule", "step", "times"),
    [({"max_rollbacks": 0}, 18, 0), ({"max_consecutive_skips": 2, "max_rollbacks": 1, "lr_factor": 0.1}, 15, 1)],
)
def test_how_long_to_try_is_a_setting(source, tmp_path, rule, step, times):
    watcher = Recorder()
    change = merged(SHORT, {"training": {"recovery": rule}})
    with injected(Poison(BACK.steps)), pytest.raises(Diverged, match=f"up to step {step}"):
        train(request(tmp_path / "run", source, change), [watcher])
    back = [notice for notice in watcher.notices if "rolled back to step" in notice]
    assert len(back) == times
    assert all("0.1 times" in notice for notice in back)


def test_rollback_before_the_first_validation_goes_to_the_start(source, tmp_path):
    watcher = Recorder()
    with injected(Poison((2, 3, 4), above=2.9e-3)):
        change = {"training": {"recovery": {"max_consecutive_skips": 3}}}
        assert train(request(tmp_path / "run", source, merged(SHORT, change)), [watcher]).exit_code == 0
    assert any("back to step 0" in notice for notice in watcher.notices)
    assert rows(tmp_path / "run")[0]["lr"] == pytest.approx(1.5e-3)


@pytest.mark.parametrize("lost", ["absent", "damaged"])
def test_rollback_uses_the_next_checkpoint_if_one_is_lost(source, tmp_path, lost, monkeypatch):
    """It could not be saved, or is damaged by the time the run goes back; a save by the clock is there."""
    rollback = Checkpointer.rollback

    def robbed(checkpointer, step):
        checkpointer.wait()
        for folder in checkpointer.root.glob("step-*"):
            if lost == "damaged" and folder.name == "step-000000012":
                (folder / "model.safetensors").write_bytes(b"nothing")
            elif lost == "absent" and folder.name <= "step-000000012":
                shutil.rmtree(folder)
        return rollback(checkpointer, step)

    monkeypatch.setattr(Checkpointer, "rollback", robbed)
    watcher, change = Recorder(), {"training": {"checkpoint": {"every_minutes": 1e-6, "keep_last": 9}}}
    with injected(Poison((14, 15), above=2e-3)):
        change["training"]["recovery"] = {"max_consecutive_skips": 2}
        assert train(request(tmp_path / "run", source, merged(SHORT, change)), [watcher]).exit_code == 0
    back = next(notice for notice in watcher.notices if "rolled back to step" in notice)
    assert f"back to step {11 if lost == 'damaged' else 14}" in back
    assert [row["step"] for row in rows(tmp_path / "run", "validation")] == [0, 6, 12, 18, 24]


def test_a_validation_that_is_nan_or_infinite_goes_back(source, tmp_path, monkeypatch):
    calls, validate = [], validation.validate

    def spoilt(*arguments):
        result = validate(*arguments)
        calls.append(result)
        if len(calls) == 3:
            result.values["loss.mse"] = NAN
        return result

    monkeypatch.setattr(validation, "validate", spoilt)
    watcher = Recorder()
    assert train(request(tmp_path / "run", source, SHORT), [watcher]).exit_code == 0
    back = "NaN/Inf in loss.mse in the validation of step 12: rolled back to step 6"
    assert any(back in notice for notice in watcher.notices)
    assert [row["step"] for row in rows(tmp_path / "run", "validation")] == [0, 6, 12, 18, 24]


def test_a_leaping_gradient_is_clipped_counted_and_reported(source, tmp_path, monkeypatch):
    average, calls = Runtime.all_reduce_gradients, []

    def leaping(runtime, gradients):
        calls.append(len(gradients))
        if len(calls) == 20:
            torch._foreach_mul_(gradients, 1e4)
        average(runtime, gradients)

    monkeypatch.setattr(Runtime, "all_reduce_gradients", leaping)
    watcher = Recorder()
    change = {"training": {"optimizer": {"kind": "sgd", "lr": 1e-4}, "epochs": 5}}
    assert train(request(tmp_path / "run", source, merged(SHORT, change)), [watcher]).exit_code == 0
    said = [notice for notice in watcher.notices if "running median" in notice]
    assert len(said) == 1 and "step 20: gradient norm" in said[0] and "clipped to 1" in said[0]
    train_rows = rows(tmp_path / "run")
    assert [train_rows[row]["gradient.spikes"] for row in (8, 9, -1)] == [0, 1, 1]
    assert train_rows[-1]["loss.mse"] < 2 * train_rows[8]["loss.mse"]


def test_one_bad_share_skips_the_step_on_all_processes(source, tmp_path):
    change = merged(SHORT, {"training": {"epochs": 2}})
    answers = ranks(request(tmp_path / "run", source, change), (Poison((3,), rank=1),), tmp_path)
    assert [each["exit_code"] for each in answers] == [0, 0]
    assert [row["step"] for row in listed(tmp_path / "run")] == [3]
    assert rows(tmp_path / "run")[-1]["steps.skipped"] == 1
    assert all(torch.isfinite(torch.tensor(row["loss.total"])) for row in rows(tmp_path / "run"))


def test_all_processes_go_back_together(source, tmp_path):
    run_request = request(tmp_path / "run", source, SHORT)
    answers = ranks(run_request, (Poison(BACK.steps, BACK.above, rank=1),), tmp_path)
    assert [each["exit_code"] for each in answers] == [0, 0]
    assert any("back to step 12" in notice for notice in answers[0]["notices"])
    assert answers[1]["notices"] == []
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(2, 25, 2))


MOST_OPERATIONS = 15  # 7 with torch 2.15


class CountedOperations(TorchDispatchMode):
    """Counts what is computed inside."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def checks_of_a_step():
    """What a step does to skip, count and try again, each as a call."""
    train_step, state = vae_step(), TrainState()
    metrics = take(train_step, IMAGES, 0)
    accumulator = MetricAccumulator(train_step.names, state, RecoveryConfig(), scaled=False)
    terms, skip = dict(zip(train_step.term_names, metrics[3:-1], strict=True)), torch.zeros(())

    def count():
        state.step += 1
        accumulator.add(metrics)
        accumulator.flush()

    added = [
        count,
        lambda: torch.isfinite(metrics).all().logical_not().float(),
        lambda: train_step.objective.observe(terms, skip),
        lambda: train_step.ema.update(100, skip),
        lambda: train_step.micro_batches.run_with_oom_retry(12, lambda count: metrics),
    ]
    without = [lambda: train_step.objective.observe(terms), lambda: train_step.ema.update(100)]
    return added, without


def operations(calls):
    for call in calls:
        call()  # the first time prepares
    with CountedOperations() as counted:
        for call in calls:
            call()
    return counted.count


def test_checks_of_a_step_take_few_operations():
    added, without = checks_of_a_step()
    assert operations(added) - operations(without) <= MOST_OPERATIONS


def quickest(work, times):
    """Seconds of the quickest of many calls: what the work takes where nothing else is in the way."""
    result = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        result.append(time.perf_counter() - begun)
    return min(result)


@pytest.mark.long
def test_checks_of_a_step_take_little_time():
    added, without = checks_of_a_step()
    total = 1e3 * (sum(quickest(call, 5000) for call in added) - sum(quickest(call, 5000) for call in without))
    report(
        fault="none: time per step of skipping, counting and out-of-memory checks",
        target="at most 0.15 ms",
        result=f"{total:.3f} ms",
    )
    assert total < 0.15
