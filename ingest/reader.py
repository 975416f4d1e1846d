"""An accepted series to a volume, whatever it is stored as."""

from __future__ import annotations

from ingest.dicom import read_dicom
from ingest.nifti import read_nifti
from ingest.series import Series
from ingest.sources import read_files
from ingest.volume import Volume


def read_series(series: Series) -> Volume:
    """Read the voxels of a series that the scan accepted.

    Raises:
        SeriesError: the pixels show what the headers did not.
    """
    if series.source_kind == "dicom":
        return read_dicom(series)
    [(_, data)] = read_files(series.refs)
    return read_nifti(data)
