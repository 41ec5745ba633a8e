"""Methods as objects with typed parameters: ``vispco.prune(model, method=vispco.methods.SparseVLM(release="1.5"))``."""

from vispco.pruning.methods.base import Method
from vispco.pruning.methods.cdpruner import CDPruner
from vispco.pruning.methods.dart import DART
from vispco.pruning.methods.divprune import DivPrune
from vispco.pruning.methods.evs import EVS
from vispco.pruning.methods.fastv import FastV
from vispco.pruning.methods.fitprune import FitPrune
from vispco.pruning.methods.hiprune import HiPrune
from vispco.pruning.methods.idpruner import IDPruner
from vispco.pruning.methods.pixelprune import PixelPrune
from vispco.pruning.methods.pool import Pool
from vispco.pruning.methods.prumerge import PruMerge
from vispco.pruning.methods.pyramiddrop import PyramidDrop
from vispco.pruning.methods.random import RandomTokens
from vispco.pruning.methods.scope import Scope
from vispco.pruning.methods.sparsevlm import SparseVLM
from vispco.pruning.methods.stride import Stride
from vispco.pruning.methods.vidcom2 import VidCom2
from vispco.pruning.methods.visionzip import VisionZip
from vispco.pruning.methods.vispruner import VisPruner

__all__ = [
    "DART",
    "EVS",
    "CDPruner",
    "DivPrune",
    "FastV",
    "FitPrune",
    "HiPrune",
    "IDPruner",
    "Method",
    "PixelPrune",
    "Pool",
    "PruMerge",
    "PyramidDrop",
    "RandomTokens",
    "Scope",
    "SparseVLM",
    "Stride",
    "VidCom2",
    "VisPruner",
    "VisionZip",
]
