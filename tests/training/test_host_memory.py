"""Freed memory stays with the process, and goes back when asked: counted by the system, in processes of glibc."""

import contextlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.runs import server
from unified_vae.cli.app import MALLOC_VARIABLES

pytestmark = [
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc"),
    pytest.mark.skipif(bool(os.environ.get("LD_PRELOAD")), reason="another allocator may be loaded"),
]

BLOCK, TIMES, PAGE = 64 * 2**20, 5, os.sysconf("SC_PAGE_SIZE")
SCRIPT = f"""
import ctypes, json, resource, sys
from unified_vae.cli.app import keep_freed_memory, set_process_defaults

if sys.argv[2:]:  # before the blocks: torch is large
    import torch
    from unified_vae.core.device import ComputeDevice

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    with open("/proc/self/statm") as status:
        return int(status.read().split()[1]) * resource.getpagesize()

small_pages = ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0  # no huge pages: as many faults as there are pages
if sys.argv[1] == "keep":
    keep_freed_memory()
elif sys.argv[1] == "train":
    set_process_defaults(None)
elif sys.argv[1] == "library":
    from unified_vae.training.distributed import open_runtime

    open_runtime("cpu", "fp32").__enter__()
bytearray({BLOCK})
before = faults()
for _ in range({TIMES}):
    bytearray({BLOCK})
after, held = faults(), resident()
if sys.argv[2:]:
    ComputeDevice(torch.device("cpu")).empty_cache()
print(json.dumps({{"small_pages": small_pages, "faults": after - before, "returned": held - resident()}}))
"""


def run_script(arguments: list[str], answer: Path) -> None:
    """In a process of the fork server, which has torch already: what the script prints goes to a file."""
    sys.argv = ["-c", *arguments]
    with answer.open("w") as file, contextlib.redirect_stdout(file):
        exec(SCRIPT, {"__name__": "__main__"})


def run_with_torch(how: str, folder: Path) -> dict[str, int]:
    """As `run_life`, with the bytes that are given back at the end."""
    process = server().Process(target=run_script, args=([how, "return"], folder / f"{how}.json"))
    process.start()
    process.join(120)
    return result_of((folder / f"{how}.json").read_text())


def run_script_alone(how: str, **variables: str) -> dict[str, int]:
    """The page faults of a process that frees and takes a block again."""
    users = {name: value for name, value in os.environ.items() if name not in (*MALLOC_VARIABLES, "GLIBC_TUNABLES")}
    command = [sys.executable, "-c", SCRIPT, how]
    return result_of(subprocess.run(command, env=users | variables, capture_output=True, text=True, check=True).stdout)


def result_of(text: str) -> dict[str, int]:
    result = json.loads(text)
    if not result["small_pages"]:
        pytest.skip("the system does not let a process do without huge pages")
    return result


def test_a_block_that_comes_back_costs_no_pages(tmp_path: Path) -> None:
    usual, kept = run_with_torch("leave", tmp_path), run_with_torch("keep", tmp_path)
    assert usual["faults"] > 0.9 * TIMES * BLOCK / PAGE, "glibc gives the block back each time"
    assert kept["faults"] < 0.01 * usual["faults"]
    assert kept["returned"] > 0.9 * BLOCK and usual["returned"] < 0.1 * BLOCK


def test_the_training_commands_keep_it(tmp_path: Path) -> None:
    result = run_with_torch("train", tmp_path)
    assert result["faults"] < 0.01 * TIMES * BLOCK / PAGE and result["returned"] > 0.9 * BLOCK


def test_the_library_leaves_the_process_as_it_is(tmp_path: Path) -> None:
    assert run_with_torch("library", tmp_path)["faults"] > 0.9 * TIMES * BLOCK / PAGE


@pytest.mark.parametrize(
    ("name", "value"), [*((name, "131072") for name in MALLOC_VARIABLES), ("GLIBC_TUNABLES", "glibc.malloc.check=0")]
)
def test_the_settings_of_the_user_stand(name: str, value: str) -> None:
    assert run_script_alone("keep", **{name: value})["faults"] > 0.9 * TIMES * BLOCK / PAGE


def test_a_tunable_of_something_else_is_no_such_setting() -> None:
    assert run_script_alone("keep", GLIBC_TUNABLES="glibc.pthread.rseq=0")["faults"] < 0.01 * TIMES * BLOCK / PAGE
