"""A diffusion's student with half the steps, and again half (Salimans and Ho 2022, "Progressive distillation for fast
sampling of diffusion models").

    model = ProgressiveDistillation(teacher, steps=8)
    fit(model, x, settings)
    model = model.halved()  # of 4 steps, to be trained in turn
"""

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.models.ddpm import DDPM
from companion.models.questions import Loss
from companion.samplers.diffusion import ddim
from companion.validate import require_label, require_positive_int


class ProgressiveDistillation(nn.Module):
    """A student, one step of which leads where two of its teacher's lead, by DDIM: N steps from T to 0, and 2N.

    `student` is a DDPM, which starts as a copy of the teacher and predicts what that predicts; `teacher` is a frozen
    copy. They stop at whole times, those of `teacher.grid(2N)`, and the student at every second of them.

    Args:
        teacher: predicts v or x_0. An error of ε̂ is one of x̂_0 = (x_t - √(1 - ᾱ) ε̂)/√ᾱ, too, divided by √ᾱ, about 0
            at time T: later steps correct it where there are many, and a student of one step has none (there, sec. 4).
        steps: N.

    Raises:
        TypeError: a teacher that is no DDPM.
        ValueError: one that predicts something else, and more steps than half of its T.
    """

    now: Tensor
    between: Tensor
    weight: Tensor

    def __init__(self, teacher: DDPM, steps: int):
        super().__init__()
        if not isinstance(teacher, DDPM):
            raise TypeError(f"teacher must be a DDPM, got {type(teacher).__name__}")
        if teacher.predicts not in ("v", "x0"):
            raise ValueError(
                f"teacher must predict 'v' or 'x0', got {teacher.predicts!r}: at time T, where a student of few steps "
                "starts, the noise says next to nothing about the data"
            )
        require_positive_int(steps, "steps")
        if 2 * steps > teacher.steps:
            raise ValueError(
                f"steps must be at most {teacher.steps // 2}, for two of the teacher's T = {teacher.steps} in each, "
                f"got {steps}"
            )
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.student = copy.deepcopy(teacher).train().requires_grad_(True)
        self.steps, self.event_shape, self.classes = steps, teacher.event_shape, teacher.classes
        times, bars = teacher.grid(2 * steps)
        signal, noise = (torch.tensor(values, dtype=torch.float64).sqrt() for values in (bars, [1 - b for b in bars]))
        # Over the student's steps, computed in float64: from t, by way of t', to t''.
        now, between, after = slice(0, -1, 2), slice(1, None, 2), slice(2, None, 2)
        snr = signal / noise  # its root, e^λ; infinite at time 0
        table = {
            "now": torch.tensor(times)[now],
            "between": torch.tensor(times)[between],
            "signal": signal[now],
            "noise": noise[now],
            "next_signal": signal[between],
            "next_noise": noise[between],
            "share": (snr[between] - snr[now]) / (snr[after] - snr[now]),
            "weight": snr[now].square().clamp(min=1),
        }
        for name, values in table.items():
            self.register_buffer(name, values, persistent=False)

    def train(self, mode: bool = True) -> "ProgressiveDistillation":
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def loss(self, x: Float[Tensor, " batch *event"], label: Int[Tensor, " batch"] | None = None) -> Loss:
        """max(ᾱ/(1 - ᾱ), 1) ‖x̃ - x̂_0(x_t, t)‖² at one of the student's times, drawn for each example (Salimans and Ho
        2022, sec. 4), x̃ the `target`. Labels are hidden from both as in the teacher's training.

        Raises as `DDPM.loss`.
        """
        x0 = self.student.scaled(x)
        require_label(label, self.classes, len(x))
        if label is not None and self.classes is not None:
            hidden = torch.rand(len(x), device=x.device) < self.student.label_dropout
            label = label.masked_fill(hidden, self.classes)
        step = torch.randint(self.steps, (len(x),), device=x.device)
        z = self._at("signal", step, x0) * x0 + self._at("noise", step, x0) * torch.randn_like(x0)
        guess = _guess(self.student, z, self.now[step], self._at("signal", step, z), self._at("noise", step, z), label)
        square = (self.target(z, step, label) - guess).square().flatten(1).sum(1)
        value = self.weight[step].to(square.dtype) * square
        return Loss(value, {"weighted squared distance": value}, "squared distance, weighted by max(SNR, 1)")

    @torch.no_grad()
    def target(
        self, z: Float[Tensor, " batch *event"], step: Int[Tensor, " batch"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch *event"]:
        """x̃ = γ x̂_0(z_t) + (1 - γ) x̂_0(z_t'), by which one step of DDIM leads from z_t to the z_t'' where the teacher's
        two lead: γ = (e^λ' - e^λ)/(e^λ'' - e^λ) with e^λ = √(ᾱ/(1 - ᾱ)) (there, algorithm 2).

        Args:
            z: where a step starts; as it is inside, not stretched.
            step: which of the student's, for each example, from 0 at time T.
        """
        signal, noise = self._at("signal", step, z), self._at("noise", step, z)
        next_signal, next_noise = self._at("next_signal", step, z), self._at("next_noise", step, z)
        first = _guess(self.teacher, z, self.now[step], signal, noise, label, clip=True)
        middle = next_signal * first + next_noise * (z - signal * first) / noise
        second = _guess(self.teacher, middle, self.between[step], next_signal, next_noise, label, clip=True)
        return torch.lerp(second, first, self._at("share", step, z))

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        label: Int[Tensor, " n"] | None = None,
        progress: bool = False,
    ) -> Float[Tensor, " n *event"]:
        """By DDIM from N(0, I) at time T, with the student's network N times. Raises as `DDPM.sample`."""
        return self.student.sample(n, generator, label, steps=self.steps, sampler=ddim, progress=progress)

    def halved(self) -> "ProgressiveDistillation":
        """The next round: this student is the teacher of one with N/2 steps. Raises ValueError for an odd N."""
        if self.steps % 2:
            raise ValueError(f"steps must be even to be halved, got {self.steps}")
        return ProgressiveDistillation(self.student, self.steps // 2)

    def _at(self, name: str, step: Int[Tensor, " batch"], like: Tensor) -> Tensor:
        return getattr(self, name)[step].to(like.dtype).reshape(-1, *[1] * len(self.event_shape))


def _guess(
    model: DDPM, z: Tensor, t: Tensor, signal: Tensor, noise: Tensor, label: Tensor | None, clip: bool = False
) -> Tensor:
    """x̂_0, directly: by way of ε̂ it would be divided by √ᾱ. Clipped, it is the one that samplers are given."""
    value, _ = model._network(z, t, label)
    guess = value if model.predicts == "x0" else signal * z - noise * value
    return guess.clamp(-1, 1) if clip and model.levels is not None else guess
