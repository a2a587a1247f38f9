"""Triton body of `appearance_mlp`; the definition is in dgnet_fast/ops/appearance_mlp.py.

One layer of all MLPs is one launch, a grouped matrix product over (MLP, tile of outputs, tile of rows) with bias
and LeakyReLU in the epilogue. The code is read in place: MLP m takes quarter m mod 4, nothing is expanded. At
48 rows a layer is bound by reading its weights, so a program keeps all rows (to 64) of few outputs (32) and
streams the inputs: 128 programs for the 8x512 outputs of layers 1 and 2. Weights may be float32 beside a
16-bit code: they are converted in registers, so that no copy of them is made and their gradients come out
float32. No split sums and no atomics: results are the same from run to run.

Device memory traffic at the paper's sizes (code 8192; 2048-512-512-256) and 48 rows in bfloat16: forward reads
weights and biases, 23.1 MB, once, which with the code (0.8 MB) and the result (0.4 MB) is the minimum of
24.3 MB; the hidden layers' 0.8 MB are written once and read once, total 25.9 MB. Programs that share rows
read them from the L2 cache (196 KB a program). Backward reads the weights of layers 2 and 3, 6.3 MB (and of
layer 1, 16.8 MB, where the code needs a gradient), and writes all weights' gradients: minimum 31.3 MB (48.9),
predicted 34.4 (52.4), since activations and their gradients (0.4 MB a layer) are read once for each product
they enter. With float32 weights all weight terms double. Operations: 1.1 GFLOP forward, 1.4 backward (2.2).
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import triton
import triton.language as tl
from torch import Tensor

# Outputs and inputs of a tile. Tiles hold 64 rows at most; more rows read the weights again, from L2.
OUTPUTS = 32
INPUTS = 128
MOST_ROWS = 64
# Rows a step of `weight_gradient`, which sums over them: with 64 it spills 16 bytes on sm_80.
SUMMED_ROWS = 32


@triton.jit
def _feature_at(mlp, row, feature, mlp_stride, row_stride, part_stride, part_width):
    """Offset of an output of a layer, which come in parts: those of the last belong to one AdaIN each."""
    part = feature // part_width
    return mlp * mlp_stride + row * row_stride + part * part_stride + feature % part_width


@triton.jit
def layer(
    x_ptr, weight_ptr, bias_ptr, y_ptr, batch, inputs, outputs, x_groups, x_group, x_row, y_mlp, y_row,
    y_part, y_width, slope, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """y = act(x weight^T + bias) of every MLP."""
    mlp = tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    x_ptr += (mlp % x_groups) * x_group + row[:, None] * x_row
    weight_ptr += mlp.to(tl.int64) * outputs * inputs + output[None, :] * inputs
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for start in range(0, inputs, INPUTS):
        at = start + tl.arange(0, INPUTS)
        x = tl.load(x_ptr + at[None, :], (row < batch)[:, None] & (at < inputs)[None, :], other=0.0)
        mask = (at < inputs)[:, None] & (output < outputs)[None, :]
        weight = tl.load(weight_ptr + at[:, None], mask, other=0.0)
        total = tl.dot(x, weight.to(x.dtype), total, input_precision=PRECISION)
    bias = tl.load(bias_ptr + mlp * outputs + output, output < outputs, other=0.0).to(tl.float32)
    total += bias[None, :]
    total = tl.where(total > 0, total, total * slope)
    to = _feature_at(mlp, row[:, None], output[None, :], y_mlp, y_row, y_part, y_width)
    mask = (row < batch)[:, None] & (output < outputs)[None, :]
    tl.store(y_ptr + to, total.to(y_ptr.dtype.element_ty), mask)


@triton.jit
def input_gradient(
    grad_ptr, weight_ptr, x_ptr, grad_x_ptr, batch, inputs, outputs, grad_mlp, grad_row, grad_part,
    grad_width, x_groups, x_group, x_row, slope, SHARE: tl.constexpr, ACTIVATED: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_x = grad weight, summed over the SHARE MLPs that read one x, through x's activation if ACTIVATED.

    x is what the activation gave, and has its input's sign.
    """
    group = tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * INPUTS + tl.arange(0, INPUTS)
    total = tl.zeros([ROWS, INPUTS], tl.float32)
    for share in range(SHARE):
        mlp = group + share * x_groups
        from_ptr = weight_ptr + mlp.to(tl.int64) * outputs * inputs + column[None, :]
        for start in range(0, outputs, OUTPUTS):
            output = start + tl.arange(0, OUTPUTS)
            at = _feature_at(mlp, row[:, None], output[None, :], grad_mlp, grad_row, grad_part, grad_width)
            grad = tl.load(grad_ptr + at, (row < batch)[:, None] & (output < outputs)[None, :], other=0.0)
            mask = (output < outputs)[:, None] & (column < inputs)[None, :]
            weight = tl.load(from_ptr + output[:, None] * inputs, mask, other=0.0)
            grad = grad.to(grad_x_ptr.dtype.element_ty)
            total = tl.dot(grad, weight.to(grad.dtype), total, input_precision=PRECISION)
    at = group * x_group + row[:, None] * x_row + column[None, :]
    mask = (row < batch)[:, None] & (column < inputs)[None, :]
    if ACTIVATED:
        x = tl.load(x_ptr + at, mask, other=0.0).to(tl.float32)
        total = tl.where(x > 0, total, total * slope)
    tl.store(grad_x_ptr + at, total.to(grad_x_ptr.dtype.element_ty), mask)


