"""Where the compiler fails the user is told in a sentence, and what fails for another reason is not blamed on it."""

import pytest
import torch

from unified_vae.core.errors import EnvironmentProblem
from unified_vae.training import step
from unified_vae.training.compiler import its_failures_told

pytestmark = pytest.mark.slow  # torch's compiler takes half a minute to load


def without_a_compiler(graph, inputs):
    raise RuntimeError("no C++ compiler was found")


def without_memory(graph, inputs):
    raise torch.OutOfMemoryError("out of memory")


def with_kernels_that_fail(graph, inputs):
    def run(_):
        raise RuntimeError("an illegal memory access was encountered")

    run._boxed_call = True
    return run


def backend(backward):
    """One that hands the backward pass to `backward`. The compiler takes seconds to load: not with this file."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func

    return aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=backward)


@pytest.mark.parametrize(
    ("backward", "kind", "words"),
    [
        (without_a_compiler, EnvironmentProblem, r"no C\+\+ compiler was found.*--set training\.compile=false"),
        (without_memory, torch.OutOfMemoryError, "out of memory"),
        (with_kernels_that_fail, RuntimeError, "illegal memory access"),
    ],
)
def test_a_backward_pass_that_fails(backward, kind, words):
    loss = torch.compile(lambda x: (x * x).sum(), backend=backend(backward))(torch.ones(2, requires_grad=True))
    with pytest.raises(kind, match=words), its_failures_told():
        loss.backward()


def test_a_step_tells_of_a_backward_pass_that_cannot_be_compiled(monkeypatch):
    compile_it, some = torch.compile, backend(without_a_compiler)
    monkeypatch.setattr(torch, "compile", lambda function, **how: compile_it(function, backend=some, **how))
    stepper = step.Stepper.__new__(step.Stepper)
    stepper._compiled = step.with_the_compiler(lambda model, objective, images, noise: ((images * noise).sum(), {}))
    stepper.model = stepper.objective = None
    loss, _ = stepper._forward(torch.ones(2, requires_grad=True), torch.ones(2))
    with pytest.raises(EnvironmentProblem, match=r"torch\.compile does not work here"):
        stepper._differentiate(loss)
