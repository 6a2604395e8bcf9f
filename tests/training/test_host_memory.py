"""Freed memory stays with the process, and goes back when asked: counted by the system, in processes of glibc."""

import json
import os
import platform
import subprocess
import sys

import pytest

from unified_vae.core.malloc import OF_MALLOC, TUNABLES, USERS_WORD

pytestmark = [
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc"),
    pytest.mark.skipif(bool(os.environ.get("LD_PRELOAD")), reason="another allocator may be loaded"),
]

BLOCK, TIMES, PAGE = 64 * 2**20, 5, os.sysconf("SC_PAGE_SIZE")
LIFE = f"""
import ctypes, json, resource, sys
from unified_vae.core.malloc import keep_freed_memory, return_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    with open("/proc/self/statm") as status:
        return int(status.read().split()[1]) * resource.getpagesize()

small_pages = ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0  # no huge pages: as many faults as there are pages
told = None
if sys.argv[1] == "keep":
    told = keep_freed_memory()
elif sys.argv[1] == "train":
    from unified_vae.cli.app import set_process_defaults

    set_process_defaults(None)
elif sys.argv[1] == "library":
    from unified_vae.training.distributed import open_runtime

    open_runtime("cpu", "fp32").__enter__()
bytearray({BLOCK})
before = faults()
for _ in range({TIMES}):
    bytearray({BLOCK})
after, held = faults(), resident()
return_freed_memory()
print(json.dumps({{"told": told, "small_pages": small_pages, "faults": after - before, "given": held - resident()}}))
"""


def life(how: str, **variables: str) -> dict:
    environment = {name: value for name, value in os.environ.items() if name not in (*USERS_WORD, TUNABLES)} | variables
    command = [sys.executable, "-c", LIFE, how]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(said.stdout)
    if not found["small_pages"]:
        pytest.skip("the system does not let a process do without huge pages")
    return found


def test_a_block_that_comes_back_costs_no_pages() -> None:
    usual, kept = life("leave"), life("keep")
    assert kept["told"] is True
    assert usual["faults"] > 0.9 * TIMES * BLOCK / PAGE, "glibc gives the block back each time"
    assert kept["faults"] < 0.01 * usual["faults"]
    assert kept["given"] > 0.9 * BLOCK and usual["given"] < 0.1 * BLOCK


def test_the_training_commands_keep_it() -> None:
    result = life("train")
    assert result["faults"] < 0.01 * TIMES * BLOCK / PAGE and result["given"] > 0.9 * BLOCK


def test_the_library_leaves_the_process_as_it_is() -> None:
    assert life("library")["faults"] > 0.9 * TIMES * BLOCK / PAGE


@pytest.mark.parametrize(
    ("name", "value"), [*((name, "131072") for name in USERS_WORD), (TUNABLES, f"{OF_MALLOC}check=0")]
)
def test_the_user_s_own_word_stands(name, value) -> None:
    found = life("keep", **{name: value})
    assert found["told"] is False and found["faults"] > 0.9 * TIMES * BLOCK / PAGE


def test_a_tunable_of_something_else_is_no_such_word() -> None:
    found = life("keep", **{TUNABLES: "glibc.pthread.rseq=0"})
    assert found["told"] is True and found["faults"] < 0.01 * TIMES * BLOCK / PAGE
