"""Molecules as SMILES texts: whether one is a molecule by RDKit, and whether its syntax is right without it."""

import importlib.util
import re

__all__ = ["has_rdkit", "has_smiles_syntax", "is_molecule"]

ATOM = r"Cl|Br|[BCNOPSFIbcnops]"  # atoms that need no brackets
INSIDE = r"\d*(?:Cl|Br|Si|Se|[HBCNOPSFI]|se|[bcnops])@{0,2}(?:H\d?)?(?:[+-]\d|\++|-+)?"
BOND = r"[-=#:/\\]"
RING = rf"{BOND}?(?:\d|%\d\d)"
TOKEN = re.compile(
    rf"(?P<atom>{ATOM}|\[{INSIDE}\])|(?P<ring>{RING})|(?P<bond>{BOND})|(?P<open>\()|(?P<close>\))|(?P<dot>\.)"
)
# What may stand before each kind of token. A text begins as after a dot.
BEFORE = {
    "atom": ("atom", "bond", "ring", "open", "close", "dot"),
    "bond": ("atom", "ring", "open", "close"),
    "ring": ("atom", "ring"),
    "open": ("atom", "ring", "close"),
    "close": ("atom", "ring", "close"),
    "dot": ("atom", "ring", "close"),
}
LAST = ("atom", "ring", "close")


def has_rdkit() -> bool:
    """Whether RDKit is installed, which the extra ``chem`` brings."""
    return importlib.util.find_spec("rdkit") is not None


def is_molecule(text: str) -> bool:
    """Whether RDKit reads a text as a molecule: its syntax, the valences of its atoms, and its aromatic rings.

    Raises:
        ModuleNotFoundError: If RDKit is not installed.
    """
    if not has_rdkit():
        raise ModuleNotFoundError("RDKit is not installed: pip install 'ppl_vae[chem]', or use has_smiles_syntax")
    from rdkit import Chem, rdBase

    if text.split() != [text]:
        return False  # RDKit would read what follows a space as a name
    with rdBase.BlockLogs():  # RDKit writes a line for each text that it refuses
        molecule = Chem.MolFromSmiles(text)
    return molecule is not None and molecule.GetNumAtoms() > 0


def has_smiles_syntax(text: str) -> bool:
    """Whether the syntax of a SMILES is right. It says less than RDKit, which also looks at the chemistry.

    Atoms are known ones (H, B, C, N, O, F, Si, P, S, Cl, Se, Br, I and the aromatic ones), brackets, branches and bonds
    stand where they may, and ring closures come in pairs between different atoms. Neither valences nor aromaticity are
    looked at. As in OpenSMILES, the ring closures of an atom stand before its branches. RDKit reads them after, too.
    """
    kind, end, branches, atom = "dot", 0, 0, 0
    rings: dict[str, int] = {}  # the atom at which each ring closure was opened
    for token in TOKEN.finditer(text):
        before, kind = kind, str(token.lastgroup)
        if token.start() != end or before not in BEFORE[kind]:
            return False
        end = token.end()
        atom += kind == "atom"
        branches += (kind == "open") - (kind == "close")
        if branches < 0 or (kind == "ring" and not _closes(rings, token.group().lstrip("-=#:/\\"), atom)):
            return False
    return end == len(text) and kind in LAST and branches == 0 and not rings


def _closes(rings: dict[str, int], number: str, atom: int) -> bool:
    """Open a ring closure at an atom, or close it. Whether it does not close at the atom where it was opened."""
    return rings.pop(number) != atom if number in rings else rings.setdefault(number, atom) == atom
