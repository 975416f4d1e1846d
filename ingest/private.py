"""What a header may say to the outside: codes from closed lists and numbers within bounds.

Headers are typed by people and rewritten by every system on the way, so a name can stand where a
code or a number is expected. What is in no list here is dropped, never copied.
"""

from __future__ import annotations

MODALITIES = {
    "ANN", "AR", "AS", "ASMT", "AU", "BDUS", "BI", "BMD", "CD", "CF", "CFM", "CP", "CR", "CS",
    "CT", "CTPROTOCOL", "DD", "DF", "DG", "DM", "DMS", "DOC", "DS", "DX", "EC", "ECG", "EEG",
    "EMG", "EOG", "EPS", "ES", "FA", "FID", "FS", "GM", "HC", "HD", "IO", "IOL", "IVOCT",
    "IVUS", "KER", "KO", "LEN", "LP", "LS", "M3D", "MA", "MG", "MR", "MS", "NEARIR", "NM",
    "OAM", "OCT", "OP", "OPM", "OPR", "OPT", "OPTBSV", "OPTENF", "OPV", "OSS", "OT", "PA",
    "PLAN", "POS", "PR", "PT", "PX", "REG", "RESP", "RF", "RG", "RTDOSE", "RTIMAGE", "RTINTENT",
    "RTPLAN", "RTRAD", "RTRECORD", "RTSEGANN", "RTSTRUCT", "SC", "SEG", "SM", "SMR", "SR",
    "SRF", "ST", "STAIN", "TEXTUREMAP", "TG", "US", "VA", "VF", "XA", "XAPROTOCOL", "XC",
}  # fmt: skip
"""Defined terms of Modality, retired ones too (PS3.3 C.7.3.1.1.1)."""
KVP_RANGE = (20.0, 300.0)
"""Tube voltages of CT, kV; 20 also lets micro-CT by."""
SLICE_MM_RANGE = (0.05, 50.0)


def modality_of(text: str) -> str:
    """A DICOM modality, or "" for anything else.

    >>> modality_of("CT"), modality_of("MUSTERMANN")
    ('CT', '')
    """
    return text if text in MODALITIES else ""


def bounded(value: float | None, limits: tuple[float, float]) -> float | None:
    """``value`` within ``limits``, else None: 19550317 is a birth date, no voltage."""
    low, high = limits
    return value if value is not None and low <= value <= high else None
