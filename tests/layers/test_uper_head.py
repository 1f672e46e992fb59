"""The decode head in strips is the whole one; a lone value per channel trains."""

import pytest
import torch
from torch import nn

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.layers.uper_head import FCNHead, UPerHead

WIDTHS = (8, 12, 16, 20)


def maps(height: int, width: int, batch: int = 1) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [
        torch.randn(batch, channels, -(-height // 2**i), -(-width // 2**i), dtype=torch.float64)
        for i, channels in enumerate(WIDTHS)
    ]


def head() -> UPerHead:
    torch.manual_seed(0)
    made = UPerHead(WIDTHS, 6, 5).double().eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias, std=0.5)
    return made


@pytest.mark.parametrize(("height", "width"), [(17, 9), (32, 24), (3, 5), (1, 1)])
@pytest.mark.parametrize("step", [1, 2, 3, 7, 40])
def test_strips_make_up_the_whole(height: int, width: int, step: int) -> None:
    given, decode = maps(height, width), head()
    with torch.no_grad():
        whole = decode(given)
        merged = decode.merge(given)
        strips = [decode.rows(merged, start, min(start + step, height)) for start in range(0, height, step)]
    assert whole.shape == (1, 5, height, width)
    torch.testing.assert_close(torch.cat(strips, dim=2), whole)


def test_hooks_of_the_convolutions_are_called_for_strips_too() -> None:
    given, decode, seen = maps(16, 8), head(), []
    decode.fpn_convs[0].conv.register_forward_hook(lambda *_: seen.append("fpn"))
    with torch.no_grad():
        decode.rows(decode.merge(given), 4, 8)
    assert seen == ["fpn"]


def test_one_image_whose_coarsest_map_has_one_position_trains() -> None:
    decode, auxiliary = UPerHead(WIDTHS, 6, 5).train(), FCNHead(16, 6, 5).train()
    given = [x.float().requires_grad_() for x in maps(8, 8)]
    before = decode.psp_modules[0][1].bn.running_mean.clone()
    (decode(given).square().sum() + auxiliary(given[2]).square().sum()).backward()
    for name, parameter in [*decode.named_parameters(), *auxiliary.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(x.grad is not None and bool(x.grad.any()) for x in given)
    assert torch.equal(decode.psp_modules[0][1].bn.running_mean, before)
    assert decode.lateral_convs[0].bn.num_batches_tracked == 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="four maps, got channels"):
        UPerHead((8, 16, 32))
    with pytest.raises(ConfigError, match="num_classes must be"):
        FCNHead(8, 4, 0)
    with pytest.raises(ShapeError, match="four maps, got 3"):
        head()(maps(8, 8)[:3])
