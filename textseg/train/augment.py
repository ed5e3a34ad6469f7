"""Changes of an image that scanners make: resolution, contrast, noise, and the artefacts of CT, MR and PET.

How often each is made is in the plan's recipe. Sizes follow nnU-Net (Isensee et al. 2021) where it makes the
same change; artefacts follow their physics, after TorchIO (Pérez-García et al. 2021) for ghosts, motion and
spikes of MR. All of them work on normalised patches of some 10⁵ voxels, on one processor thread.

With every change made at once a patch of 80 × 64 × 48 took 9 to 10 ms on one core with AVX-512, and at
`USUAL_FRACTIONS` 2 ms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from textseg.plan import TrainingPlan
from textseg.train.synth import smooth_noise
from textseg.volume import Modality

# What a recipe for somebody's own data begins with, nnU-Net's chances where it has the same change.
USUAL_FRACTIONS: dict[str, float] = {
    "neighbour_fraction": 0.5,
    "mirror_fraction": 0.5,
    "low_resolution_fraction": 0.2,
    "blur_fraction": 0.15,
    "noise_fraction": 0.15,
    "contrast_fraction": 0.15,
    "gamma_fraction": 0.3,
    "artefact_fraction": 0.15,
}


def augmented(image: Tensor, modality: Modality, recipe: TrainingPlan, random: np.random.Generator) -> Tensor:
    """An image as another scanner might have given it.

    Args:
        image: (x, y, z) float32, normalised.
        modality: decides which artefacts there can be.
        recipe: its `..._fraction` fields say how often each change is made; one that is 0 draws nothing.
    """
    if happens(recipe.artefact_fraction, random):
        image = with_artefact(image, modality, random)
    if happens(recipe.blur_fraction, random):
        image = blurred(image, random)
    if happens(recipe.low_resolution_fraction, random):
        image = with_low_resolution(image, random)
    if happens(recipe.noise_fraction, random):
        image = noisy(image, random)
    if happens(recipe.contrast_fraction, random):
        image = with_contrast(image, random)
    if happens(recipe.gamma_fraction, random):
        image = with_gamma(image, random)
    return image


def happens(fraction: float, random: np.random.Generator) -> bool:
    """Whether a thing that a plan asks for so often happens now.

    Nothing is drawn for what never happens: old plans go on with the samples that they had.
    """
    return fraction > 0 and bool(random.random() < fraction)


# ---- resolution, noise and contrast ----


def with_low_resolution(image: Tensor, random: np.random.Generator) -> Tensor:
    """The image (x, y, z) averaged over larger voxels and interpolated back, as nnU-Net does.

    Half of the time along one axis, as thick slices are, up to four times as coarse; else along all, up to
    twice.
    """
    factors = np.full(3, random.uniform(1, 2))
    if random.random() < 0.5:
        factors = np.ones(3)
        factors[random.integers(3)] = random.uniform(1.5, 4)
    coarse = [max(2, round(n / factor)) for n, factor in zip(image.shape, factors, strict=True)]
    seen = nn.functional.interpolate(image[None, None], size=coarse, mode="area")
    back = nn.functional.interpolate(seen, size=list(image.shape), mode="trilinear", align_corners=False)
    return back[0, 0]


def blurred(image: Tensor, random: np.random.Generator) -> Tensor:
    """The image (x, y, z) under a Gaussian whose width of 0.5 to 1.2 voxels differs from axis to axis."""
    for axis, sigma in enumerate(random.uniform(0.5, 1.2, 3)):
        image = _smoothed_along(image, axis, float(sigma))
    return image


def noisy(image: Tensor, random: np.random.Generator) -> Tensor:
    """The image (x, y, z) with Gaussian noise of up to 0.3 of the image's own spread in every voxel."""
    strength = float(random.uniform(0.05, 0.3)) * _spread(image)
    return image + strength * _white(tuple(image.shape), random)


def with_contrast(image: Tensor, random: np.random.Generator) -> Tensor:
    """The image (x, y, z) with its distances from the mean 0.75 to 1.25 times as large, in its old range."""
    mean = image.mean()
    stretched = (image - mean) * float(random.uniform(0.75, 1.25)) + mean
    return stretched.clamp(float(image.min()), float(image.max()))


def with_gamma(image: Tensor, random: np.random.Generator) -> Tensor:
    """The image (x, y, z) under a power of 0.7 to 1.5 of its range; mean and spread stay as they were.

    One in five is turned round before and after, so that the bright end bends instead of the dark one.
    """
    low, span = image.min(), image.max() - image.min()
    if not float(span) > 0:
        return image
    exponent = float(np.exp(random.uniform(math.log(0.7), math.log(1.5))))
    unit = (image - low) / span
    bent = 1 - (1 - unit) ** exponent if random.random() < 0.2 else unit**exponent
    return (bent - bent.mean()) / bent.std().clamp_min(1e-6) * image.std() + image.mean()


# ---- artefacts ----


def with_artefact(image: Tensor, modality: Modality, random: np.random.Generator) -> Tensor:
    """The image (x, y, z) with one artefact of its modality, drawn at random."""
    kinds = {"mr": (biased, ghosted, moved, spiked), "ct": (ringed, streaked), "pet": (with_few_counts,)}
    chosen = kinds[modality]
    return chosen[int(random.integers(len(chosen)))](image, random)


