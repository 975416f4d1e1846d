"""The method: DINO self-distillation of a 3D Swin on concatenated multi-scale features; no I/O."""
