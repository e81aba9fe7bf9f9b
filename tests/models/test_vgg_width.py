import torch
from torch import nn

from spiritlevel.models import create_model


def test_width_scales_every_channel_to_multiples_of_four():
    with torch.device("meta"):
        model = create_model("ghost_vgg16", 10, width=0.2, s=3)
    first = [stage[-1].out_chs for stage in model.features[1:]]
    assert first == [24, 52, 104, 104]  # of 25.6, 51.2, 102.4
    assert model.features[0][0].conv.out_channels == 12
    assert isinstance(model.classifier, nn.Linear)
    assert model.classifier.in_features == 104
