"""The README: all of its Python runs as written, and its table of variants is the catalogue."""

import re
from pathlib import Path

import pytest
import torch

from ppl_vae.catalogue import VARIANTS, entries

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.process
def test_the_python_of_the_readme_runs_as_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks run in order, in one interpreter and a new folder, in float32, as a reader would run them."""
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "a lower bound of log p(x)" in printed  # the receipt
    assert "\n[]\n" in printed  # check: every contract holds
    assert printed.rstrip().endswith("True")  # the converted autoencoder gives the same outputs
    assert names["images"].shape == (64, 1, 8, 8)  # type: ignore[attr-defined]
    own, theirs = re.search(r"\n(-[\d.]+) (-[\d.]+) ± [\d.]+\n", printed).groups()  # type: ignore[union-attr]
    assert float(own) == pytest.approx(float(theirs), rel=0.01)  # the bound in the SVI script, and from evaluate


def test_the_table_of_the_readme_is_the_catalogue() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", README, re.MULTILINE)
    table = {name: cells.replace(r"\|", "|") for name, cells in rows if name in VARIANTS}
    assert table == {name: " | ".join(cells) for name, *cells in (entry.values() for entry in entries())}
