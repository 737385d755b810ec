"""A decoder starts no slower than what it reads needs."""

import subprocess
import sys

READ = """
import sys
from diastole.workers.formats import lean
assert lean.nibabel().Nifti1Header
assert "pydicom" not in sys.modules, "it is imported, or stands in the way"
import pydicom, nibabel
assert pydicom.dcmread and nibabel is lean.nibabel()
"""


def test_nibabel_does_not_bring_pydicom_which_can_be_imported_afterwards():
    subprocess.run([sys.executable, "-c", READ], check=True)
