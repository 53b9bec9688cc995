"""The generative model p(x, z) and its parts: priors, likelihoods, decoders, penalties and schedules."""

from .derivations import GrammarRules
from .grammar import Grammar
from .half import Half
from .latent_variable import LatentVariableModel
from .likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedNormal,
    Gaussian,
    Heteroscedastic,
    Laplace,
    LearnedSigma,
    OptimalSigma,
    StudentT,
)
from .linear_gaussian import LinearGaussian
from .networks import decoder, sequence_decoder
from .penalties import MMD, JacobianNorm, WeightPrior, spectrally_normalised
from .priors import Mixture, StandardNormal
from .scale import Scale
from .schedules import KLWeight, Masked, Schedule, constant, cyclical, linear, switch
from .second_stage import SecondStage, SecondStageBound

__all__ = [
    "MMD",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedNormal",
    "Gaussian",
    "Grammar",
    "GrammarRules",
    "Half",
    "Heteroscedastic",
    "JacobianNorm",
    "KLWeight",
    "Laplace",
    "LatentVariableModel",
    "LearnedSigma",
    "LinearGaussian",
    "Masked",
    "Mixture",
    "OptimalSigma",
    "Scale",
    "Schedule",
    "SecondStage",
    "SecondStageBound",
    "StandardNormal",
    "StudentT",
    "WeightPrior",
    "constant",
    "cyclical",
    "decoder",
    "linear",
    "sequence_decoder",
    "spectrally_normalised",
    "switch",
]
