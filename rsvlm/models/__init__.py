"""Models: encoders, language models, the captioner, and features of images kept on disk."""
