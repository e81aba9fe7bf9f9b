"""Recipes of papers and their authors' code, each with where its figures are from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spiritlevel.errors import UsageError, did_you_mean
from spiritlevel.train.recipe import Recipe

__all__ = ["RECIPES", "PublishedRecipe", "published_recipe"]


@dataclass(frozen=True)
class PublishedRecipe:
    """A recipe, and whose it is."""

    recipe: Recipe
    source: str
    """Where the figures are from, which of them are ours, and what a `Recipe` cannot hold."""


def published_recipe(name: str) -> Recipe:
    """The published recipe of this name, to be changed by `dataclasses.replace`.

    Raises UsageError.
    """
    if name not in RECIPES:
        hint = did_you_mean(name, RECIPES)
        raise UsageError(f"got recipe {name!r}; wanted one of: {', '.join(RECIPES)}.{hint}")
    return RECIPES[name].recipe


RECIPES: Mapping[str, PublishedRecipe] = {
    "ghostnet": PublishedRecipe(
        Recipe(
            lr=0.4,
            epochs=400,
            batch_size=1024,
            nesterov=True,
            weight_decay=4e-5,
            label_smoothing=0.1,
            warmup_epochs=5,
            dropout=0.2,
        ),
        "GhostNet on ImageNet (Han et al. 2020). The author's answers in iamhankai/"
        "ghostnet.pytorch, issues 1, 3 and 18: rate, 400 epochs of batches of 1024, 5 epochs of "
        "warm-up, cosine. The rest from the official TensorFlow code, which decays neither norms "
        "nor cheap kernels. That the warm-up starts at 0 is ours. Theirs also: crops of 8 % of the "
        "image or more, colour jitter of 0.4, flips.",
    ),
    "ghostnetv2": PublishedRecipe(
        Recipe(
            lr=0.064,
            epochs=450,
            batch_size=1024,
            optimizer="rmsprop",
            eps=1e-3,
            weight_decay=1e-5,
            label_smoothing=0.1,
            warmup_epochs=3,
            warmup_lr=1e-6,
            schedule="periodic",
            period=2.4,
            gamma=0.973,
            ema_decay=0.9999,
            dropout=0.2,
        ),
        "GhostNetV2 1.0x on ImageNet (Tang et al. 2022): the command in the README of the official "
        "code, and the defaults of its train.py for momentum, label smoothing and the length of "
        "the warm-up. Theirs also: RandAugment, random erasing in a share of 0.2, noise on the "
        "rate from 42 % to 90 % of the run; and it decays cheap kernels, which `parameter_groups` "
        "spares.",
    ),
    "vgg-cifar": PublishedRecipe(
        Recipe(
            lr=0.1,
            epochs=400,
            batch_size=128,
            weight_decay=1e-4,
            schedule="steps",
            milestones=(200, 300, 375),
        ),
        "Ghost-VGG-16 on CIFAR-10: the author's answer in iamhankai/ghostnet.pytorch, issue 7, "
        "which leaves the weight decay between 1e-4 and 1e-5. Batch size and momentum, which it "
        "does not name, are those of 'resnet-cifar'.",
    ),
    "resnet-cifar": PublishedRecipe(
        Recipe(
            lr=0.1,
            epochs=164,
            batch_size=128,
            weight_decay=1e-4,
            schedule="steps",
            milestones=(81.92, 122.88),
        ),
        "ResNet-56 on CIFAR-10 (He et al. 2016, section 4.2), which the author took for "
        "Ghost-ResNet-56 (iamhankai/ghostnet.pytorch, issue 13): a tenth of the rate after 32,000 "
        "and 48,000 of 64,000 updates, here as epochs of 50,000 images. Theirs decays every "
        "parameter, norms too.",
    ),
}
