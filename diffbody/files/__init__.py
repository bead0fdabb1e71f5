"""Picture files through any way to restore: which files, where to, what is done already, and what failed.

A restored `NAME.jpg` is called `NAME.restored.png`. Side pictures, such as one of before and after, are named after it:
`NAME.restored_before_after.png`. Names of this form are our own outputs and never taken as inputs from a folder.
"""

from diffbody.files.inputs import LEFT_OUT, Failure, Found, LeftOut, Source, collect, left_out_lines
from diffbody.files.names import MARK
from diffbody.files.plan import Job, Plan, StorageError, check_writable, plan
from diffbody.files.record import RECORD, Recipe, Record, sha256_of
from diffbody.files.run import RestoreFile, Summary, run
from diffbody.files.task import FAILED, RESTORED, SKIPPED, Output, Result, Settings, check_absent

__all__ = [
    "FAILED",
    "LEFT_OUT",
    "MARK",
    "RECORD",
    "RESTORED",
    "SKIPPED",
    "Failure",
    "Found",
    "Job",
    "LeftOut",
    "Output",
    "Plan",
    "Recipe",
    "Record",
    "RestoreFile",
    "Result",
    "Settings",
    "Source",
    "StorageError",
    "Summary",
    "check_absent",
    "check_writable",
    "collect",
    "left_out_lines",
    "plan",
    "run",
    "sha256_of",
]
