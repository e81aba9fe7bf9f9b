"""SL4xx where the loop is right, though it looks like one that is not."""

from __future__ import annotations

import torch
from case_book import batches, blobs, small_net
from torch import nn
from torch.nn import functional as F

import spiritlevel as sl

X, Y = blobs()
PAIRS = batches(X, Y)


def severities(model, probe):
    return {(each.rule, each.severity) for each in sl.check(model, probe=probe).findings}


def test_a_gan_may_make_its_images_without_gradients():
    torch.manual_seed(0)
    maker = nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3))
    critic = small_net(classes=1)
    of_maker, of_critic = (torch.optim.SGD(m.parameters(), lr=0.05) for m in (maker, critic))
    with sl.Probe(maker) as probe:
        for x, _ in PAIRS:
            z = torch.randn(len(x), 4, 6, 6)
            with torch.no_grad():
                made = maker(z)
            of_critic.zero_grad()
            (F.softplus(-critic(x)) + F.softplus(critic(made))).mean().backward()
            of_critic.step()
            of_maker.zero_grad()
            F.softplus(-critic(maker(z))).mean().backward()
            of_maker.step()
    assert probe.counts.skipped == 0
    assert severities(maker, probe) == {("SL401", "info"), ("SL106", "info")}


def test_validation_at_the_very_end_counts():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with sl.Probe(model) as probe:
        for x, y in PAIRS:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            model(X)
    assert ("SL401", "warning") in severities(model, probe)


def test_an_attack_in_eval_is_not_another_kind_of_pass():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with sl.Probe(model, every=2) as probe:
        for x, y in PAIRS:
            model.eval()
            attacked = (x * 4 + 9).requires_grad_()
            torch.autograd.grad(F.cross_entropy(model(attacked), y), attacked)
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert not {each for each in severities(model, probe) if each[1] != "info"}
