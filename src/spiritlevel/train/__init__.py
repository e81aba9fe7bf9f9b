"""Training: one short run, a recipe as data, and what it is made into."""

from spiritlevel.train.agree import share_statistics_
from spiritlevel.train.build import init_, loss, optimizer, parameter_groups
from spiritlevel.train.ema import averaged
from spiritlevel.train.evaluation import Evaluation, evaluate
from spiritlevel.train.fitting import Fitted, fit
from spiritlevel.train.mixing import mix
from spiritlevel.train.recipe import Recipe
from spiritlevel.train.recipes import RECIPES, PublishedRecipe, published_recipe
from spiritlevel.train.run import SGD, Curve, Observer, Score, score, train
from spiritlevel.train.schedule import learning_rate, scheduler
from spiritlevel.train.uneven import in_step

__all__ = [
    "RECIPES",
    "SGD",
    "Curve",
    "Evaluation",
    "Fitted",
    "Observer",
    "PublishedRecipe",
    "Recipe",
    "Score",
    "averaged",
    "evaluate",
    "fit",
    "in_step",
    "init_",
    "learning_rate",
    "loss",
    "mix",
    "optimizer",
    "parameter_groups",
    "published_recipe",
    "scheduler",
    "score",
    "share_statistics_",
    "train",
]
