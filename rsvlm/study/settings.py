"""The parameters of each stage: a section of params.yaml and the parameters cell of its notebook."""

from typing import Literal, Self

from pydantic import model_validator

from rsvlm.safe_text import check_query
from rsvlm.settings import (
    BATCH,
    IMAGES,
    SEED,
    SIDE,
    WEIGHT,
    AdaptSettings,
    CapRetShape,
    CaptioningSettings,
    Combination,
    EarthWindows,
    Encoding,
    Generation,
    LanguageSettings,
    Pooling,
    Precision,
    Prompting,
    RewardSettings,
    Settings,
    TaskSettings,
    Within,
    setting,
)

EXAMPLES = Within(1, 100, "each is a row of pictures in the notebook")
RESAMPLES = Within(1, 100_000, "intervals move in their third digit beyond 10,000")
PAGE_IMAGES = Within(1, 10_000, "a page holds all its pictures, and browsers grow slow with more")
PICTURE = Within(16, 1024, "below 16 nothing is seen, above 1,024 a page holds few")

RECIPES = ("english", "translated", "distilled")

Device = Literal["auto", "cpu", "cuda"]
Split = Literal["train", "val", "test"]
CaptionMetric = Literal[
    "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE_L", "CIDEr", "SPICE", "CLIPScore", "RefCLIPScore"
]


class Machine(Settings):
    """Where a stage computes."""

    device: Device = setting("auto", "auto, cpu or cuda")
    threads: int = setting(
        0,
        "CPU threads; 0 leaves it to torch",
        Within(0, 1024, "0 leaves it to torch; no machine has more than 1,024 cores for one process"),
    )


class AggregateData(Settings):
    """10_aggregate_data."""

    data_root: str = setting("data/raw", "folder that the sources' paths start from, relative to the project's root")
    sources: list[dict] = setting(
        [{"name": "blue_marble", "format": "blue_marble", "tiles": 1600, "languages": ["pt", "es", "fr", "de", "zh"]}],
        "see rsvlm.data.sources.Source",
        words=True,
        quick=[{"name": "blue_marble", "format": "blue_marble", "tiles": 300}],
    )
    allow_missing_images: bool = setting(
        False, "leave out and count images that are missing or broken; false stops at them"
    )
    drop_train_near_duplicates_of_test: bool = setting(
        True, "leave out training images that show what a test image shows"
    )
    find_same_ground: bool = setting(
        True, "also look for the same ground at another zoom, shift or date (local features)"
    )
    max_images_per_split: int | None = setting(
        None, "images a source and split at most; null = all", Within(1, 100_000_000, "null takes all")
    )
    check_spelling: bool = setting(False, 'list words that an English dictionary lacks; needs the extra "audit"')
    seed: int = setting(0, "of the tiles' split, of wordings and of the draw under a limit", SEED)


class MakeInstructions(TaskSettings):
    """15_make_instructions."""

    examples: int = setting(20, "tasks shown with their images", EXAMPLES)


class _Encoder(Settings):
    encoder: str = setting(
        "packaged:efficientnet-lite2-minilm",
        "built in, preset, open_clip:..., Hugging Face name or folder",
    )
    weights: str | None = setting(
        None, "file of the weights of open_clip:ARCHITECTURE or of a preset, .pt to .safetensors"
    )
    quick_gelu: bool | None = setting(
        None, "of open_clip's: QuickGELU or GELU; null: as known, else the better on validation"
    )
    image_size: int | None = setting(96, "side of the input, pixels; null takes the encoder's own", SIDE)


class AdaptEncoder(Machine, AdaptSettings, _Encoder):
    """20_adapt_encoder."""

    cache_gigabytes: float = setting(
        4.0,
        "room on disk for decoded images; what does not fit is decoded anew each epoch",
        Within(0, 100_000, "0 decodes anew each time; 100 TB are more than one disk"),
    )
    images_per_split: int = setting(0, "trained on and validated on, at most, evenly spaced; 0: all", IMAGES, quick=480)


class EncodeImages(Machine, Encoding):
    """30_encode_images."""

    examples: int = setting(5, "images shown with their nearest neighbours", EXAMPLES)


