"""Looking at the study: figures, static galleries, the map of the study."""
