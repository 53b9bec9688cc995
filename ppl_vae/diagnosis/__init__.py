"""Can the numbers of a fit be trusted? Calibration, collapse, checks of the model, and a page with the verdicts."""

from .calibration import sbc
from .code_usage import Collapse, collapse
from .diagnosis import Diagnosis, diagnose
from .document import diagnosis_page, write_diagnosis
from .inference_data import to_inferencedata
from .predictive import prior_predictive
from .residuals import noise_calibration

__all__ = [
    "Collapse",
    "Diagnosis",
    "collapse",
    "diagnose",
    "diagnosis_page",
    "noise_calibration",
    "prior_predictive",
    "sbc",
    "to_inferencedata",
    "write_diagnosis",
]
