"""Looking at images, captions and scores: figures, static galleries, widgets."""
