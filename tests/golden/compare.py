"""Compare the golden runs of a commit with those of the working tree, bit by bit, on this machine.

    python -m tests.golden.compare COMMIT [CASE...]

Prints a line a case and exits with 1 where anything differs. Weights and pictures are compared without their names,
metrics by name where both have it. Results of a commit are kept in the folder of temporary files for the next time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]


def start(tree: Path, work: Path, names: list[str]) -> subprocess.Popen[str]:
    """The golden runs of a tree in a process of their own, with one thread; `work/result.json` is written last."""
    work.mkdir(parents=True, exist_ok=True)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "tests.golden.drive", str(tree), str(work / "cases"), str(work / "result.json")]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([*command, *names], cwd=TREE, env=environment, text=True, **output)


def finish(process: subprocess.Popen[str], work: Path) -> dict[str, Any]:
    """Wait for the golden runs; what came out.

    Raises:
        SystemExit: they could not be run.
    """
    printed, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"the golden runs ended with exit code {process.returncode}:\n{printed[-3000:]}")
    return dict(json.loads((work / "result.json").read_text(encoding="utf-8")))


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """How two results of a case differ, in a few lines; empty where they are equal."""
    failed = [
        f"failed {when}: {case['failed']}" for when, case in (("before", before), ("now", after)) if "failed" in case
    ]
    if failed:
        return failed
    lines = []
    for kind in ("tensors", "pictures"):
        for group in sorted(before[kind].keys() | after[kind].keys()):
            one, other = Counter(before[kind].get(group, [])), Counter(after[kind].get(group, []))
            gone, new = sorted((one - other).elements()), sorted((other - one).elements())
            if gone or new:
                shapes = ", ".join(sorted({each.partition(" ")[0] for each in gone + new})[:3])
                lines.append(f"{group}: of {one.total()} {kind} {len(gone)} are gone, {len(new)} are new ({shapes})")
    for run in sorted(before["numbers"].keys() | after["numbers"].keys()):
        lines += _other_rows(run, before["numbers"].get(run, []), after["numbers"].get(run, []))
    return lines


def _other_rows(run: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    """How the metrics of two runs differ: the first row where a number moved, and the first where a name came or went.

    A number that is the same under another name is no difference.
    """
    if len(before) != len(after):
        return [f"{run}: {len(before)} rows of metrics before, {len(after)} now"]
    moved, renamed = [], []
    for number, (one, other) in enumerate(zip(before, after, strict=True), 1):
        where = f"{run}: row {number} of the metrics ({other.get('split')}, step {other.get('step')})"
        moved += [
            f"{where}: {name} was {one[name]} and is {other[name]}"
            for name in one
            if other.get(name, one[name]) != one[name]
        ]
        gone = {name: one[name] for name in one if name not in other}
        new = {name: other[name] for name in other if name not in one}
        if Counter(map(repr, gone.values())) != Counter(map(repr, new.values())):
            renamed.append(f"{where}: {gone or 'nothing'} became {new or 'nothing'}")
    return [*moved[:1], *renamed[:1]]


def _of_commit(commit: str, names: list[str], work: Path) -> tuple[dict[str, Any], str]:
    """The results of a commit and where they are from."""
    sources = b"".join((HERE / name).read_bytes() for name in ("cases.py", "drive.py"))
    sources += b"".join(path.read_bytes() for path in sorted((HERE / "fixtures").rglob("*")) if path.is_file())
    machine = " ".join([commit, *names, platform.node(), sys.executable, version("torch"), version("numpy")])
    key = hashlib.sha256(sources + machine.encode()).hexdigest()[:16]
    kept = Path(tempfile.gettempdir()) / f"unified-vae-golden-{os.getuid()}" / f"{key}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8")), f"kept in {kept}"
    tree = work / "tree"
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], cwd=TREE, check=True)
    try:
        results = finish(start(tree, work, names), work)
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=TREE, check=True)
    kept.parent.mkdir(exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(results), encoding="utf-8")
    partial.replace(kept)
    return results, "run now"


def main() -> int:
    """Run, compare and print."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 2
    reference, *names = sys.argv[1:]
    actual = subprocess.run(
        ["git", "rev-parse", "--verify", f"{reference}^{{commit}}"], cwd=TREE, capture_output=True, text=True
    )
    if actual.returncode != 0:
        print(f"error: {reference} is no commit of {TREE}", file=sys.stderr)
        return 2
    commit = actual.stdout.strip()
    with tempfile.TemporaryDirectory(prefix="unified-vae-golden-") as folder:
        now = start(TREE, Path(folder) / "now", names)
        try:
            before, source = _of_commit(commit, names, Path(folder) / "before")
            after = finish(now, Path(folder) / "now")
        finally:
            now.kill()
    print(f"{commit[:10]} ({source}) against the working tree{_renamed(before, after)}")
    different = 0
    for name, result in after["cases"].items():
        lines = differences(before["cases"][name], result)
        different += bool(lines)
        seconds = f"{before['cases'][name]['seconds']:5.1f} s {result['seconds']:5.1f} s"
        print(f"  {name:20} {seconds}  {'equal' if not lines else 'DIFFERENT'}")
        for line in lines:
            print("      " + line.replace("\n", "\n      "))
    print(f"{len(after['cases']) - different} of {len(after['cases'])} cases are equal to the last bit")
    return int(different > 0)


def _renamed(before: dict[str, Any], after: dict[str, Any]) -> str:
    renamed = sorted(set(after["renamed"]) - set(before["renamed"]))
    return f"; settings that have their later names there: {', '.join(renamed)}" if renamed else ""


if __name__ == "__main__":
    raise SystemExit(main())