def biased(image: Tensor, random: np.random.Generator) -> Tensor:
    """MR: brightness that changes smoothly through the image, as near a coil; air stays dark."""
    field = smooth_noise(_shape(image), max(image.shape) // 2, random)
    dark = image.min()
    return (image - dark) * torch.exp(float(random.uniform(0.1, 0.35)) * field) + dark


def ghosted(image: Tensor, random: np.random.Generator) -> Tensor:
    """MR: faint copies along one axis, from a beat that weakens every n-th line of k-space."""
    axis, copies = int(random.integers(3)), int(random.integers(2, 6))
    lines = torch.fft.fft(image, dim=axis)
    number = torch.arange(image.shape[axis])
    weaker = 1 - float(random.uniform(0.2, 0.6)) * (number % copies == 0).float()
    # The middle of k-space holds the brightness of all; scanners repeat it until it is right.
    weaker[0] = 1
    ghosts: Tensor = torch.fft.ifft(lines * _along(weaker, axis), dim=axis).real
    return ghosts


def moved(image: Tensor, random: np.random.Generator) -> Tensor:
    """MR: a patient who moved by up to two voxels while the outer lines of k-space were measured."""
    axis = int(random.integers(3))
    lines = torch.fft.fftn(image)
    shift = random.uniform(-2, 2, 3)
    phase = torch.zeros(())
    for along, (n, voxels) in enumerate(zip(image.shape, shift, strict=True)):
        phase = phase + _along(torch.fft.fftfreq(n), along) * (2 * math.pi * float(voxels))
    frequency = torch.fft.fftfreq(image.shape[axis])
    late = _along(frequency > float(random.uniform(0.03, 0.15)), axis)
    seen: Tensor = torch.fft.ifftn(torch.where(late, lines * torch.exp(-1j * phase), lines)).real
    return seen


def spiked(image: Tensor, random: np.random.Generator) -> Tensor:
    """MR: stripes through the image, from one point of k-space that a spark made too bright."""
    phase = torch.full((), float(random.uniform(0, 2 * math.pi)))
    for axis, n in enumerate(image.shape):
        waves = int(random.integers(0, max(2, n // 4)))
        phase = phase + _along(torch.arange(n) * (2 * math.pi * waves / n), axis)
    return image + float(random.uniform(0.1, 0.35)) * _spread(image) * torch.cos(phase)


def ringed(image: Tensor, random: np.random.Generator) -> Tensor:
    """CT: rings about the scanner's axis in axial slices, from detector elements that read too much."""
    radius, _ = _polar(image, random)
    rings = torch.from_numpy(random.standard_normal(int(radius.max()) + 3).astype(np.float32))
    rings = rings * torch.from_numpy(random.random(len(rings)) < 0.3)
    inner = radius.floor().long()
    profile = torch.lerp(rings[inner], rings[inner + 1], radius - inner)
    return image + float(random.uniform(0.05, 0.2)) * _spread(image) * profile[..., None]


def streaked(image: Tensor, random: np.random.Generator) -> Tensor:
    """CT: bright and dark rays from one point, in the slices around it, as metal casts them."""
    radius, angle = _polar(image, random, inside=True)
    rays = torch.zeros_like(angle)
    for _ in range(4):
        rays = rays + torch.cos(int(random.integers(3, 16)) * angle + float(random.uniform(0, 2 * math.pi)))
    slices = torch.arange(image.shape[2]).float() - float(random.uniform(0, image.shape[2]))
    near = torch.exp(-((slices / float(random.uniform(1.5, 4))) ** 2))
    falling = rays / (1 + radius / 8)
    return image + float(random.uniform(0.2, 0.7)) * _spread(image) * falling[..., None] * near


def with_few_counts(image: Tensor, random: np.random.Generator) -> Tensor:
    """PET: noise that grows with the root of what is counted, in grains as wide as the scanner resolves."""
    grain = _white(_shape(image), random)
    for axis in range(3):
        grain = _smoothed_along(grain, axis, 0.8)
    counted = (image - image.min()).clamp_min(0).sqrt()
    return image + float(random.uniform(0.08, 0.3)) * counted * grain / grain.std().clamp_min(1e-6)


# ---- what these share ----


def _spread(image: Tensor) -> float:
    """How far tissue differs in this patch, at most one: an even patch gets little of anything."""
    return min(1.0, float(image.std()))


def _shape(image: Tensor) -> tuple[int, int, int]:
    x, y, z = image.shape
    return x, y, z


def _white(shape: Sequence[int], random: np.random.Generator) -> Tensor:
    return torch.from_numpy(random.standard_normal(tuple(shape), dtype=np.float32))


def _along(values: Tensor, axis: int) -> Tensor:
    """Values (n,) of one axis, shaped to be multiplied with an image."""
    shape = [1, 1, 1]
    shape[axis] = len(values)
    return values.reshape(shape)


def _smoothed_along(image: Tensor, axis: int, sigma_voxels: float) -> Tensor:
    """A Gaussian along one axis, with borders repeated: zeros would draw a rim around a CT's air."""
    reach = max(1, math.ceil(3 * sigma_voxels))
    taps = torch.exp(-(torch.arange(-reach, reach + 1).float() ** 2) / (2 * sigma_voxels**2))
    padding = [0] * 6
    padding[4 - 2 * axis] = padding[5 - 2 * axis] = reach
    padded = nn.functional.pad(image[None, None], padding, mode="replicate")
    kernel = _along(taps / taps.sum(), axis)[None, None]
    return nn.functional.conv3d(padded, kernel)[0, 0]


def _polar(image: Tensor, random: np.random.Generator, *, inside: bool = False) -> tuple[Tensor, Tensor]:
    """Radius in voxels and angle (x, y) about an axis along z; of a scanner it may lie beyond the patch."""
    room = 0.0 if inside else 0.3
    x, y = (torch.arange(n).float() - n * float(random.uniform(-room, 1 + room)) for n in image.shape[:2])
    return torch.hypot(x[:, None], y[None]), torch.atan2(y[None], x[:, None])
