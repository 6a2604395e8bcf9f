"""At its end a run writes its page, with the diagnosis that the end found; a page that fails costs the run nothing."""

import json

from tests.helpers.runs import Recorder, request, write_images
from unified_vae.pipeline.fit import fit
from unified_vae.report import page

SHORT = {"training": {"epochs": 2, "samples": {"every_epochs": 1, "count": 4}}}


def test_a_finished_run_has_its_page(tmp_path):
    seen = Recorder()
    finished = fit(request(tmp_path / "run", write_images(tmp_path / "images.npy"), SHORT), [seen])
    html = (tmp_path / "run" / "report.html").read_text()
    kept = json.loads((tmp_path / "run" / "closing.json").read_text())
    (said,) = (line for line in seen.finished.advice if line.startswith("diagnosis:"))
    assert said.startswith(f"diagnosis: {kept['cause']} (") and kept["step"] == finished.step
    assert f"<strong>{kept['cause'].capitalize()}.</strong>" in html and "Written at the end of the run." in html
    assert f"{finished.values['psnr']:.2f} dB" in html and html.count("<img") == 3
    assert any("report.html" in line for line in finished.advice)


def test_a_page_that_fails_is_a_notice(tmp_path, monkeypatch):
    def broken(_):
        raise RuntimeError("no page today")

    monkeypatch.setattr(page, "render_run", broken)
    seen = Recorder()
    finished = fit(request(tmp_path / "run", write_images(tmp_path / "images.npy"), SHORT), [seen])
    assert finished.exit_code == 0 and (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert [line for line in seen.notices if "report.html could not be written (no page today)" in line]
