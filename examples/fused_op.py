"""One fused op alone, in a module of your own: instance normalisation with a given scale and shift, activation and
padding in one pass, with gradients.

    python examples/fused_op.py
"""

import torch

from dgnet_fast.ops import adain_act, adain_act_reference


class Stylised(torch.nn.Module):
    """A convolution whose channels get their mean and deviation from a style vector (AdaIN)."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(channels, channels, 3)
        self.style = torch.nn.Linear(style, 2 * channels)

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        scale, shift = self.style(style).chunk(2, dim=1)
        return adain_act(self.convolution(x), 1 + scale, shift, negative_slope=0.2, padding=1)


def main() -> None:
    torch.manual_seed(0)
    layer = Stylised(8, 4)
    y = layer(torch.randn(2, 8, 32, 16), torch.randn(2, 4))
    y.square().mean().backward()
    assert layer.style.weight.grad is not None
    print(f"result {tuple(y.shape)}, gradient of the style {layer.style.weight.grad.norm():.4f}")
    x, scale, shift = torch.randn(2, 8, 32, 16), torch.rand(2, 8), torch.rand(2, 8)
    error = (adain_act(x, scale, shift) - adain_act_reference(x, scale, shift)).abs().max()
    print(f"largest difference from the reference {error:.1e}")


if __name__ == "__main__":
    main()