class AddLanguages(Machine, LanguageSettings):
    """35_add_languages."""

    languages: list[str] = setting(
        ["pt", "es", "fr", "de", "zh"],
        "codes of the languages beside English that captions have; none: nothing is trained",
        quick=["pt"],
    )
    tower: str = setting("packaged:use-multilingual", "text tower: packaged, Hugging Face name or folder")
    prefix: str = setting("", 'put before each text of a tower by name or folder, such as "query: " for e5', words=True)
    recipes: list[str] = setting(list(RECIPES), "to try; the best on validation is kept, or its equal")

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        unknown = [name for name in self.recipes if name not in RECIPES]
        if unknown or not self.recipes:
            raise ValueError(f"'recipes': {', '.join(unknown) or 'none'} given; known: {', '.join(RECIPES)}")
        for code in self.languages:
            if code == "en" or not (len(code) == 2 and code.isascii() and code.islower()):
                raise ValueError(
                    f"'languages': {code!r}; expected codes of two small letters (ISO 639-1), without en, which is there anyway"
                )
        if len({*self.languages}) < len(self.languages):
            raise ValueError("'languages': a code stands there twice")
        return self


class _Decoder(Settings):
    language_model: str = setting("packaged:smollm2-135m", "packaged name, random:llama, Hugging Face name or folder")
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "of the frozen language model: auto (bfloat16 where the hardware has it), float32 or bfloat16"
    )
    four_bit: bool = setting(False, "the frozen language model in 4 bits (NF4, bitsandbytes; CUDA GPUs only)")
    use_grid: bool = setting(True, "grid features become one visual token a cell; false: pooled features only")


class FinetuneLora(Machine, RewardSettings, CaptioningSettings, Prompting, CapRetShape, _Decoder):
    """40_finetune_lora."""

    @model_validator(mode="after")
    def _check_four_bit(self) -> Self:
        if self.four_bit and self.device == "cpu":
            raise ValueError(
                "'four_bit' needs a CUDA GPU, and 'device' is cpu: set four_bit to false, or device to auto"
            )
        if self.four_bit and self.shard:
            raise ValueError(
                "'four_bit' and 'shard': weights in 4 bits are not spread over processes; take one of both"
            )
        return self

    @model_validator(mode="after")
    def _check_instruction_neighbours(self) -> Self:
        if self.instruction_neighbours and not self.neighbour_captions:
            raise ValueError("'instruction_neighbours' needs 'neighbour_captions' of 1 or more: with 0 there are none")
        return self


class GenerateCaptions(Machine, Generation):
    """50_generate_captions."""

    pool_weights: list[float] = setting([0.0, 1.0], "to try: agreement with the neighbours' captions", WEIGHT)
    sample_weights: list[float] = setting([0.0], "to try: agreement with the drawn captions", WEIGHT)
    likelihood_weights: list[float] = setting(
        [0.0, 0.5, 1.0, 2.0, 4.0], "to try: the captioner's log-probability a token", WEIGHT
    )
    cosine_weights: list[float] = setting(
        [0.0, 1.0, 2.0, 4.0], "to try: cosine of image and caption in the encoder's space", WEIGHT
    )
    images_per_split: int = setting(
        0, "captioned of validation and of test, evenly spaced; 0: all, which scoring needs", IMAGES, quick=10
    )
    batch_size: int = setting(32, "images at a time", BATCH)
    examples: int = setting(6, "images shown at the end", EXAMPLES)


class ScoreCaptions(Settings):
    """60_score_captions."""

    split: Split = setting("test", "which split to score")
    bootstrap_resamples: int = setting(1000, "resamples of the images for the 95 % intervals", RESAMPLES, quick=200)
    human_draws: int = setting(
        5,
        "how often a human caption is held out for each image; 0: no human row",
        Within(0, 1000, "0 leaves the human row out; an image has some 5 captions to draw from"),
    )
    clip_score: bool = setting(True, "CLIPScore from the study's encoder, which encodes the new captions for it")
    seed: int = setting(0, "of the resampling", SEED)
    spice_jars: str | None = setting(
        None, "folder with SPICE's missing jars, from the project's root; null: SPICE is not run"
    )


class ScoreRetrieval(Combination):
    """70_score_retrieval."""

    split: Split = setting("test", "which split to score")
    ret_weights: list[float] = setting(
        [0.0, 0.25, 0.5, 0.75, 1.0],
        "weights of [RET] to try; the dual encoder has the rest up to 1",
        Within(0, 1, "the dual encoder has the rest up to 1"),
    )
    neighbour_weights: list[float] = setting(
        [0.0, 0.25, 0.5, 1.0], "weights of the training neighbours' captions to try", WEIGHT
    )
    hubness_weights: list[float] = setting([0.0], "weights to try: hubness correction (CSLS)", WEIGHT)
    protocols: list[str] = setting(["texts_once"], "scored beside the main one; 70_score_retrieval prints their names")
    rerank_top: int = setting(
        0,
        "images that the captioner re-ranks for each text; 0: none (it costs a forward pass for each)",
        Within(0, 1000, "0 leaves it out; each costs a pass of the captioner for every text"),
    )
    rerank_weights: list[float] = setting(
        [0.0, 0.02, 0.05, 0.1, 0.2], "weights of its log-likelihood a token to try", WEIGHT
    )
    batch_size: int = setting(8, "images at a time in re-ranking", BATCH)
    device: Device = setting("auto", "auto, cpu or cuda; of re-ranking, and of captions that the features lack")
    bootstrap_resamples: int = setting(
        1000, "resamples of the test images for the 95 % intervals", RESAMPLES, quick=200
    )
    seed: int = setting(0, "of the resampling", SEED)


