"""The page's colours: enough contrast, and arms that every kind of colour vision can tell apart."""

import re
from importlib import resources
from itertools import combinations
from typing import get_args

import numpy as np
import pytest

from spiritlevel.report.heatmap import DIVERGING, SEQUENTIAL
from spiritlevel.report.story import Arm

# Machado, Oliveira & Fernandes 2009, severity 1, on linear sRGB.
VISIONS = {
    "usual": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def schemes():
    css = (
        resources.files("spiritlevel.report")
        .joinpath("web", "page.css")
        .read_text(encoding="utf-8")
    )
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in css.split("@media")[:2]
    )
    assert light.keys() == dark.keys()
    return {"light": light, "dark": dark}


SCHEMES = schemes()


def linear(colour):
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG 2: from 1 to 21."""
    light, dark = sorted((linear(c) @ [0.2126, 0.7152, 0.0722] for c in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def oklab(rgb):
    """Ottosson 2020: a space in which distance is about perceived difference."""
    lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.array(lab) @ np.cbrt(np.array(lms) @ np.clip(rgb, 0, 1))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("vision", VISIONS)
def test_arms_can_be_told_apart(scheme, vision):
    seen = {
        arm: oklab(np.array(VISIONS[vision]) @ linear(SCHEMES[scheme][f"arm-{arm}"]))
        for arm in get_args(Arm)
    }
    # 0.02 is about the least difference that can be seen side by side.
    close = {(a, b) for a, b in combinations(seen, 2) if np.linalg.norm(seen[a] - seen[b]) < 0.06}
    assert not close


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lines_stand_out_from_the_ground(scheme):
    colours = SCHEMES[scheme]
    for arm in get_args(Arm):
        assert contrast(colours[f"arm-{arm}"], colours["ground"]) >= 3, arm


@pytest.mark.parametrize("scales", [SEQUENTIAL, DIVERGING[4::-1], DIVERGING[4:]])
def test_heat_maps_change_in_even_steps_of_lightness(scales):
    lightness = np.array([oklab(linear(shade))[0] for shade in scales])
    steps = np.diff(lightness)
    assert (np.sign(steps) == np.sign(steps[0])).all()
    assert abs(steps).max() < 1.6 * abs(steps).min()
