"""rsvlm: a reproducible study of vision-language models for captioning and retrieving remote sensing images."""

__version__ = "0.1.0"
