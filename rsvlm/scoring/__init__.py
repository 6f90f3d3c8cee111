"""Scores of captions and of retrieval, per image first and summed up after."""
