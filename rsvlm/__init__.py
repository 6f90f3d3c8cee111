"""Captioning and retrieving remote sensing images with vision-language models.

    import rsvlm
    encoder   = rsvlm.load_encoder("models/encoder")               # a folder, or any name that a study takes
    captioner = rsvlm.load_captioner("models/captioner", encoder)  # carries its training captions; its language model is loaded by name
    captions  = rsvlm.caption(captioner, ["a.tif", "folder/"])     # a DataFrame: image, caption, log_probability
    said      = rsvlm.answer(captioner, "a.tif", "Is there a river?")  # said.text; trained with instructions
    index     = rsvlm.build_index(encoder, "folder/")              # then index.search("two planes beside a hangar", k=10)
    fields    = index.search(rsvlm.Without("farmland", "houses"))  # a text that says "without" finds the houses first
    german    = index.search("a river", where=rsvlm.Where(source="ucm", bbox=(5, 47, 15, 55)))  # of images it knows so much of
    languages = rsvlm.load_languages("models/languages", encoder)  # build_index(..., languages=languages): any language
    scene     = rsvlm.open_scene("scene.tif")                      # a georeferenced image of any size
    windows   = rsvlm.embed_scene(encoder, scene, "scene.parquet") # then rsvlm.search_scene(windows, "a harbour", encoder)
    said      = rsvlm.caption_scene(captioner, scene, size=256)    # said.text, and the windows of each sentence
    scores    = rsvlm.score_captions(captions, references)         # BLEU, METEOR, ...; references: {image: [captions]}

Everything works in any folder; ``models/encoder`` and ``models/captioner`` are what a study leaves (``make study``).
Images are paths, folders, PIL images or arrays. ``load_index`` reads a saved index, ``score_retrieval`` scores
embeddings. The same from the shell: ``rsvlm --help``. ``help(rsvlm.caption)`` and the others say more.
"""

import os
from importlib import import_module

__version__ = "0.1.0"

# Read once, when torch is first loaded, so they come before anything that loads it; what is set outside stays.
# Threads spin briefly before they sleep: not at all costs a third of the speed, for long makes shared cores crawl.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_ROOMS = {  # name -> the module it comes from; nothing is imported before it is asked for
    "load_encoder": "rsvlm.models.zoo",
    "load_captioner": "rsvlm.models.inference",
    "caption": "rsvlm.models.inference",
    "answer": "rsvlm.models.answering",
    "build_index": "rsvlm.models.index",
    "load_index": "rsvlm.models.index",
    "Where": "rsvlm.models.image_filters",
    "Without": "rsvlm.models.queries",
    "load_languages": "rsvlm.models.language_head",
    "open_scene": "rsvlm.data.rasters.scene",
    "embed_scene": "rsvlm.scenes.embedding",
    "search_scene": "rsvlm.scenes.search",
    "caption_scene": "rsvlm.scenes.captioning",
    "score_captions": "rsvlm.scoring.captions",
    "score_retrieval": "rsvlm.scoring.retrieval",
}
__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module 'rsvlm' has no attribute {name!r}; it has {', '.join(_ROOMS)}")
    found = getattr(import_module(_ROOMS[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
