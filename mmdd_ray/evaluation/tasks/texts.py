"""The texts of pairs as students with one text encoder take them; no Ray."""

# P texts, N pairs whose similarities were learnt, T feature width

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.batches import Pairs
from mmdd_ray.models.students import ENCODE_ROWS, TextEncoder, Tokens
from mmdd_ray.protocols import PairProtocol

INSTEAD = "students got the captions they began as"


class Texts(NamedTuple):
    """Captions; or, of pairs that were learnt for the text encoder of these students, what was learnt instead."""

    captions: list[str]
    learnt: Tokens | None = None
    """Words and their offsets, of an encoder of the same vocabulary."""
    vectors_PT: np.ndarray | None = None
    """Features (P, T) float32, of the same encoder, where it stands still."""
    similarity_NN: Tensor | None = None
    """How similar images (rows) and texts are. None: each image to its own texts alone."""
    note: str = ""
    """Where not all that was learnt is of use to these students, a sentence that says so."""

    def tokens(self, encoder: TextEncoder) -> Tokens:
        """All P texts as the encoder takes them."""
        return self.learnt or encoder.tokenize(self.captions)

    @torch.inference_mode()
    def features(self, encoder: TextEncoder) -> np.ndarray:
        """Features (P, T) float32 of all texts, in their order."""
        if self.vectors_PT is not None:
            return self.vectors_PT
        if self.learnt is None:
            return encoder.encode_captions(self.captions).cpu().numpy()
        rows = torch.arange(len(self.captions)).split(ENCODE_ROWS)
        return torch.cat([encoder(self.learnt.rows(rows_B)) for rows_B in rows]).cpu().numpy()


def texts_of(pairs: Pairs, encoder: TextEncoder, protocol: PairProtocol) -> Texts:
    """The texts of ``pairs`` for students whose text encoder, as it was pretrained, is this one.

    Raises:
        UserError: they are vectors of another encoder, and have no words.
    """
    captions = pairs.flat_captions
    if not isinstance(pairs, LearntPairs):
        return Texts(captions)
    note = ""
    if pairs.vectors is not None and not (note := _no_use_of_vectors(pairs, encoder, protocol)):
        similarity_NN = None if pairs.similarity is None else torch.tensor(pairs.similarity)
        return Texts(captions, None, pairs.vectors, similarity_NN)
    if pairs.vocabulary == encoder.vocabulary_digest():
        arrays = (pairs.ids, pairs.mask, pairs.offsets)
        learnt = Tokens(*(torch.tensor(values, device=encoder.vocabulary.device) for values in arrays))
        return Texts(captions, learnt, note=note)
    if not pairs.has_words:
        raise UserError(
            "the texts of these pairs are vectors of another text encoder and have no words; choose that encoder as "
            "students.text_model, and a protocol that reads captions as it does"
        )
    return Texts(
        captions, note=note or f"its learnt texts are of another vocabulary than its students'; {INSTEAD}"
    )


def _no_use_of_vectors(pairs: LearntPairs, encoder: TextEncoder, protocol: PairProtocol) -> str:
    """Why the learnt vectors mean nothing to these students; empty where they do."""
    if protocol.trained != "frozen-text":
        return f"its learnt sentence vectors are for frozen text encoders; {INSTEAD}"
    if (pairs.pooling or "mean") != protocol.form.pooling:
        why = "made otherwise than this protocol reads captions"
    elif pairs.encoder != encoder.weights_digest():
        why = "of another text encoder than its students'"
    else:
        return ""
    return f"its learnt sentence vectors are {why}; {INSTEAD}, and no similarities"
