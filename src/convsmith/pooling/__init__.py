"""Second-order pooling: statistics of the features in place of their average, before the classifier."""

from convsmith.pooling.attach import attach, pooling_options
from convsmith.pooling.bilinear import BilinearPooling, CompactBilinear, ImprovedBilinear
from convsmith.pooling.classifier import PooledClassifier
from convsmith.pooling.covariance import covariance, matrix_from_triu, triu_size, triu_vector
from convsmith.pooling.gaussian import L2EMG, RAIDG, G2DeNet, gaussian_embedding, von_neumann_estimate
from convsmith.pooling.isqrt import isqrt_covariance
from convsmith.pooling.later import BDC, DropCov, brownian_covariance
from convsmith.pooling.layers import ISQRTCOV, MPNCOV, POOLINGS, DeepO2P, GlobalAverage, Pooling, available
from convsmith.pooling.matrix_root import matrix_log, matrix_power, matrix_sqrt
from convsmith.pooling.power import power_covariance

__all__ = [
    "BDC",
    "ISQRTCOV",
    "L2EMG",
    "MPNCOV",
    "POOLINGS",
    "RAIDG",
    "BilinearPooling",
    "CompactBilinear",
    "DeepO2P",
    "DropCov",
    "G2DeNet",
    "GlobalAverage",
    "ImprovedBilinear",
    "PooledClassifier",
    "Pooling",
    "attach",
    "available",
    "brownian_covariance",
    "covariance",
    "gaussian_embedding",
    "isqrt_covariance",
    "matrix_from_triu",
    "matrix_log",
    "matrix_power",
    "matrix_sqrt",
    "pooling_options",
    "power_covariance",
    "triu_size",
    "triu_vector",
    "von_neumann_estimate",
]
