"""VoxTell's weights in our flow: its folder, network, text vectors and way through a scan.

VoxTell (Rokuss et al. 2025) runs its whole decoder for every prompt. Here only what depends on a prompt is
computed for it, with the same values up to rounding:

- prompts don't attend to one another, so any number of them goes through the transformer together;
- attention scores every image token with every query; the key's matrix is applied to the few queries rather
  than to the many tokens, and the value's matrix to the few sums;
- the decoder's first stage sees no prompt, and neither does the skip half of every later stage's first
  convolution, which is linear in its input channels: both belong to the window;
- the channels that a prompt adds to a stage are linear in the stage's features, and so is what follows: they
  become part of the prompt's own kernels.

A further prompt costs half: 0.25 s instead of 0.52 s in a window of 64³ voxels with the release's widths of
the three finest stages (float32, one thread of an AMD EPYC with AVX-512).

In float32, which `Segmenter` takes on processors, the logits are those of VoxTell's own code to 1e-3. In
bfloat16 a window takes a fifth of the time, logits move by up to 0.03, and 0.18 % of its voxels change sides
(three prompts in 64³ voxels of a small folder whose outputs by VoxTell's own code are known; AVX-512-BF16).
"""
