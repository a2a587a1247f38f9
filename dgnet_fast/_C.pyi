"""The extension, csrc/bindings.cpp: C++ and CUDA bodies of the ops, which check nothing.

Tensors are addresses (0 for none) and a CUDA stream is one too; all are passed by name. What ends in `_cuda` or
`_workspace` is there where ``build["cuda"]`` is true.
"""

from typing import Any

#: Batch, channels, height, width, padding of the result, whether channels_last, and the code of the element type.
_Layout = tuple[int, int, int, int, int, bool, int]
#: Batch, channels in, channels out, height, width, padding, and the code of the element type.
_ConvSizes = tuple[int, int, int, int, int, int, int]
#: Streams, elements of a stream, channels, pixels, crossing, element types of prediction and target.
_PairSizes = tuple[int, int, int, int, int, int, int]

build: dict[str, Any]

def keep_large_blocks() -> bool: ...
def openmp_threads() -> int: ...
def conv3x3_lanes() -> int: ...
def conv3x3_amx() -> bool: ...
def act_pad_forward(*, layout: _Layout, x: int, sides: int, bias: int, y: int, slope: float) -> None: ...
def act_pad_backward(*, layout: _Layout, grad_y: int, sides: int, grad_x: int, slope: float) -> None: ...
def adain_act_forward(
    *,
    layout: _Layout,
    x: int,
    scale: int,
    shift: int,
    residual: int,
    residual_strides: tuple[int, int, int],
    y: int,
    mean: int,
    rstd: int,
    slope: float,
    eps: float,
) -> None: ...
def adain_act_backward(
    *,
    layout: _Layout,
    grad_y: int,
    x: int,
    scale: int,
    shift: int,
    mean: int,
    rstd: int,
    grad_x: int,
    grad_scale: int,
    grad_shift: int,
    grad_residual: int,
    slope: float,
) -> None: ...
def batch_norm_act_forward(
    *,
    layout: _Layout,
    groups: int,
    x: int,
    weight: int,
    bias: int,
    residual: int,
    y: int,
    mean: int,
    var: int,
    relu: bool,
    eps: float,
) -> None: ...
def batch_norm_act_backward(
    *,
    layout: _Layout,
    groups: int,
    grad_y: int,
    y: int,
    x: int,
    weight: int,
    mean: int,
    var: int,
    grad_x: int,
    grad_weight: int,
    grad_bias: int,
    grad_residual: int,
    relu: bool,
    eps: float,
) -> None: ...
def conv3x3(*, sizes: _ConvSizes, x: int, taps: int, flipped: bool, bias: int, y: int) -> None: ...
def conv3x3_taps_gradient(*, sizes: _ConvSizes, x: int, grad_y: int, grad_taps: int) -> None: ...
def conv3x3_weight_gradient(*, sizes: _ConvSizes, x: int, grad_y: int, grad_weight: int) -> None: ...
def layer_norm_act_forward(
    *,
    layout: _Layout,
    x: int,
    gamma: int,
    beta: int,
    y: int,
    mean: int,
    rdenom: int,
    slope: float,
    eps: float,
) -> None: ...
def layer_norm_act_backward(
    *,
    layout: _Layout,
    grad_y: int,
    x: int,
    gamma: int,
    beta: int,
    mean: int,
    rdenom: int,
    grad_x: int,
    grad_gamma: int,
    grad_beta: int,
    slope: float,
    eps: float,
) -> None: ...
def loss_l1_forward(*, sizes: _PairSizes, prediction: int, target: int, means: int, signs: int) -> None: ...
def loss_l1_backward(
    *, streams: int, elements: int, element: int, grad: int, signs: int, grad_prediction: int
) -> None: ...
def adain_act_workspace(*, layout: _Layout) -> int: ...
def adain_act_forward_cuda(
    *,
    layout: _Layout,
    x: int,
    scale: int,
    shift: int,
    residual: int,
    residual_strides: tuple[int, int, int],
    y: int,
    mean: int,
    rstd: int,
    slope: float,
    eps: float,
    workspace: int,
    device: int,
    stream: int,
) -> None: ...
def adain_act_backward_cuda(
    *,
    layout: _Layout,
    grad_y: int,
    x: int,
    scale: int,
    shift: int,
    mean: int,
    rstd: int,
    grad_x: int,
    grad_scale: int,
    grad_shift: int,
    grad_residual: int,
    slope: float,
    workspace: int,
    device: int,
    stream: int,
) -> None: ...
def batch_norm_act_workspace(*, layout: _Layout, groups: int) -> int: ...
def batch_norm_act_forward_cuda(
    *,
    layout: _Layout,
    groups: int,
    x: int,
    weight: int,
    bias: int,
    residual: int,
    y: int,
    mean: int,
    var: int,
    relu: bool,
    eps: float,
    workspace: int,
    device: int,
    stream: int,
) -> None: ...
def batch_norm_act_backward_cuda(
    *,
    layout: _Layout,
    groups: int,
    grad_y: int,
    y: int,
    x: int,
    weight: int,
    mean: int,
    var: int,
    grad_x: int,
    grad_weight: int,
    grad_bias: int,
    grad_residual: int,
    relu: bool,
    eps: float,
    workspace: int,
    device: int,
    stream: int,
) -> None: ...
def layer_norm_act_workspace(*, layout: _Layout) -> int: ...
def layer_norm_act_forward_cuda(
    *,
    layout: _Layout,
    x: int,
    gamma: int,
    beta: int,
    y: int,
    mean: int,
    rdenom: int,
    slope: float,
    eps: float,
    workspace: int,
    device: int,
    stream: int,
) -> None: ...
def layer_norm_act_backward_cuda(
    *,
    layout: _Layout,
    grad_y: int,
    x: int,
    gamma: int,
    beta: int,
    mean: int,
    rdenom: int,
    grad_x: int,
    grad_gamma: int,
    grad_beta: int,
    slope: float,
    eps: float,
    workspace: int,
    device: int,
    stream: int,
) -> None: ...
