"""What several tests share; beside `conftest.py`, whose name the rooms' own conftests take too."""

from pathlib import Path

OPT = Path(__file__).parent / "assets" / "opt-5m"
#: Small enough for a test, large enough for a Hessian of full rank on the embedded models.
SMALL = {"calibration.samples": 16, "calibration.length": 128, "calibration.batch_size": 8}
#: For bytes and files, where quality does not matter.
TINY = {"calibration.samples": 8, "calibration.length": 64, "calibration.batch_size": 4}


def hub_cache(root, repository, files, revision="main"):
    """A cache as huggingface_hub lays it out: refs/REVISION names a commit, snapshots/COMMIT holds the files."""
    import datasets

    base = root / f"datasets--{repository.replace('/', '--')}"
    (base / "refs" / revision).parent.mkdir(parents=True)
    (base / "refs" / revision).write_text("0" * 40)
    for name, rows in files.items():
        path = base / "snapshots" / ("0" * 40) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(path)
