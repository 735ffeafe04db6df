"""The audio tower: normalised log-mel spectrograms → embeddings, as fast as plain torch allows on CPU and CUDA.

In: (batch, max_frames, num_mel_bins) float32 on the model's device. Out: (batch, dim) float32, not normalised. The
published maths (a CLIP vision transformer with x * sigmoid(1.702 x)), rearranged: weights cast once, the patch
embedding's equal input channels averaged once and its convolution written as a product, in the last block only what
the class token needs. Layer norm and the residual stream are float32 at every precision. The price: results differ
from the published code in the last bits; the fixtures bound by how much.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from balance.audio.fbank import FrontEnd
from balance.encoders.checkpoint import HEAD_WIDTH, Checkpoint, TowerConfig, read_checkpoint
from balance.encoders.precision import Precision

GELU_SCALE = 1.702
NORM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class VipAnt:
    """The description (`base.Encoder`) of a published checkpoint. sha256: of its file; front_end: what it hears."""

    checkpoint: Path
    sha256: str
    dim: int
    front_end: FrontEnd
    compile: bool = False

    @property
    def inputs(self) -> Mapping[str, str]:
        return {str(self.checkpoint): self.sha256}

    def made_by(self) -> dict[str, Any]:
        made_by = {"checkpoint_sha256": self.sha256, "front_end": asdict(self.front_end)}
        return made_by | ({"compile": True} if self.compile else {})  # other kernels, other last bits

    def build(self, device: torch.device, precision: Precision) -> Encoder:
        """Raises what `read_checkpoint` raises."""
        return build_encoder(read_checkpoint(self.checkpoint), device, precision, self.compile)


def read_vipant(checkpoint: Path, *, compile: bool = False) -> VipAnt:
    """The description of a checkpoint, which is read completely. Raises what `read_checkpoint` raises."""
    read = read_checkpoint(checkpoint)
    return VipAnt(checkpoint=read.path, sha256=read.sha256, dim=read.dim, front_end=read.front_end, compile=compile)


class _Linear(nn.Module):
    """y = x @ weight.T + bias, then silu if asked for, in the weights' dtype.

    On a CPU by oneDNN with its weights packed once, where torch has it for the dtype: torch's own `F.linear` takes MKL
    in float32, which reached 95 of oneDNN's 215 GFLOP/s per core on an AMD CPU, and packs bfloat16 weights every time.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, silu: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.to(dtype, copy=True), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.to(dtype, copy=True), requires_grad=False)
        self.silu = silu
        self._packed: Tensor | None = None

    def pack(self) -> None:
        """Pack the weights for oneDNN, once they are on their device."""
        if self.weight.device.type == "cpu" and _onednn_has(self.weight.dtype):
            with torch.inference_mode():
                self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)
            self.weight = nn.Parameter(self.weight.new_empty(0), requires_grad=False)  # not kept twice

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out)"""
        if self._packed is not None:
            kind = "swish" if self.silu else "none"
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, kind, [], "")
            return y
        y = F.linear(x, self.weight, self.bias)
        return F.silu(y, inplace=True) if self.silu else y


def _onednn_has(dtype: torch.dtype) -> bool:
    """Whether torch can hand this CPU's linear layers of this dtype to oneDNN with packed weights."""
    ops = torch.ops.mkldnn
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not hasattr(ops, "_reorder_linear_weight"):
        return False
    if dtype == torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class _Block(nn.Module):
    """One pre-norm transformer block. Linear weights in `dtype`, norms and the residual stream in float32."""

    def __init__(self, state: dict[str, Tensor], dtype: torch.dtype, class_token_only: bool) -> None:
        super().__init__()
        width = state["ln_1.weight"].shape[0]
        self.class_token_only = class_token_only
        self.num_heads = width // HEAD_WIDTH
        self.ln_1 = _norm(state["ln_1.weight"], state["ln_1.bias"])
        self.ln_2 = _norm(state["ln_2.weight"], state["ln_2.bias"])
        weight, bias = state["attn.in_proj_weight"], state["attn.in_proj_bias"]
        # Two products in the last block: queries of the class token, keys and values of all tokens.
        cuts = (0, width, 3 * width) if class_token_only else (0, 3 * width)
        self.qkv = nn.ModuleList(_Linear(weight[i:j], bias[i:j], dtype) for i, j in itertools.pairwise(cuts))
        self.out = _Linear(state["attn.out_proj.weight"], state["attn.out_proj.bias"], dtype)
        # silu(1.702 x) / 1.702 = x * sigmoid(1.702 x): the factors go into the weights, the activation is one pass.
        self.fc = _Linear(state["mlp.c_fc.weight"] * GELU_SCALE, state["mlp.c_fc.bias"] * GELU_SCALE, dtype, silu=True)
        self.proj = _Linear(state["mlp.c_proj.weight"] / GELU_SCALE, state["mlp.c_proj.bias"], dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) float32 → the same, or (batch, 1, width) of the class token."""
        batch, tokens, width = x.shape
        dtype = self.out.weight.dtype
        normed = self.ln_1(x).to(dtype)
        queries = tokens
        if self.class_token_only:
            queries, x = 1, x[:, :1]
            q = self.qkv[0](normed[:, :1])
            k, v = self.qkv[1](normed).chunk(2, dim=-1)
        else:
            q, k, v = self.qkv[0](normed).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(
            q.reshape(batch, queries, self.num_heads, HEAD_WIDTH).transpose(1, 2),
            k.reshape(batch, tokens, self.num_heads, HEAD_WIDTH).transpose(1, 2),
            v.reshape(batch, tokens, self.num_heads, HEAD_WIDTH).transpose(1, 2),
        )
        x = x + self.out(attended.transpose(1, 2).reshape(batch, queries, width))
        y: Tensor = x + self.proj(self.fc(self.ln_2(x).to(dtype)))
        return y


class AudioTower(nn.Module):
    """The encoder of a checkpoint at one (resolved) precision; no gradients.

    Each clip's result depends only on its own spectrogram and the batch's shape.
    """

    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        super().__init__()
        config, state, dtype = checkpoint.config, checkpoint.state, precision.dtype
        self.config = config
        kernel = state["conv1.weight"].mean(dim=1)  # the spectrogram's one channel enters every input channel
        self.patch = _Linear(kernel.flatten(1), None, dtype)
        positions = _positions(state["positional_embedding"], config)
        self.class_token = nn.Parameter(state["class_embedding"] + positions[0], requires_grad=False)
        self.positions = nn.Parameter(positions[1:].clone(), requires_grad=False)
        self.ln_pre = _norm(state["ln_pre.weight"], state["ln_pre.bias"])
        self.blocks = nn.Sequential()
        for layer in range(config.num_layers):
            prefix = f"blocks.{layer}."
            own = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
            self.blocks.append(_Block(own, dtype, class_token_only=layer == config.num_layers - 1))
        self.ln_post = _norm(state["ln_post.weight"], state["ln_post.bias"])
        self.head = _Linear(state["proj"].T.contiguous(), None, torch.float32)

    def forward(self, spectrograms: Tensor) -> Tensor:
        """(batch, max_frames, num_mel_bins) float32 → (batch, dim) float32."""
        config = self.config
        batch = spectrograms.shape[0]
        patches = spectrograms.to(self.patch.weight.dtype)
        patches = patches.unfold(1, config.patch[0], config.stride[0]).unfold(2, config.patch[1], config.stride[1])
        # (batch, rows, columns, patch rows, patch columns) → (batch, tokens - 1, width), row-major
        embedded = self.patch(patches.reshape(batch, config.num_tokens - 1, -1)) + self.positions
        x = self.ln_pre(torch.cat([self.class_token.expand(batch, 1, -1), embedded], dim=1))
        embeddings: Tensor = self.head(self.ln_post(self.blocks(x)[:, 0]))
        return embeddings


class Encoder:
    """A tower ready to run: `encoder(spectrograms)` at its device and precision, without gradients."""

    def __init__(self, tower: AudioTower, device: torch.device, precision: Precision, *, compile: bool) -> None:
        self.device = device
        self.precision = precision
        self.tower = tower.to(device).eval()
        if not compile:  # torch.compile cannot look into packed weights
            for module in self.tower.modules():
                if isinstance(module, _Linear):
                    module.pack()
        self._forward: Callable[[Tensor], Tensor] = torch.compile(self.tower, dynamic=False) if compile else self.tower

    @torch.inference_mode()
    def __call__(self, spectrograms: Tensor) -> Tensor:
        """(batch, max_frames, num_mel_bins) float32 on the device → (batch, dim) float32 on the device."""
        if self.device.type == "cpu":
            return self._forward(spectrograms)
        # tf32 is a switch of the whole process: set for this call only, so that the front end stays float32.
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.precision is Precision.tf32
        try:
            return self._forward(spectrograms)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before


def build_encoder(checkpoint: Checkpoint, device: torch.device, precision: Precision, compile: bool) -> Encoder:
    """The checkpoint's tower on a device, its weights cast and rearranged once."""
    precision = precision.resolve(device.type)
    return Encoder(AudioTower(checkpoint, precision), device, precision, compile=compile)


def _positions(positions: Tensor, config: TowerConfig) -> Tensor:
    """(num_tokens, width): as they are, or a vision tower's square grid resized bilinearly, class position kept."""
    if positions.shape[0] == config.num_tokens:
        return positions
    side = round((positions.shape[0] - 1) ** 0.5)
    grid = positions[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=config.grid, mode="bilinear", align_corners=False)
    return torch.cat([positions[:1], resized.permute(0, 2, 3, 1).flatten(1, 2)[0]])


def _norm(weight: Tensor, bias: Tensor) -> nn.LayerNorm:
    layer = nn.LayerNorm(weight.shape[0], eps=NORM_EPS, device="meta")
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer
