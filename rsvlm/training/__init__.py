"""Training: contrastive adaptation of the encoder, the captioner, and checkpoints that both share."""