@triton.jit
def weight_gradient(
    grad_ptr, x_ptr, grad_weight_ptr, grad_bias_ptr, batch, inputs, outputs, grad_mlp, grad_row, grad_part,
    grad_width, x_groups, x_group, x_row, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_weight = grad^T x and grad_bias = sum of grad over the rows, of every MLP."""
    mlp = tl.program_id(2)
    column = tl.program_id(0) * INPUTS + tl.arange(0, INPUTS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    x_ptr += (mlp % x_groups) * x_group
    total = tl.zeros([OUTPUTS, INPUTS], tl.float32)
    sums = tl.zeros([OUTPUTS], tl.float32)
    for start in range(0, batch, ROWS):
        row = start + tl.arange(0, ROWS)
        at = _feature_at(mlp, row[None, :], output[:, None], grad_mlp, grad_row, grad_part, grad_width)
        grad = tl.load(grad_ptr + at, (row < batch)[None, :] & (output < outputs)[:, None], other=0.0)
        mask = (row < batch)[:, None] & (column < inputs)[None, :]
        x = tl.load(x_ptr + row[:, None] * x_row + column[None, :], mask, other=0.0)
        total = tl.dot(grad.to(x.dtype), x, total, input_precision=PRECISION)
        sums += tl.sum(grad.to(tl.float32), 1)
    mask = (output < outputs)[:, None] & (column < inputs)[None, :]
    to = (mlp.to(tl.int64) * outputs + output[:, None]) * inputs + column[None, :]
    tl.store(grad_weight_ptr + to, total.to(grad_weight_ptr.dtype.element_ty), mask)
    if tl.program_id(0) == 0:
        bias_ptr = grad_bias_ptr + mlp * outputs + output
        tl.store(bias_ptr, sums.to(grad_bias_ptr.dtype.element_ty), output < outputs)


def _code_strides(weight0: Tensor) -> tuple[int, int, int]:
    """Groups, group and row stride of the code (B, quarters x inputs), whose quarters serve two MLPs each."""
    quarters, inputs = weight0.shape[0] // 2, weight0.shape[2]
    return quarters, inputs, quarters * inputs


def _hidden_strides(hidden: Tensor) -> tuple[int, int, int]:
    mlps, batch, features = hidden.shape
    return mlps, batch * features, features


def _feature_strides(batch: int, features: int, parts: int) -> tuple[int, int, int, int]:
    """Strides of MLP, row and part, and width of a part, of a tensor (MLPs, parts, batch, width)."""
    width = features // parts
    return batch * features, width, batch * width, width


def _tiles(batch: int, dtype: torch.dtype) -> dict:
    """Tile sizes; float32 takes smaller steps, since its products without tf32 are done in registers."""
    full = dtype == torch.float32
    exact = torch.get_float32_matmul_precision() == "highest"
    return {
        "ROWS": max(16, min(MOST_ROWS, triton.next_power_of_2(batch))),
        "OUTPUTS": OUTPUTS,
        "INPUTS": 32 if full else INPUTS,
        "PRECISION": "ieee" if full and exact else "tf32",
        "num_warps": 4,
    }


def forward(a: SimpleNamespace) -> None:
    """Fills parameters (2, layers, B, C), hidden0 and hidden1."""
    batch, mlps = a.code.shape[0], a.weight0.shape[0]
    tiles = _tiles(batch, a.code.dtype)
    x, strides = a.code, _code_strides(a.weight0)
    layers = (
        (a.weight0, a.bias0, a.hidden0, 1, a.negative_slope),
        (a.weight1, a.bias1, a.hidden1, 1, a.negative_slope),
        (a.weight2, a.bias2, a.parameters, 2, 1.0),
    )
    for weight, bias, y, parts, slope in layers:
        outputs, inputs = weight.shape[1:]
        grid = (triton.cdiv(outputs, OUTPUTS), mlps, triton.cdiv(batch, tiles["ROWS"]))
        layer[grid](
            x, weight, bias, y, batch, inputs, outputs, *strides, *_feature_strides(batch, outputs, parts), slope,
            **tiles,
        )  # fmt: skip
        if y is not a.parameters:
            x, strides = y, _hidden_strides(y)


def backward(a: SimpleNamespace) -> None:
    """Fills grad_code, and the gradients of the weights and biases; empty ones are not wanted."""
    batch, mlps = a.code.shape[0], a.weight0.shape[0]
    tiles = _tiles(batch, a.code.dtype)
    grad = a.grad
    layers = (
        (a.hidden1, a.weight2, a.grad_weight2, a.grad_bias2),
        (a.hidden0, a.weight1, a.grad_weight1, a.grad_bias1),
        (a.code, a.weight0, a.grad_weight0, a.grad_bias0),
    )
    for x, weight, grad_weight, grad_bias in layers:
        first, last = x is a.code, weight is a.weight2
        _, outputs, inputs = weight.shape
        sizes = (batch, inputs, outputs, *_feature_strides(batch, outputs, 2 if last else 1))
        strides = _code_strides(weight) if first else _hidden_strides(x)
        if a.needs_weights:
            grid = (triton.cdiv(inputs, tiles["INPUTS"]), triton.cdiv(outputs, OUTPUTS), mlps)
            weight_gradient[grid](
                grad, x, grad_weight, grad_bias, *sizes, *strides, **{**tiles, "ROWS": SUMMED_ROWS}
            )
        if not first or a.needs_code:
            # As many inputs a program as outputs in `layer`, and in turn longer steps along the outputs.
            swapped = {**tiles, "OUTPUTS": min(tiles["INPUTS"], 64), "INPUTS": OUTPUTS}
            grad_x = a.grad_code if first else torch.empty_like(x)
            grid = (triton.cdiv(inputs, OUTPUTS), strides[0], triton.cdiv(batch, tiles["ROWS"]))
            input_gradient[grid](
                grad, weight, x, grad_x, *sizes, *strides, a.negative_slope,
                SHARE=mlps // strides[0], ACTIVATED=not first, **swapped,
            )  # fmt: skip
            grad = grad_x
