"""The options of the networks: the two branches of the tree in `dgnet_fast.config.options`."""

from __future__ import annotations

from dataclasses import dataclass

from dgnet_fast.config.fields import option

ACTIVATIONS = ("relu", "lrelu", "prelu", "selu", "tanh")
PADDINGS = ("zero", "reflect", "replicate")


@dataclass
class GeneratorConfig:
    """Options of the structure encoder E_s, the decoder G, and the MLPs between appearance code and AdaIN."""

    activ: str = option("lrelu", "activation function of E_s, G and the MLPs", choices=ACTIVATIONS)
    dec: str = option("basic", "residual block of the decoder", choices=("basic", "series", "parallel"))
    dim: int = option(
        16, "channels of the first convolution of E_s; all widths scale with it", low=1, high=1024
    )
    dropout: float = option(0.0, "dropout of the structure code in the decoder", low=0.0, high=0.999)
    id_dim: int = option(
        2048, "length of one strip of the appearance code (channels of E_a's last stage)", low=1, high=65536
    )
    mlp_dim: int = option(512, "width of the hidden layers of the AdaIN MLPs", low=1, high=65536)
    mlp_norm: str = option("none", "normalisation inside the AdaIN MLPs", choices=("none", "in"))
    n_downsample: int = option(2, "stride-2 convolutions in E_s, and upsampling layers in G", low=1, high=6)
    n_res: int = option(4, "number of residual blocks in E_s, and in G", low=1, high=64)
    non_local: int = option(0, "1 adds a self-attention block after the residual blocks of G", choices=(0, 1))
    pad_type: str = option("reflect", "padding of the convolutions of E_s and G", choices=PADDINGS)
    tanh: bool = option(False, "apply tanh to the structure code")
    init: str = option("kaiming", "initialisation", choices=("gaussian", "kaiming", "xavier", "orthogonal"))


@dataclass
class DiscriminatorConfig:
    """Options of the multi-scale discriminator D."""

    LAMBDA: float = option(0.01, "weight of the gradient penalty on real pictures", low=0.0)
    activ: str = option("lrelu", "activation function of D", choices=ACTIVATIONS)
    dim: int = option(32, "channels of the first convolution of D", low=1, high=1024)
    gan_type: str = option("lsgan", "kind of adversarial loss", choices=("lsgan", "nsgan", "wgan"))
    n_layer: int = option(2, "number of stride-2 convolutions at each scale", low=1, high=8)
    n_res: int = option(4, "number of residual blocks at each scale", low=0, high=64)
    non_local: int = option(
        0, "self-attention blocks: 1 after the residual blocks, 2 also before them", choices=(0, 1, 2)
    )
    norm: str = option("none", "normalisation in D", choices=("none", "in", "ln", "bn"))
    num_scales: int = option(
        3, "number of picture scales; each has half the size of the one before", low=1, high=8
    )
    pad_type: str = option("reflect", "padding of the convolutions of D", choices=PADDINGS)
