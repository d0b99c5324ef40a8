"""Low-rank adaptation against the sum written out."""

import pytest
import torch
from torch.nn import functional as F

from dino_ssl.errors import UsageError
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.low_rank import adapt, merged


@pytest.mark.parametrize("name", ["vit_micro", "cmt_micro"])
def test_an_adapted_network_starts_as_it_was_and_is_the_sum_afterwards(name):
    torch.manual_seed(0)
    network, images = build_backbone(name, image_size=32).eval(), torch.randn(2, 3, 32, 32)
    before, state = network(images), {key: value.clone() for key, value in network.state_dict().items()}
    adapt(network, 2)
    torch.testing.assert_close(network(images), before)
    learnt = {key: p for key, p in network.named_parameters() if p.requires_grad}
    assert learnt and all(key.endswith(("down", "up")) and 2 in p.shape for key, p in learnt.items())
    network(images).sum().backward()
    assert all(p.grad is not None for p in learnt.values())
    for p in learnt.values():
        torch.nn.init.normal_(p.data)
    found = merged(dict(network.state_dict()))
    assert found.keys() == state.keys()
    plain = build_backbone(name, image_size=32).eval()
    plain.load_state_dict(found)
    torch.testing.assert_close(plain(images), network(images))
    layer = "blocks.0.attn.proj" if name == "vit_micro" else "stages.0.blocks.0.attn.proj"
    proj, x = network.get_submodule(layer), torch.randn(4, network.get_submodule(layer).in_features)
    parts = proj.parametrizations.weight[0]
    expected = F.linear(x, state[f"{layer}.weight"], proj.bias) + x @ parts.down.T @ parts.up.T
    torch.testing.assert_close(proj(x), expected, atol=1e-4, rtol=1e-4)


def test_networks_without_attention_ranks_above_its_width_and_half_a_sum_are_refused():
    with pytest.raises(UsageError, match="has no attention; take a ViT or a CMT"):
        adapt(build_backbone("resnet8x4", image_size=32), 2)
    with pytest.raises(UsageError, match="lora_rank=129 is above 128"):
        adapt(build_backbone("vit_micro", image_size=32), 129)
    with pytest.raises(UsageError, match="not what is added to it"):
        merged({"a.parametrizations.weight.original": torch.zeros(2, 2)})
