"""PET activity to SUV, the standardised uptake value by body weight."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from pydicom.dataset import Dataset

from textseg.scan.dicom_frames import GE_SCAN_TIME


def suv_factor(headers: list[Dataset]) -> tuple[float | None, str | None]:
    """What a PET series' values in Bq/ml are multiplied by to give SUVbw in g/ml; or None and why not.

    SUVbw = activity [Bq/ml] × body weight [g] / (injected dose [Bq] × 2^(-Δt / half-life)), where Δt runs
    from the injection to the time that the images were corrected to: the series' time for DecayCorrection
    START, the injection itself for ADMIN. After the vendor-neutral pseudo-code of the Quantitative Imaging
    Biomarkers Alliance (QIBA, "Standardized Uptake Value (SUV)", in its FDG-PET/CT profile).

    Args:
        headers: of all slices of the series.
    """
    first = headers[0]
    units = first.get("Units")
    if units == "GML":
        return 1.0, None
    if units != "BQML":
        return None, f"PET values in units of {units or 'unknown kind'} were left as they are, not SUV."
    try:
        return _factor(headers), None
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        return None, f"PET values were left in Bq/ml, as the header does not say what SUV needs: {error}."


def _factor(headers: list[Dataset]) -> float:
    first = headers[0]
    tracer = first.RadiopharmaceuticalInformationSequence[0]
    weight_g = float(first.PatientWeight) * 1000
    dose_bq = float(tracer.RadionuclideTotalDose)
    half_life_s = float(tracer.RadionuclideHalfLife)
    if min(weight_g, dose_bq, half_life_s) <= 0:
        raise ValueError("weight, dose and half-life must be positive")
    corrected = set(first.get("CorrectedImage") or ("ATTN", "DECAY"))
    if not {"ATTN", "DECAY"} <= corrected:
        raise ValueError("the images are not corrected for attenuation and decay")
    correction = first.DecayCorrection
    if correction == "ADMIN":
        return weight_g / dose_bq
    if correction != "START":
        raise ValueError(f"decay correction is {correction}, not START or ADMIN")
    decay = 2 ** (-_seconds_since_injection(headers, tracer) / half_life_s)
    return weight_g / (dose_bq * decay)


def _seconds_since_injection(headers: list[Dataset], tracer: Dataset) -> float:
    reference = _decay_reference(headers)
    if tracer.get("RadiopharmaceuticalStartDateTime"):
        injected = _moment(str(tracer.RadiopharmaceuticalStartDateTime)[:14], "")
    else:
        injected = _moment(reference.strftime("%Y%m%d"), tracer.RadiopharmaceuticalStartTime)
        # Only the time of day is known, and the injection came before the scan: it was before midnight.
        injected -= timedelta(days=1) if injected > reference else timedelta()
    seconds = (reference - injected).total_seconds()
    if not 0 <= seconds < 86400:
        raise ValueError(f"the scan comes {seconds:.0f} s after the injection")
    return seconds


def _decay_reference(headers: list[Dataset]) -> datetime:
    """When the scan began: the series' time, unless that is of a later reconstruction."""
    series = _moment(headers[0].SeriesDate, headers[0].SeriesTime)
    acquired = min(_moment(header.AcquisitionDate, header.AcquisitionTime) for header in headers)
    if series <= acquired:
        return series
    private = headers[0].get(GE_SCAN_TIME)
    if private is not None:
        return _moment(str(private.value)[:14], "")
    raise ValueError("the series' time is later than its acquisition")


def _moment(date: Any, time: Any) -> datetime:
    text = f"{date}{str(time).partition('.')[0]:0<6}"[:14]
    return datetime.strptime(text, "%Y%m%d%H%M%S")
