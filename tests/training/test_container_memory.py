"""The memory that a container's limit leaves, in both forms that Linux has."""

from pathlib import Path

import pytest

from unified_vae.training.memory import memory_left_in_container

FORMS = {
    2: ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    1: ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
}


def container(root: Path, form: int, limit: str, used: int, details: str | None) -> Path:
    for name, text in zip(FORMS[form], (limit, str(used), details), strict=False):
        if text is not None:
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize("form", FORMS)
def test_reclaimable_file_pages_count_as_free(tmp_path, form):
    details = f"anon 60\nfile 35\n{FORMS[form][3]} 30\nactive_file 5"
    assert memory_left_in_container(container(tmp_path, form, "100", 95, details)) == 35


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("details", [None, "", "anon 60", "no numbers here at all"])
def test_without_such_details_all_that_is_used_counts(tmp_path, form, details):
    assert memory_left_in_container(container(tmp_path, form, "100", 95, details)) == 5


def test_it_is_never_negative(tmp_path):
    assert memory_left_in_container(container(tmp_path, 2, "100", 120, "inactive_file 10")) == 0


def test_without_a_limit_the_memory_of_the_machine_counts(tmp_path):
    assert memory_left_in_container(tmp_path / "none") is None
    assert memory_left_in_container(container(tmp_path, 2, "max", 95, "inactive_file 30")) is None