class ScoreInstructions(Machine):
    """76_score_instructions."""

    tasks: int = setting(
        0,
        "answered of validation and of test, at most, whole questions, evenly spaced; 0: all",
        Within(0, 1_000_000, "0 takes all that make_instructions made"),
        quick=56,
    )
    baselines: list[str] = setting(["blind", "shuffled"], "answered beside: blind (no image), shuffled (another image)")
    max_new_tokens: int = setting(
        40, "longest answer, tokens", Within(1, 1024, "a list has some 35; the cache grows with each")
    )
    error: float = setting(
        0.2,
        "share of questions with few answers that may be answered wrongly; below: I can't tell",
        Within(0, 1, "at 0 nothing may be answered, at 1 everything", above=True, below=True),
    )
    turns: int = setting(
        20, "of the dialogue on test images, drawn at random, on the page; 0: none", Within(0, 1000, "each is answered")
    )
    batch_size: int = setting(32, "instructions at a time", BATCH)
    bootstrap_resamples: int = setting(1000, "resamples of the images for the 95 % intervals", RESAMPLES, quick=200)
    seed: int = setting(0, "of the other images, the turns and the resampling", SEED)


class ScoreLanguages(Machine, Pooling):
    """71_score_languages."""

    split: Split = setting("test", "which split to score")
    translate_first: bool = setting(
        False, "also search with each query translated into English, where a package does that"
    )
    max_new_tokens: int = setting(
        96,
        "longest caption in another language by the captioner, tokens",
        Within(1, 1024, "a letter of Chinese takes up to three; the cache grows with each"),
    )
    batch_size: int = setting(32, "images at a time, for such captions", BATCH)
    bootstrap_resamples: int = setting(
        1000, "resamples of the test images for the 95 % intervals", RESAMPLES, quick=200
    )
    seed: int = setting(0, "of the resampling", SEED)


class RunModel(Machine):
    """75_run_model."""

    model: str = setting("", "the one of `models` to measure; a stage's run fills it in", quick="lite2")
    models: dict[str, dict] = setting(
        {},
        "see rsvlm.settings.OtherModel",
        words=True,
        quick={"lite2": {"encoder": "packaged:efficientnet-lite2-minilm"}},
    )
    split: Split = setting("test", "which split to measure on")
    protocols: list[str] = setting(
        ["raw", "texts_once", "skyscript", "one_caption"],
        "of retrieval, beside the main one",
    )
    batch_size: int = setting(32, "images at a time", BATCH)
    precision: Precision = setting("auto", "auto (bf16 where the hardware has it), fp32 or bf16")
    bootstrap_resamples: int = setting(1000, "resamples of the images for the 95 % intervals", RESAMPLES, quick=200)
    examples: int = setting(6, "images shown with what the model says or finds", EXAMPLES)
    seed: int = setting(0, "of the resampling", SEED)


class Leaderboard(Settings):
    """77_leaderboard."""

    quoted: bool = setting(True, "published figures of the same test sets below the measured rows")


class CompareWithPaper(Settings):
    """80_compare_with_paper."""

    seed: int = setting(0, "the study's seed, for the record", SEED)
    device: Device = setting("auto", "auto, cpu or cuda: what the study ran on, for the record")


class CaptionGallery(Settings):
    """85_caption_gallery."""

    run: str = setting("captioner", "the run whose captions stand first")
    baselines: list[str] = setting(["consensus", "beam", "nearest", "shuffled"], "runs below it; gaps are to the first")
    split: Split = setting("test", "which split to show")
    metric: CaptionMetric = setting("CIDEr", "chooses the best and the worst")
    references: Literal["released", "distinct"] = setting("released", "scores against released or distinct references")
    images: int = setting(160, "images on the page, at most", PAGE_IMAGES, quick=60)
    neighbours: int = setting(
        3, "nearest training images shown of each; 0: none", Within(0, 20, "each is a picture beside each image")
    )
    thumbnail_pixels: int = setting(192, "longer side of a picture on the page", PICTURE)
    page_megabytes: float = setting(
        5.0,
        "size of the page, at most; pictures are compressed more to fit",
        Within(0.1, 100, "browsers open pages of 100 MB, if slowly"),
    )
    seed: int = setting(0, "of the random sample", SEED)


