"""Models by name, with any normalization, and ways to start their weights."""

from spiritlevel.models.init import init_he_, init_normal_, init_xavier_, zero_branches_
from spiritlevel.models.registry import create_model, list_models

__all__ = [
    "create_model",
    "init_he_",
    "init_normal_",
    "init_xavier_",
    "list_models",
    "zero_branches_",
]
