"""Texts as codes of their characters, padded to a fixed length."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Characters"]


@dataclass(frozen=True)
class Characters:
    """The coding of texts by their characters, for a ``Categorical`` likelihood with ``levels`` categories.

    The code of a character is its place in ``letters``. The last code, ``len(letters)``, is padding.

    Attributes:
        letters: All characters that a text may have, each once.
        length: The number of codes of a text.

    Raises:
        ValueError: If a letter occurs twice, or ``letters`` is empty.

    Example:
        >>> coding = Characters("abc", 4)
        >>> coding.codes(["cab"])
        tensor([[2., 0., 1., 3.]])
        >>> coding.text([2, 0, 3, 1])
        'ca'
    """

    letters: str
    length: int

    def __post_init__(self) -> None:
        if not self.letters or len(set(self.letters)) < len(self.letters):
            raise ValueError(f"letters must be different characters, at least one, got {self.letters!r}")

    @property
    def levels(self) -> int:
        """The number of codes, padding included."""
        return len(self.letters) + 1

    def fits(self, text: str) -> bool:
        """Whether a text can be coded."""
        return len(text) <= self.length and set(text) <= set(self.letters)

    def codes(self, texts: Iterable[str]) -> Tensor:
        """The codes of texts, [rows, length], whole numbers in the default float dtype.

        Raises:
            ValueError: If a text is too long or has a character that is not among the letters.
        """
        place = {letter: code for code, letter in enumerate(self.letters)}
        rows = []
        for text in texts:
            if not self.fits(text):
                wanted = f"at most {self.length} of the characters {self.letters}"
                raise ValueError(
                    f"{text!r} cannot be coded: wanted {wanted}; leave it out, or change letters or length"
                )
            codes = [place[letter] for letter in text]
            rows.append([*codes, *[len(self.letters)] * (self.length - len(codes))])
        return torch.tensor(rows, dtype=torch.get_default_dtype()).reshape(-1, self.length)

    def text(self, codes: Iterable[float]) -> str:
        """The text of codes, as numbers or a tensor [length]. It ends before the first padding."""
        letters: list[str] = []
        for code in map(int, codes):
            if code == len(self.letters):
                break
            letters.append(self.letters[code])
        return "".join(letters)