class RetrievalGallery(Settings):
    """86_retrieval_gallery."""

    method: Literal["dual_encoder", "ret", "combined"] = setting("combined", "dual_encoder, ret or combined")
    split: Split = setting("test", "which split to search in")
    images: int = setting(60, "searches shown in each direction, at most", PAGE_IMAGES, quick=24)
    results: int = setting(5, "answers shown of each search", Within(1, 100, "each is a picture below each search"))
    thumbnail_pixels: int = setting(144, "longer side of a picture on the page", PICTURE)
    page_megabytes: float = setting(
        5.0,
        "size of the page, at most; pictures are compressed more to fit",
        Within(0.1, 100, "browsers open pages of 100 MB, if slowly"),
    )
    seed: int = setting(0, "of the random sample", SEED)
    tier: Literal["exact", "faiss", "lancedb"] = setting(
        "exact", "what the search box searches in: exact, or faiss or lancedb for millions of images"
    )


class SearchEarth(Machine, EarthWindows):
    """87_search_earth."""

    search: bool = setting(True, "whether the globe is searched; False for models that were not trained on Blue Marble")
    queries: list[str] = setting(
        [
            "hot desert beside the sea",
            "snow and ice",
            "dense evergreen forest",
            "farmland",
            "tropical savanna",
            "tundra with many lakes",
        ],
        "texts to look for; each is a map on the page",
        quick=["hot desert beside the sea", "snow and ice"],
        words=True,
    )
    hits: int = setting(8, "places shown for each text", Within(1, 100, "each is a picture beside the map"))
    apart_km: float = setting(
        1000.0, "places shown for a text are at least so far apart", Within(0.0, 20_000.0, "half around the Earth")
    )
    bootstrap_resamples: int = setting(
        1000, "resamples of the blocks of land for the 95 % intervals", RESAMPLES, quick=200
    )
    seed: int = setting(0, "of the resampling", SEED)

    @model_validator(mode="after")
    def _check_queries(self) -> Self:
        if self.search and not self.queries:
            raise ValueError("'queries' is empty: give one text at least, or leave the search out by search: false")
        for number, query in enumerate(self.queries):
            check_query(query, f"'queries': text {number + 1}")
        return self


class SearchMosaics(Machine):
    """88_search_mosaics."""

    split: Split = setting("test", "whose images are laid side by side and looked for")
    images_along: list[int] = setting(
        [4, 6],
        "images along a side of a mosaic, one size each",
        Within(2, 256, "one image is no mosaic; 256 of 256 pixels are 65,536, some 300,000 windows"),
        quick=[4],
    )
    mosaics: int = setting(
        12, "mosaics a size, each with one image to look for; 0: none", Within(0, 1000, "0 leaves them out"), quick=4
    )
    captioned: int = setting(
        3, "of these, how many a size are captioned where they are found; 0: none", Within(0, 1000, "0: none"), quick=2
    )
    selo: str | None = setting(
        None, "folder of SeLo's test set (annotations/anno.json, imgs), from the project's root; null: none"
    )
    batch_size: int = setting(32, "windows at a time", BATCH)
    precision: Precision = setting("auto", "auto (bf16 where the hardware has it), fp32 or bf16")
    bootstrap_resamples: int = setting(1000, "resamples of the mosaics for the 95 % intervals", RESAMPLES, quick=200)
    seed: int = setting(0, "of needles, places, backgrounds and resampling", SEED)


SECTIONS: dict[str, type[Settings]] = {
    "aggregate_data": AggregateData,
    "make_instructions": MakeInstructions,
    "adapt_encoder": AdaptEncoder,
    "encode_images": EncodeImages,
    "add_languages": AddLanguages,
    "finetune_lora": FinetuneLora,
    "generate_captions": GenerateCaptions,
    "score_captions": ScoreCaptions,
    "score_retrieval": ScoreRetrieval,
    "score_languages": ScoreLanguages,
    "run_model": RunModel,
    "score_instructions": ScoreInstructions,
    "leaderboard": Leaderboard,
    "compare_with_paper": CompareWithPaper,
    "caption_gallery": CaptionGallery,
    "retrieval_gallery": RetrievalGallery,
    "search_earth": SearchEarth,
    "search_mosaics": SearchMosaics,
}
