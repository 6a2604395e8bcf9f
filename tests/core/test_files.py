"""What a killed writer leaves is cleared, and nothing else."""

from unified_vae.core.files import STAGE_PREFIX, sweep_stages, write_text


def test_a_text_is_replaced_and_nothing_is_left_beside_it(tmp_path) -> None:
    for text in ("one", "two"):
        write_text(tmp_path / "note.txt", text)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("note.txt", text)]


def test_staged_files_and_folders_are_swept_and_others_are_kept(tmp_path) -> None:
    (tmp_path / f"{STAGE_PREFIX}config.json-4711").write_text("{")
    (tmp_path / f"{STAGE_PREFIX}model.safetensors-4711").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    sweep_stages(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "folder"]
    sweep_stages(tmp_path / "missing")
