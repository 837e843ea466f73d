"""What several tests share; beside `conftest.py`, whose name the rooms' own conftests take too."""

from pathlib import Path

OPT = Path(__file__).parent / "assets" / "opt-5m"
#: Small enough for a test, large enough for a Hessian of full rank on the embedded models.
SMALL = {"calibration.samples": 16, "calibration.length": 128, "calibration.batch_size": 8}
#: For bytes and files, where quality does not matter.
TINY = {"calibration.samples": 8, "calibration.length": 64, "calibration.batch_size": 4}
