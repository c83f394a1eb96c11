from .ascent import FGSM, PGD, RandomDirection
from .batchnorm import (
    DualBatchNorm,
    adversarial_batchnorm,
    adversarial_parameters,
    dual_batchnorm,
    strip_dual_batchnorm,
)
from .evaluation.knn import knn_classify
from .evaluation.linear import linear_probe
from .losses import AdversarialLoss, AdversarialOutput
from .spaces import LatentSpace, PixelSpace
from .vae import VAE, fit_vae
from .views import CLAE, IDAA, ViewGenerator

__all__ = [
    "CLAE",
    "FGSM",
    "IDAA",
    "PGD",
    "VAE",
    "AdversarialLoss",
    "AdversarialOutput",
    "DualBatchNorm",
    "LatentSpace",
    "PixelSpace",
    "RandomDirection",
    "ViewGenerator",
    "adversarial_batchnorm",
    "adversarial_parameters",
    "dual_batchnorm",
    "fit_vae",
    "knn_classify",
    "linear_probe",
    "strip_dual_batchnorm",
]
