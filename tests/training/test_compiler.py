"""Where the compiler fails the user is told in a sentence, and what fails for another reason is not blamed on it."""

import pytest
import torch

from tests.helpers.train_steps import small_step, take
from unified_vae.config.loss import LossConfig, MSEConfig
from unified_vae.config.model import ConvConfig
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.training.compile import translate_compile_errors

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
    with pytest.raises(kind, match=words), translate_compile_errors():
        loss.backward()


def test_a_step_whose_backward_pass_cannot_be_compiled(monkeypatch):
    original, failing = torch.compile, backend(without_a_compiler)
    monkeypatch.setattr(torch, "compile", lambda function, **how: original(function, backend=failing, **how))
    images = torch.rand(2, 3, 16, 16)
    model = ConvConfig(image_size=16, latents=2, base_channels=4, channels=3, pca_init=False)
    train_step = small_step(model, LossConfig(mse=MSEConfig(weight=1.0)), images, compile=True)
    with pytest.raises(EnvironmentProblem, match=r"torch\.compile does not work here"):
        take(train_step, images, 0)
