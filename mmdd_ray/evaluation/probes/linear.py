"""Linear probe: how well a linear classifier tells the classes of images apart by a student's frozen features."""

# N images, V feature width

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

INVERSE_L2 = 1.0  # C of scikit-learn: the sum of the losses over the images, plus ½ of the squared weights
MAX_STEPS = 1000  # of L-BFGS, as CLIP allows it (Radford et al., ICML 2021, appendix A.3)


def linear_probe(feature_NV: np.ndarray, label_N: np.ndarray, trains_N: np.ndarray) -> float:
    """Top-1 accuracy, in percent, of multinomial logistic regression on the images that it was not fitted to.

    Features are brought to mean 0 and variance 1 over the images that it is fitted to; the L2 penalty is ``INVERSE_L2``
    for all students, and not searched for. No random number is drawn.

    Args:
        feature_NV: Finite, of any float type.
        label_N: Integers; two classes at least among the images to fit to.
        trains_N: bool, which images to fit to; the others are tested.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_L2, max_iter=MAX_STEPS))
    feature_NV = feature_NV.astype(np.float64)
    probe.fit(feature_NV[trains_N], label_N[trains_N])
    return 100 * float((probe.predict(feature_NV[~trains_N]) == label_N[~trains_N]).mean())
