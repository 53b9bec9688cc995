"""Can the numbers of a fit be trusted? Calibration, collapse, checks of the model, and the page that says it."""

from .calibration import sbc
from .code_usage import Collapse, collapse
from .diagnosis import Diagnosis, diagnose, page, write
from .inference_data import to_inferencedata
from .predictive import noise_calibration, prior_predictive

__all__ = [
    "Collapse",
    "Diagnosis",
    "collapse",
    "diagnose",
    "noise_calibration",
    "page",
    "prior_predictive",
    "sbc",
    "to_inferencedata",
    "write",
]
