"""An upper bound of the cosine that a low-precision matrix product computes.

In: seeds and pool rows as float32. Out: two matrices whose product is at least the cosine (less a constant per seed)
of every pair, in float16, bfloat16 or float32. Both sides are measured against a mean direction, because the error of
low precision grows with the lengths of what is multiplied, and these are short where vectors crowd. The proof, with
every constant, is docs/exact-search.md. The price: six more columns, 12 % of a bfloat16 product's time at dim 512,
1 % of a float32 one's.
"""

from __future__ import annotations

import torch

from balance.runtime.threads import Workspace

EXTRA_COLUMNS = 6
_CAP = 3.0e4  # below float16's largest number
_WORK_ROWS_CPU = 1 << 10  # 2 MB of float32 at dim 512: in cache
_WORK_ROWS_GPU = 1 << 16


class CosineBound:
    """The mean direction m that both sides are measured against, and the bound U of q·p − q·m for unit vectors q, p.

    mean: (dim,) float64; scale: a power of two that brings the residuals q − m and p − m to length about 1 (float16's
    range is small); dtype: of the product's inputs; workspace: where the pool's matrix lies. A matrix has dim + 6
    columns, and zeros up to a multiple of 8: GPUs are slow without. With a and b the residuals, A and B their
    roundings, ε what rounding takes off and γ the error of the sum (docs/exact-search.md), the columns are

        seed:  A   1   1   1   |a| + ε(a)             ε(a)   0, or a threshold with a minus
        clip:  B   m·b (3)     ε(b) + γ(|b| + ε(b))   |b|    1
    """

    def __init__(self, mean: torch.Tensor, scale: float, dtype: torch.dtype, workspace: Workspace) -> None:
        self.scale, self.dtype = scale, dtype
        self._dim = len(mean)
        self._columns = -(-(self._dim + EXTRA_COLUMNS) // 8) * 8
        self._mean32 = (mean * scale).float()
        self._mean = self._mean32.double()  # any m will do: one that float32 holds
        self._square = float(self._mean @ self._mean)
        self._work_rows = _WORK_ROWS_CPU if mean.device.type == "cpu" else _WORK_ROWS_GPU
        self._workspace = workspace
        self._gamma = self._columns * 2.0**-22  # four times γ, for hardware that truncates where it adds

    def seeds(self, rows64: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(S, dim) float64 holding float32 values -> product matrix (S, columns), constants q·m (S,) float64."""
        out = torch.empty(len(rows64), self._columns, dtype=self.dtype, device=rows64.device)
        size, error, along, _ = self.to_low_precision(rows64.float(), rows64, rows64.new_empty(len(rows64)), out)
        out[:, self._dim : self._dim + 3] = 1.0
        out[:, self._dim + 3] = self._up(size + error)
        out[:, self._dim + 4] = self._up(error)
        return out, (along + self._square) / self.scale**2

    def pool(
        self, rows: torch.Tensor, wide: torch.Tensor, lengths: torch.Tensor, *, bounds: bool = True
    ) -> tuple[torch.Tensor, bool]:
        """(n, dim) float32 rows -> product matrix (n, columns), which holds until this thread asks for another; and
        whether all lengths are ordinary numbers: not zero, neither tiny nor huge, and finite.

        Also fills `wide` (n, dim) with the rows in float64, and `lengths` (n,) float64; the caller refuses lengths that
        are not finite. Without bounds, the product is the plain approximation of q·p − q·m, not a bound of it.
        """
        out = self._workspace.empty("matrix", len(rows), self._columns, dtype=self.dtype)
        size, error, along, ordinary = self.to_low_precision(rows, wide, lengths, out)
        if bounds:
            # m·b is summed up like the rest; 2⁻²³ covers its third rounding (where float16's pieces are subnormal, half
            # of the 2⁻²⁴ of `thresholds` does), the last term the float64 sums.
            sums = 1e-12 + self._dim * 2.0**-52
            along = along + (self._gamma + 2.0**-23) * along.abs() + sums * self.scale**2
            out[:, self._dim + 3] = self._up(error + self._gamma * (size + error))
            out[:, self._dim + 4] = self._up(size)
        out[:, self._dim + 5] = 1.0
        if self.dtype == torch.float16:
            along = torch.where(along > _CAP, torch.inf, along.clamp(min=-_CAP))
        for column in range(self._dim, self._dim + 3):
            piece = along.to(self.dtype)
            out[:, column] = piece
            along = torch.nan_to_num(along - piece.double(), nan=0.0)
        return out, ordinary

    def subtract_thresholds(self, seeds: torch.Tensor, thresholds: torch.Tensor) -> None:
        """Write each seed's own threshold t (S,) into the seeds' matrix, for a backend that compares with 0 alone.

        The product is then U − t or a little more: it is below 0 only where U is below t.
        """
        seeds[:, self._dim + 5] = self._gamma * thresholds.abs() - thresholds  # t is summed up like the rest

    def thresholds(self, cosines: torch.Tensor, constants: torch.Tensor) -> torch.Tensor:
        """What U must reach where a cosine may round to these float32 ones: (S,) -> (S,) in the product's type."""
        # 2⁻²⁴ is twice the half unit by which rounding to float32 lifts a cosine; the rest covers float64 sums.
        wanted = (cosines.double() - constants - 2.0**-24) * self.scale**2
        if self.dtype == torch.float16:
            wanted = wanted.clamp(max=_CAP)
        return wanted.to(self.dtype)

    def certified(self, bounds: torch.Tensor, seeds: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
        """Thresholds (S,) that lose none of a seed's top K, where K of its pairs have a U of at least `bounds` (S,).

        The cosine of each of these K is at least U less twice the widest error.
        """
        dim = self._dim
        wide = seeds[:, dim + 3].double() * pool[:, dim + 3].max() + seeds[:, dim + 4].double() * pool[:, dim + 4].max()
        along = 4 * self._gamma * float(pool[:, dim].abs().max())
        return (bounds.double() - 2 * wide - along - (1e-11 + 2.0**-24) * self.scale**2).to(self.dtype)

    def cosines(self, scores: torch.Tensor, constants: torch.Tensor) -> torch.Tensor:
        """Plain approximations (S,) back as cosines, (S,) float32."""
        return (scores.double() / self.scale**2 + constants).float()

    def to_low_precision(
        self, rows: torch.Tensor, wide: torch.Tensor, lengths: torch.Tensor, out: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
        """Fill `out` with the residuals rounded to the product's type, and `wide` and `lengths` as `pool` does.

        Returns the residuals' lengths |b|, bounds of their rounding errors |b − B|, and m·b, each (n,) float64; and
        whether all lengths are ordinary numbers, the one thing here that a GPU is waited for.
        """
        low, step = out[:, : self._dim], self._work_rows
        out[:, self._dim :] = 0.0
        along, rounding = torch.empty_like(lengths), torch.zeros_like(lengths)
        work, minus, all_ordinary = None, -self._mean32, True
        if self.dtype != torch.float32:
            work = self._workspace.empty("residuals", min(step, len(rows)), self._dim, dtype=torch.float32)
        for start in range(0, len(rows), step):
            these = slice(start, start + step)
            wide[these].copy_(rows[these])
            torch.linalg.vector_norm(wide[these], dim=1, out=lengths[these])
            torch.mv(wide[these], self._mean, out=along[these])
            part, inverse = rows[these], torch.where(lengths[these] > 0, self.scale / lengths[these], 0.0)
            ordinary = (inverse <= 1e30) & (inverse >= 1e-30)  # else float32 has no such factor, or few digits
            if not bool(ordinary.all()):
                all_ordinary, odd = False, ~ordinary & (inverse > 0)
                part = torch.where(odd[:, None], (wide[these] * inverse[:, None]).float(), part)
                along[these] *= torch.where(odd, inverse, 1.0)
                inverse = torch.where(odd, 1.0, inverse)
            along[these] *= inverse
            residual = low[these] if work is None else work[: len(part)]
            torch.addcmul(minus, part, inverse.float()[:, None], out=residual)
            if work is not None:
                low[these] = residual
                residual.sub_(low[these])
                rounding[these] = torch.linalg.vector_norm(residual, dim=1).double()
        along -= self._square
        # |b|² = |p|² − 2 m·b − |m|²; the second term is what float64 may have lost of it.
        square = torch.where(lengths > 0, self.scale**2, 0.0) - 2 * along - self._square
        size = square.clamp(min=0).add_(self._dim * 2.0**-50 * self.scale**2).sqrt_()
        error = (1.001 + self._dim * 2.0**-24) * (rounding + 2.0**-23 * self.scale + 2.0**-24 * size) + 1e-30
        return size, error, along, all_ordinary

    def _up(self, values: torch.Tensor) -> torch.Tensor:
        """Rounded to the product's type, never down (and never to a subnormal, which a product may flush)."""
        return (values * (1 + 2 * torch.finfo(self.dtype).eps) + torch.finfo(self.dtype).tiny).to(self.dtype)
