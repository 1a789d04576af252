"""Run folders: what is in them, which run is which, locks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msea_lightning.config.lazy import lazy

if TYPE_CHECKING:
    from msea_lightning.runs.folder import RunError as RunError
    from msea_lightning.runs.folder import RunFolder as RunFolder
    from msea_lightning.runs.folder import cell_folder as cell_folder
    from msea_lightning.runs.folder import comparable as comparable
    from msea_lightning.runs.folder import describe_error as describe_error
    from msea_lightning.runs.folder import find_runs as find_runs
    from msea_lightning.runs.folder import fingerprint as fingerprint
    from msea_lightning.runs.folder import is_held as is_held
    from msea_lightning.runs.folder import open_run as open_run
    from msea_lightning.runs.folder import runs_by_fingerprint as runs_by_fingerprint
    from msea_lightning.runs.folder import runs_of as runs_of
    from msea_lightning.runs.folder import share_start as share_start
    from msea_lightning.runs.folder import with_absolute_places as with_absolute_places
    from msea_lightning.runs.folder import write_atomically as write_atomically
    from msea_lightning.runs.folder import write_csv as write_csv
    from msea_lightning.runs.folder import write_json as write_json

__all__ = [
    "RunError",
    "RunFolder",
    "cell_folder",
    "comparable",
    "describe_error",
    "find_runs",
    "fingerprint",
    "is_held",
    "open_run",
    "runs_by_fingerprint",
    "runs_of",
    "share_start",
    "with_absolute_places",
    "write_atomically",
    "write_csv",
    "write_json",
]

__getattr__ = lazy(
    __name__,
    {
        "RunError": "folder",
        "RunFolder": "folder",
        "cell_folder": "folder",
        "comparable": "folder",
        "describe_error": "folder",
        "find_runs": "folder",
        "fingerprint": "folder",
        "is_held": "folder",
        "open_run": "folder",
        "runs_by_fingerprint": "folder",
        "runs_of": "folder",
        "share_start": "folder",
        "with_absolute_places": "folder",
        "write_atomically": "folder",
        "write_csv": "folder",
        "write_json": "folder",
    },
)
