"""Models by name, with any normalization, and ways to start their weights."""

from spiritlevel.models.init import init_he_, init_normal_, init_xavier_, zero_branches_
from spiritlevel.models.registry import create_model, list_models
from spiritlevel.models.reparam import deploy
from spiritlevel.models.weights import load_weights, read_metadata, save_weights

__all__ = [
    "create_model",
    "deploy",
    "init_he_",
    "init_normal_",
    "init_xavier_",
    "list_models",
    "load_weights",
    "read_metadata",
    "save_weights",
    "zero_branches_",
]
