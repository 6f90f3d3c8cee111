"""Training: one loop, for the contrastive adaptation of the encoder and for the captioner."""
