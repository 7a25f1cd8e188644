"""How well images agree with texts by CLIP: the real image of each text, and the one that was drawn for it."""

# N texts, D width of the features

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Agreement:
    """CLIP's cosine of each text with its real image and with its drawn one."""

    real_N: np.ndarray
    """(N,) float64."""
    drawn_N: np.ndarray
    """(N,) float64."""

    @classmethod
    def of(cls, text_ND: np.ndarray, real_ND: np.ndarray, drawn_ND: np.ndarray) -> "Agreement":
        """Agreement of each row, from unit-norm features of any float dtype."""
        text_ND = text_ND.astype(np.float64)
        return cls((text_ND * real_ND).sum(axis=1), (text_ND * drawn_ND).sum(axis=1))

    def figures(self) -> dict[str, float]:
        """Over all texts: their number `prompts`, the means `real` and `drawn`, and `drawn_better`, the percentage of
        texts that agree better with the drawn image."""
        return {
            "prompts": len(self.real_N),
            "real": float(self.real_N.mean()),
            "drawn": float(self.drawn_N.mean()),
            "drawn_better": float(100 * (self.drawn_N > self.real_N).mean()),
        }

    def worst_real(self, count: int) -> list[int]:
        """At most `count` texts, by number: those whose real images agree least, the worst first."""
        return np.argsort(self.real_N, kind="stable")[:count].tolist()
