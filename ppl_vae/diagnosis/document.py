"""The page of a diagnosis, and the folder that it is written to with its numbers and draws."""

import json
from pathlib import Path

from ..evaluation.pareto import k_threshold
from ..files import writable, write_text
from ..report.table import printed
from ..report.templates import filled_template
from . import plots
from .calibration import FALSE_ALARMS
from .diagnosis import Diagnosis
from .grades import THRESHOLDS
from .inference_data import write_draws
from .residuals import CENTRAL

__all__ = ["diagnosis_page", "write_diagnosis"]


def diagnosis_page(found: Diagnosis) -> str:
    """Return the page as HTML that needs no other file, in the style of the report of a comparison."""
    k_hat = found.bounds.k_hat
    finite = k_hat[k_hat.isfinite()]
    threshold = k_threshold(found.num_particles)
    return filled_template(
        "diagnosis/diagnosis.html.jinja",
        found=found,
        threshold=threshold,
        left_out=len(k_hat) - len(finite),
        printed=printed,
        level=FALSE_ALARMS,
        scales=THRESHOLDS,
        coverage=list(zip(CENTRAL, found.noise.coverage, strict=False)),
        k_plot=plots.plot_tail_indices(finite, threshold) if len(finite) else "",
        rank_plot=plots.plot_ranks(found.ranks),
        cumulative_plot=plots.plot_distributions(found.data),
        bar_plot=plots.plot_bars(found.collapse.kl_per_dim, found.collapse.variance, found.noise.pit),
    )


def write_diagnosis(found: Diagnosis, folder: str | Path) -> Path:
    """Write ``diagnosis.html``, ``diagnosis.json`` and ``draws.nc`` into a folder, and return the path of the page.

    Raises:
        ValueError: If the folder cannot be written to.
    """
    folder = writable(folder)
    write_draws(folder / "draws.nc", found.data)
    write_text(folder / "diagnosis.json", json.dumps(found.as_dict(), indent=2, allow_nan=False) + "\n")
    write_text(folder / "diagnosis.html", diagnosis_page(found))
    return folder / "diagnosis.html"
