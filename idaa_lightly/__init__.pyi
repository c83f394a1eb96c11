from .ascent import FGSM, PGD, RandomDirection
from .batchnorm import (
    DualBatchNorm,
    adversarial_batchnorm,
    adversarial_parameters,
    dual_batchnorm,
    strip_dual_batchnorm,
)
from .criteria import DebiasedLoss, InfoNCELoss, OUCLLoss, UELLoss
from .evaluation.knn import knn_classify, knn_sweep
from .evaluation.lightning import FaissKNNClassifier, KNNCallback, UnlabelledCallback
from .evaluation.linear import linear_probe
from .evaluation.unlabelled import alignment, rankme, spread, uniformity
from .learned import LatentNetwork, LearnedColor, LearnedNoise, Viewmaker
from .losses import AdversarialLoss, AdversarialOutput
from .metaug import FeatureGenerator, MetAugLoss
from .spaces import AffineSpace, ColorSpace, JitterSpace, LatentSpace, PixelSpace
from .transforms.device import DeviceViews
from .vae import VAE, fit_vae
from .variants import HalfBatchLoss, ReplacingLoss, ReusedGraphLoss
from .views import CLAE, IDAA, ViewGenerator

__version__: str

__all__ = [
    "CLAE",
    "FGSM",
    "IDAA",
    "PGD",
    "VAE",
    "AdversarialLoss",
    "AdversarialOutput",
    "AffineSpace",
    "ColorSpace",
    "DebiasedLoss",
    "DeviceViews",
    "DualBatchNorm",
    "FaissKNNClassifier",
    "FeatureGenerator",
    "HalfBatchLoss",
    "InfoNCELoss",
    "JitterSpace",
    "KNNCallback",
    "LatentNetwork",
    "LatentSpace",
    "LearnedColor",
    "LearnedNoise",
    "MetAugLoss",
    "OUCLLoss",
    "PixelSpace",
    "RandomDirection",
    "ReplacingLoss",
    "ReusedGraphLoss",
    "UELLoss",
    "UnlabelledCallback",
    "ViewGenerator",
    "Viewmaker",
    "adversarial_batchnorm",
    "adversarial_parameters",
    "alignment",
    "dual_batchnorm",
    "fit_vae",
    "knn_classify",
    "knn_sweep",
    "linear_probe",
    "rankme",
    "spread",
    "strip_dual_batchnorm",
    "uniformity",
]
