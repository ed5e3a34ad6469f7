"""Training: cases as arrays, synthesis from label maps, sampling of prompts, losses and the loop."""
